"""What JAX knows of numconv: primitives with their shapes, derivatives, batches, and how they are computed.

Of complex arrays JAX's transposed functions take no conjugates, where numconv's gradients are adjoints: the primitives are linear
in each array, and conjugate what numconv will conjugate again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from numconv.arguments import PoolGeometry
from numconv.derivatives import Trilinear, Unpooling, Windows
from numconv.errors import ProblemError

__all__ = ["bilinear", "lp_pool", "max_pool", "taken", "windows"]


# --- computing -----------------------------------------------------------------------------------------------------------------


def _primitive(name: str, compute: Callable[..., Any], shapes: Callable[..., Any], several: bool = False) -> Primitive:
    """A primitive that is computed by a function of NumPy arrays, at once or, in compiled functions, when XLA calls it."""
    primitive = Primitive(name)
    primitive.multiple_results = several

    def on_arrays(*arrays: Any, call: Any) -> Any:
        results = compute(call, *map(_host, arrays))
        return [_array(each) for each in results] if several else _array(results)

    def lowered(ctx: Any, *operands: Any, call: Any) -> Any:
        def called(*arrays: Any) -> Any:
            results = compute(call, *map(np.asarray, arrays))
            return tuple(results) if several else (results,)

        results, _, _ = mlir.emit_python_callback(
            ctx, called, None, list(operands), ctx.avals_in, ctx.avals_out, has_side_effect=False
        )
        return results

    primitive.def_impl(on_arrays)
    primitive.def_abstract_eval(shapes)
    mlir.register_lowering(primitive, lowered, platform="cpu")
    return primitive


def _host(array: Any) -> Any:
    """The array's memory; what lives elsewhere is not moved unasked."""
    platforms = {device.platform for device in array.devices()} if isinstance(array, jax.Array) else {"cpu"}
    if platforms != {"cpu"}:
        raise ProblemError(
            f"numconv.jax computes on the CPU, and an array lives on {', '.join(sorted(platforms))}; move it with "
            "jax.device_put(array, jax.devices('cpu')[0])"
        )
    return np.asarray(array)


def _array(result: Any) -> Any:
    """A result as JAX's array on its memory, of the CPU where others are the default."""
    device = None if jax.default_backend() == "cpu" else jax.devices("cpu")[0]
    return jax.device_put(result, device, may_alias=True)


def _shape(x: Any, *_: Any, call: Any) -> Any:
    return x.update(shape=call.result_shape(x.dtype.name), weak_type=False)


# --- convolutions --------------------------------------------------------------------------------------------------------------

_PLAIN = ("conv", "conv_transpose_input_grad")  # what has no conjugate in it


def _bilinear(call: Trilinear, first: Any, second: Any) -> Any:
    return call.run(first, second if call.op in _PLAIN else second.conj())


def _transposed(position: int, cotangent: Any, first: Any, second: Any, *, call: Trilinear) -> Any:
    derivative, *arrays = call.derivative(call.roles[position], cotangent, first, second)
    return bilinear.bind(*arrays, call=derivative)


def _bilinear_batch(arrays: Any, dims: Any, *, call: Trilinear) -> Any:
    size = _size(arrays, dims)
    folded = call.folded(size, (dims[0] is not None, dims[1] is not None))
    joined = [
        array if axis is None else _joined(array, dim, axis, size, folded.joined)
        for array, dim, axis in zip(arrays, dims, folded.axes, strict=True)
    ]
    result = bilinear.bind(*joined, call=folded.call)
    if folded.joined:
        at = result.ndim + folded.result
        result = result.reshape(*result.shape[:at], size, -1, *result.shape[at + 1 :])
    return result, result.ndim + folded.result - 1


def _size(arrays: Any, dims: Any) -> int:
    """Number of entries of the mapped axis."""
    return next(int(array.shape[dim]) for array, dim in zip(arrays, dims, strict=True) if dim is not None)


def _joined(array: Any, dim: int | None, axis: int, size: int, joined: bool) -> Any:
    """The mapped axis `dim`, or a new one if there is none, put before `axis` (counted from the end) and joined with it."""
    if dim is None:
        array, dim = jnp.broadcast_to(array, (size, *array.shape)), 0
    array = jnp.moveaxis(array, dim, axis - 1)
    if not joined:
        return array
    at = array.ndim + axis
    return array.reshape(*array.shape[: at - 1], size * array.shape[at], *array.shape[at + 1 :])


bilinear = _primitive("numconv_bilinear", _bilinear, _shape)
ad.defbilinear(bilinear, functools.partial(_transposed, 0), functools.partial(_transposed, 1))
batching.primitive_batchers[bilinear] = _bilinear_batch


