"""Other libraries, each called in its fastest way that gives the same results. All may use every core that the process has."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .cases import Calls, Case, Declined

__all__ = ["MAKERS", "start"]


def start(name: str) -> tuple[Callable[[Case], Calls], dict[str, Any]]:
    """The maker of calls of a peer, and its version."""
    module, make = MAKERS[name]
    version = importlib.import_module(module).__version__
    return make, {"version": version}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch(case: Case) -> Calls:
    """Tensors in torch's own order, and in the order of channels last: many of its kernels are faster in one of them."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(_cores())
    orders = {"contiguous": torch.contiguous_format}
    if case.ndim > 1:
        orders["channels last"] = torch.channels_last if case.ndim == 2 else torch.channels_last_3d
    return {name: _torch_call(torch, case, order) for name, order in orders.items()}


def _torch_call(torch: Any, case: Case, order: Any) -> Callable[[], Any]:
    x, w, grad_y = (torch.from_numpy(array).contiguous(memory_format=order) for array in case.arrays())
    convolve = getattr(torch.nn.functional, f"conv{case.ndim}d")
    geometry = (case.stride, case.lows, case.dilation, case.groups)
    if case.direction == "forward":

        def forward() -> Any:
            with torch.inference_mode():
                return convolve(x, w, None, *geometry)

        return forward
    leaves = (x, w, torch.zeros(case.y_shape[1], dtype=x.dtype))
    for leaf in leaves:
        leaf.requires_grad_()
    y = convolve(*leaves, *geometry)
    return lambda: torch.autograd.grad(y, leaves, grad_y, retain_graph=True)


def _jax(case: Case) -> Calls:
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=case.stride,
        padding=case.padding,
        rhs_dilation=case.dilation,
        feature_group_count=case.groups,
    )
    x, w, grad_y = map(jax.numpy.asarray, case.arrays())
    if case.direction == "forward":
        compiled = jax.jit(convolve)
        return {"jit": lambda: compiled(x, w).block_until_ready()}

    @jax.jit  # type: ignore[untyped-decorator]
    def gradients(grad_y: Any, x: Any, w: Any) -> Any:
        _, pull = jax.vjp(convolve, x, w)
        return (*pull(grad_y), grad_y.sum(axis=(0, *case.axes)))

    return {"jit": lambda: jax.block_until_ready(gradients(grad_y, x, w))}


def _onnxruntime(case: Case) -> Calls:
    """A model of one node, whose weights are constants: it may pack them beforehand."""
    if case.direction == "backward":
        raise Declined("inference only")
    if case.dtype != "float32":
        raise Declined(f"no convolution in {case.dtype}")
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    x, w, _ = case.arrays()
    node = onnx.helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        strides=case.stride,
        pads=[low for low, _ in case.padding] + [high for _, high in case.padding],
        dilations=case.dilation,
        group=case.groups,
    )
    kind = onnx.TensorProto.FLOAT
    ends = ([onnx.helper.make_tensor_value_info(name, kind, shape)] for name, shape in (("x", case.x_shape), ("y", case.y_shape)))
    graph = onnx.helper.make_graph([node], "convolution", *ends, [onnx.numpy_helper.from_array(w, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = _cores()
    session = runtime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return {"session": lambda: session.run(["y"], {"x": x})[0]}


def _scipy(case: Case) -> Calls:
    """By transforms, whole or in overlapping blocks, for filters and depthwise kernels."""
    if max(case.stride + case.dilation) > 1:
        raise Declined("no stride and no dilation")
    depthwise = case.groups == case.x_shape[1] == case.y_shape[1]
    if case.x_shape[1] != 1 and not depthwise:
        raise Declined("no sum over channels")
    signal, fft = importlib.import_module("scipy.signal"), importlib.import_module("scipy.fft")
    x, w, grad_y = case.arrays()
    kernels, mirrored = w[:, 0][None], np.flip(w, case.axes)[:, 0][None]
    # In a full convolution of two sizes a and b, element a - 1 - low of the shorter one is where padding by `low` begins.
    lows = case.lows
    of_y = [r - 1 - low for r, low in zip(case.w_shape[2:], lows, strict=True)]
    of_w = [q - 1 - low for q, low in zip(case.y_shape[2:], lows, strict=True)]
    if min(of_y + of_w) < 0:
        raise Declined("no padding that is wider than the kernel, or than what it leaves")
    y_crop, x_crop, w_crop = _crop(of_y, case.y_shape), _crop(lows, case.x_shape), _crop(of_w, case.w_shape)

    def call(convolve: Any) -> Any:
        with fft.set_workers(_cores()):
            if case.direction == "forward":
                return convolve(x, mirrored, mode="full", axes=case.axes)[y_crop]
            grad_x = convolve(grad_y, kernels, mode="full", axes=case.axes)[x_crop]
            grad_w = convolve(x, np.flip(grad_y, case.axes), mode="full", axes=case.axes)[w_crop].sum(axis=0)[:, None]
            summed = grad_x if depthwise else grad_x.sum(axis=1, keepdims=True)
            return summed, grad_w, grad_y.sum(axis=(0, *case.axes))

    return {name: functools.partial(call, getattr(signal, name)) for name in ("fftconvolve", "oaconvolve")}


def _crop(firsts: list[int], shape: tuple[int, ...]) -> Any:
    """The spatial part of an array from these positions on, of the sizes of `shape`."""
    return (..., *(slice(first, first + size) for first, size in zip(firsts, shape[2:], strict=True)))


def _opencv(case: Case) -> Calls:
    if case.direction == "backward":
        raise Declined("no gradients")
    if case.ndim != 2 or case.x_shape[:2] != (1, 1) or case.y_shape[1] != 1 or max(case.stride + case.dilation) > 1:
        raise Declined("one filter over one image, without stride and dilation")
    if case.lows != [(r - 1) / 2 for r in case.w_shape[2:]]:
        raise Declined(f"results as large as the image, and the padding is {case.padding}")
    cv2 = importlib.import_module("cv2")
    x, w, _ = case.arrays()
    return {"filter2D": lambda: cv2.filter2D(x[0, 0], -1, w[0, 0], borderType=cv2.BORDER_CONSTANT)[None, None]}


MAKERS: dict[str, tuple[str, Callable[[Case], Calls]]] = {
    "torch": ("torch", _torch),
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "jax": ("jax", _jax),
    "scipy": ("scipy", _scipy),
    "opencv": ("cv2", _opencv),
}
"""The module that a peer is found by, and what makes its calls."""
