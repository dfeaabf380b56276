"""What may be asked, by name: operations, modes, dtypes. A problem holds these names and no objects of any library."""

from __future__ import annotations

__all__ = [
    "ACTIVATIONS", "CONV_OPS", "DEFAULT_WORKSPACE", "ITEMSIZE", "LAYOUTS", "LEVELS", "LONG", "PAD_MODES", "POOL_OPS", "SHORT",
    "WIDER", "WINDOW_OPS", "Ints", "Pairs", "accumulator",
]  # fmt: skip

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]

CONV_OPS = ("forward", "input_grad", "weight_grad")
POOL_OPS = ("max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward", "lp_pool", "lp_pool_backward")
WINDOW_OPS = ("pad", "pad_backward", "unfold", "fold", "max_unpool", "max_unpool_backward")
PAD_MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")
LAYOUTS = ("channels_first", "channels_last")
ACTIVATIONS = ("relu", "silu", "gelu")
LEVELS = ("strict", "high", "default", "fast")
DEFAULT_WORKSPACE = 256 * 2**20

SHORT = {
    "float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64", "complex64": "c64", "complex128": "c128",
    "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64", "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
}  # fmt: skip
LONG = {short: name for name, short in SHORT.items()}
ITEMSIZE = {name: int("".join(filter(str.isdigit, name))) // 8 for name in SHORT}

_SIGNED = ("int8", "int16", "int32", "int64")
_UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
# The dtypes that an output may have, by the dtype of the inputs: the same, or a wider one that holds every value.
WIDER: dict[str, tuple[str, ...]] = {
    "float16": ("float32", "float64"),
    "bfloat16": ("float32", "float64"),
    "float32": ("float64",),
    "complex64": ("complex128",),
    **{name: _SIGNED[i + 1 :] for i, name in enumerate(_SIGNED)},
    **{name: _UNSIGNED[i + 1 :] + _SIGNED[i + 1 :] for i, name in enumerate(_UNSIGNED)},
}


def accumulator(out_dtype: str) -> str:
    """The dtype in which sums are held: that of the output, but float32 for the half types."""
    return "float32" if out_dtype in ("float16", "bfloat16") else out_dtype
