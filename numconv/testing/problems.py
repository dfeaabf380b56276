"""The problems of the contract, in text form."""

from __future__ import annotations

from numconv.plugin import CONV_OPS

__all__ = ["CONV_PROBLEMS", "POOL_PROBLEMS", "WINDOW_PROBLEMS"]

# Sizes lie off the multiples of every likely tile, and each option appears in one, two or three dimensions. Each of the three
# operations runs on all of them.
_GEOMETRIES = (
    # 1-D
    "f32 n3 c1 k1 g1 in37 w5 s1 p2 d1",
    "f32 n2 c6 k4 g2 in41 w7 s3 p5:2 d2",
    "f64 n1 c3 k17 g1 in67 w9 s1 p0 d1",
    "f32 n2 c9 k9 g9 in50 w4 s1 p3:0 d1",
    "f32 n2 c2 k3 g1 in5 w3 s1 p7:6 d1 pad=circular",
    "f32 n1 c1 k2 g1 in150 w75 s1 p37 d1 flip=1",
    "c64 n2 c3 k2 g1 in19 w4 s2 p1 d1 pad=replicate",
    "i8 n2 c5 k3 g1 in23 w3 s1 p1 d1",
    "f32 n2 c6 k8 g2 in1 w2 s2 p1 d1",
    # 2-D: dense, pointwise, regular
    "f32 n2 c5 k7 g1 in13x19 w3x3 s1 p1 d1",
    "f32 n1 c33 k18 g1 in9x11 w1x1 s1 p0 d1",
    "f32 n2 c16 k16 g1 in14x14 w3x3 s1 p1 d1",
    "f32 n1 c3 k18 g1 in17x15 w7x7 s2 p3 d1",
    "f32 n2 c7 k10 g1 in9x12 w1x1 s2 p0 d1",
    "f32 n3 c4 k5 g1 in6x7 w6x7 s1 p0 d1",
    "f32 n1 c2 k3 g1 in4x4 w7x7 s1 p3 d1",
    "f32 n1 c2 k3 g1 in13x16 w2x2 s5 p0:3x1:0 d1",
    "f32 n1 c2 k2 g1 in9x9 w3x3 s1 p4 d4",
    "f32 n2 c3 k2 g1 in8x9 w3x3 s2 p1:-1x0 d1",
    "f32 n2 c5 k7 g1 in1x2 w2x4 s2x3 p1x2 d1",
    "f64 n1 c4 k6 g1 in10x7 w3x2 s1x2 p0:1x2:0 d2x1 flip=1",
    # 2-D: groups
    "f32 n2 c19 k19 g19 in11x15 w3x3 s1 p1 d1",
    "f32 n1 c6 k12 g6 in12x10 w5x5 s2 p2 d1",
    "f32 n2 c9 k6 g3 in8x9 w3x3 s1 p1 d1",
    # 2-D: the other options
    "f32 n1 c3 k4 g1 in7x8 w3x3 s1 p2 d1 pad=reflect",
    "f64 n2 c2 k3 g1 in3x4 w3x3 s2 p4:3x5 d1 pad=symmetric",
    "f32 n1 c4 k4 g2 in6x5 w3x2 s1 p1 d2 pad=replicate flip=1",
    "f32 n2 c6 k5 g1 in9x7 w3x3 s1 p1 d1 layout=channels_last",
    "f32 n2 c8 k8 g8 in9x7 w3x3 s1 p1 d1 layout=channels_last",
    # 2-D: the other dtypes
    "f16 n1 c5 k6 g1 in9x10 w3x3 s1 p1 d1",
    "bf16 n2 c4 k3 g1 in8x7 w3x3 s2 p1 d1",
    "c128 n1 c3 k4 g1 in7x6 w3x3 s1 p1 d1",
    "i64 n1 c3 k2 g1 in6x7 w3x3 s1 p1 d1",
    # 3-D and 4-D
    "f32 n2 c3 k5 g1 in6x7x9 w3x3x3 s1 p1 d1",
    "f64 n1 c4 k4 g2 in5x6x4 w2x3x1 s2x1x1 p1x1x0 d1",
    "f32 n1 c5 k5 g5 in5x4x6 w3x3x3 s1 p1 d1 pad=circular",
    "f32 n2 c3 k6 g3 in5x6x4 w2x3x2 s1 p1 d1 flip=1",
    "f32 n1 c2 k3 g1 in4x3x5x3 w2x2x3x2 s1 p1x0x1x0 d1",
)
CONV_PROBLEMS: tuple[str, ...] = (
    *(f"conv {op} {geometry}" for geometry in _GEOMETRIES for op in CONV_OPS),
    # A dtype may cost the compilation of a kernel, so these take one operation each.
    "conv forward u8 n1 c5 k3 g1 in23 w3 s1 p1 d2 out=i32",
    "conv forward u16 n1 c4 k2 g2 in6x5 w2x3 s1 p1 d1",
    "conv input_grad f16 n2 c3 k4 g1 in7x8 w3x3 s1 p1 d1 out=f32",
    "conv weight_grad f32 n1 c3 k4 g1 in8x6 w3x3 s1 p1 d1 out=f64",
    "conv weight_grad i32 n2 c2 k2 g2 in3x4x3x3 w2x1x2x2 s1x2x1x1 p1 d1x1x2x1",
    "conv forward f32 n2 c5 k7 g1 in13x19 w3x3 s1 p1 d1 bias=y act=relu",
    "conv forward f32 n2 c33 k19 g1 in9x7 w1x1 s1 p0 d1 bias=y act=silu",
    "conv forward f64 n1 c6 k6 g6 in11x8 w3x3 s1 p1 d1 bias=y act=gelu",
    "conv forward f16 n1 c3 k4 g1 in9x8 w3x3 s1 p1 d1 bias=y act=relu",
    "conv forward i16 n1 c3 k4 g1 in9x8 w3x3 s1 p1 d1 bias=y act=relu",
    "conv forward c64 n1 c3 k4 g1 in9x8 w3x3 s1 p1 d1 bias=y",
    "conv input_grad f32 n2 c5 k7 g1 in13x19 w3x3 s2 p1 d1 bias=x act=relu",
    "conv input_grad f64 n1 c6 k3 g3 in21 w4 s2 p1:-1 d1 bias=x",
    "conv weight_grad f32 n2 c5 k7 g1 in13x19 w3x3 s1 p1 d1 bias=y",
    "conv weight_grad f32 n3 c4 k6 g2 in11x9 w3x2 s2 p1 d1 bias=x",
    "conv weight_grad c128 n2 c2 k3 g1 in17 w3 s1 p1 d1 bias=y",
    "conv weight_grad f16 n2 c3 k3 g3 in9x9 w3x3 s1 p1 d1 bias=y",
)
"""Problems of convolution that every backend is tested on, in text form."""
_POOL_OPTIONS = (
    ("max_pool", ""), ("max_pool", " indices=1"), ("max_pool_backward", ""), ("max_pool_backward", " indices=1"),
    ("avg_pool", ""), ("avg_pool_backward", ""), ("lp_pool", ""), ("lp_pool_backward", ""),
)  # fmt: skip
POOL_PROBLEMS: tuple[str, ...] = (
    *(
        f"pool {op} {geometry}{option}"
        for geometry in (
            "f32 n2 c3 in11x13 w2x2 s2 p0 d1",
            "f64 n1 c5 in17 w5 s2 p2:1 d1 ceil=1",
            "f32 n2 c2 in6x7x5 w3x2x3 s2x1x2 p1 d1x2x1 ceil=1",
        )
        for op, option in _POOL_OPTIONS
    ),
    "pool max_pool f32 n2 c7 in9x10 w3x3 s1 p1 d2 indices=1 layout=channels_last",
    "pool max_pool i8 n1 c3 in9x8 w3x2 s2 p1 d1 indices=1",
    "pool max_pool u64 n1 c2 in4x3x5x3 w2x2x2x1 s1 p0 d1",
    "pool max_pool bf16 n1 c3 in9x8 w3x3 s2 p1 d1",
    "pool max_pool_backward f32 n1 c4 in9x8 w3x3 s1 p1 d1 out=f64",
    "pool avg_pool f32 n2 c7 in9x10 w3x3 s2 p1 d1 ceil=1 countpad=0 layout=channels_last",
    "pool avg_pool c64 n1 c3 in9x8 w3x3 s2 p1 d1",
    "pool avg_pool f16 n1 c3 in9x8 w3x3 s2 p1 d1",
    "pool avg_pool_backward f64 n1 c3 in9x8 w4x3 s1x2 p1:2x1 d1x3 ceil=1 countpad=0",
    "pool lp_pool f32 n2 c3 in11x9 w3x3 s2 p1 d1 norm=3.0",
    "pool lp_pool_backward f64 n2 c3 in11x9 w3x2 s2 p1 d1 ceil=1 norm=0.5",
)
"""Problems of pooling."""
WINDOW_PROBLEMS: tuple[str, ...] = (
    *(
        f"window {op} f32 n2 c3 in5x4 w1x1 s1 p2:3x0:9 d1{mode}"
        for mode in ("", " pad=reflect", " pad=symmetric", " pad=replicate", " pad=circular")
        for op in ("pad", "pad_backward")
    ),
    "window pad_backward f32 n2 c3 in5x4 w1x1 s1 p2x0 d1 pad=replicate",
    "window pad_backward f64 n1 c2 in3x4x2 w1x1x1 s1 p0x3:1x0 d1 pad=circular",
    "window pad i16 n1 c3 in1 w1 s1 p3 d1 pad=reflect layout=channels_last out=i64",
    "window pad_backward c128 n2 c2 in3x4x2 w1x1x1 s1 p1x0:2x5 d1 pad=circular",
    "window pad_backward f16 n2 c3 in5x4 w1x1 s1 p2 d1 pad=symmetric layout=channels_last",
    "window unfold f32 n2 c3 in9x11 w3x2 s2x1 p1:2x0 d1x3",
    "window unfold i8 n1 c2 in3x4x3x2 w2x2x1x2 s1 p1 d1",
    "window fold f32 n2 c3 in9x11 w3x2 s2x1 p1:2x0 d1x3",
    "window fold f64 n1 c2 in29 w7 s1 p3 d1",
    "window fold u8 n1 c2 in5x6x4 w2x3x2 s1 p1 d1 out=u16",
    "window max_unpool f32 n2 c3 in9x8 w1x1 s1 p0 d1 target=4x3",
    "window max_unpool i32 n2 c3 in19 w1 s1 p0 d1 target=6 layout=channels_last",
    "window max_unpool_backward f32 n2 c3 in9x8 w1x1 s1 p0 d1 target=4x3",
    "window max_unpool_backward f64 n1 c2 in3x4x5 w1x1x1 s1 p0 d1 target=2x2x3",
)
"""Problems of padding, unfolding, folding and unpooling."""