# --- windows -------------------------------------------------------------------------------------------------------------------


def _windows(call: Windows, x: Any) -> Any:
    return call.run(x)


def _windows_transposed(cotangent: Any, _x: Any, *, call: Windows) -> Any:
    return [windows.bind(cotangent, call=call.other())]


def _taken(call: Unpooling | Windows, x: Any, indices: Any) -> Any:
    """What max_pool takes from x, or puts back there, or max_unpool: linear, once it is known where the maxima are."""
    if call.gradient or isinstance(call, Unpooling):
        return call.run(x, indices.astype(np.int64, copy=False))
    first = x.ndim - call.ndim - call.channels_last
    flat = (*x.shape[:first], -1, *x.shape[first + call.ndim :])
    return np.take_along_axis(x.reshape(flat), indices.reshape(flat), first).reshape(indices.shape)


def _taken_derivative(tangent: Any, _x: Any, indices: Any, *, call: Unpooling | Windows) -> Any:
    return taken.bind(tangent, indices, call=call)


def _taken_transposed(cotangent: Any, _x: Any, indices: Any, *, call: Unpooling | Windows) -> Any:
    return taken.bind(cotangent, indices, call=call.other()), None


def _windows_batch(primitive: Primitive, arrays: Any, dims: Any, *, call: Unpooling | Windows) -> Any:
    size = _size(arrays, dims)
    joined = [
        _joined(array, dim, (dim is not None) - array.ndim, size, not call.batchless)
        for array, dim in zip(arrays, dims, strict=True)
    ]
    results = primitive.bind(*joined, call=call.folded(size))
    if primitive.multiple_results:
        return [_split(call, size, each) for each in results], [0 for _ in results]
    return _split(call, size, results), 0


def _split(call: Unpooling | Windows, size: int, result: Any) -> Any:
    return result if call.batchless else result.reshape(size, -1, *result.shape[1:])


windows = _primitive("numconv_windows", _windows, _shape)
ad.deflinear2(windows, _windows_transposed)
batching.primitive_batchers[windows] = functools.partial(_windows_batch, windows)

taken = _primitive("numconv_taken", _taken, _shape)
ad.defjvp(taken, _taken_derivative, None)
ad.primitive_transposes[taken] = _taken_transposed
batching.primitive_batchers[taken] = functools.partial(_windows_batch, taken)


def _maxima(call: Windows, x: Any) -> Any:
    y, indices = call.run(x)
    return y, indices.astype(_index_dtype())


def _index_dtype() -> Any:
    """int64, or int32 where JAX has no 64 bits."""
    return jax.dtypes.canonicalize_dtype(np.int64)


def _maxima_shapes(x: Any, *, call: Windows) -> Any:
    y = _shape(x, call=call)
    return y, y.update(dtype=_index_dtype())


maxima = _primitive("numconv_maxima", _maxima, _maxima_shapes, several=True)
batching.primitive_batchers[maxima] = functools.partial(_windows_batch, maxima)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def max_pool(call: Windows, x: Any) -> Any:
    """The largest elements of windows, and their positions."""
    return tuple(maxima.bind(x, call=call))


@max_pool.defjvp
def _(call: Windows, primals: Any, tangents: Any) -> Any:
    y, indices = max_pool(call, *primals)
    return (y, indices), (taken.bind(*tangents, indices, call=call), np.zeros(indices.shape, jax.dtypes.float0))


# --- norms ---------------------------------------------------------------------------------------------------------------------


def _power(x: Any, exponent: float) -> Any:
    """x to a power, where x is not negative: 0 where x is 0, with a gradient of 0."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.where(zero, 1, x) ** exponent).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def lp_pool(call: Windows, x: Any) -> Any:
    """The p-norms of windows."""
    return windows.bind(x, call=call)


@lp_pool.defjvp
def _(call: Windows, primals: Any, tangents: Any) -> Any:
    """Dy = y^(1 - p) times the sum of sign(x) |x|^(p - 1) dx, which is an average times the number of elements."""
    (x,), (tangent,) = primals, tangents
    y, p = lp_pool(call, x), PoolGeometry(*call.options).p
    counting = call.counting()
    counts = windows.bind(jnp.ones(counting.x_shape, x.dtype), call=counting)
    sums = windows.bind(jnp.sign(x) * _power(jnp.abs(x), p - 1) * tangent, call=call.averages()) * counts
    return y, _power(y, 1 - p) * sums
