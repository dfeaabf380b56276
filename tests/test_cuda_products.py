"""The matrix products of the backend `cuda`: every tile, parts of sums, phases of a stride, what is not finite."""

import numconv_cuda
import numpy as np
import pytest

import numconv as nc
from numconv.plugin import CONV_OPS, parse
from numconv.testing import check

simulated = pytest.mark.skipif(not numconv_cuda.simulated(), reason="runs in the simulator: NUMBA_ENABLE_CUDASIM=1")
pytest.importorskip("numba_cuda")


@pytest.fixture
def scheduled(monkeypatch):
    """Have every problem computed with one tile, by its number among those of its numbers, and with so many parts."""
    from numconv_cuda.gemm import implicit_gemm
    from numconv_cuda.gemm.schedule import Schedule
    from numconv_cuda.gemm.tiles import tiles_of

    def schedule(tile, parts=1):
        monkeypatch.setattr(implicit_gemm, "schedule_of", lambda problem: Schedule(tiles_of(problem.acc_dtype)[tile], parts))

    return schedule


@simulated
@pytest.mark.parametrize("tile", range(3))
@pytest.mark.parametrize(
    "text",
    [
        "conv forward f32 n2 c4 k10 g2 in4x3 w3x2 s2x1 p1 d1 act=silu bias=y",
        "conv input_grad f32 n1 c10 k4 g2 in5x4 w3x2 s1 p1 d1",
        "conv weight_grad f32 n1 c4 k10 g2 in5x4 w3x2 s1 p1 d1x2",
    ],
)
def test_every_tile_and_parts_of_sums(text, tile, scheduled, rng):
    scheduled(tile, 1 + tile)
    check(parse(text), "cuda", "implicit_gemm", rng=rng)


@simulated
@pytest.mark.parametrize("op", CONV_OPS)
def test_the_tile_changes_no_bit(op, scheduled, rng):
    problem = parse(f"conv {op} f32 n2 c5 k9 g1 in6x4 w3x3 s1 p1 d1")
    executor = next(each for each in numconv_cuda.backend.implementations() if each.name == "implicit_gemm").build(problem)
    arrays = nc.testing.inputs(problem, rng, False)
    found = []
    for tile in range(3):
        scheduled(tile)
        found.append([np.empty(shape, np.float32) for shape in problem.output_shapes])
        executor(found[-1], arrays)
    for other in found[1:]:
        np.testing.assert_array_equal(other[0], found[0][0])


@simulated
@pytest.mark.parametrize(
    "axis",
    ["in9 w4 s2 p1:2 d1", "in9 w5 s3 p2 d2", "in8 w3 s4 p1 d2", "in8 w3 s2 p0:3 d2", "in3 w5 s4 p2 d1", "in7 w2 s6 p1 d4"],
)
@pytest.mark.parametrize("flip", ["", " flip=1"])
def test_phases(axis, flip, rng):
    """Every phase of a stride, with a dilation that shares factors with it, and with phases that no tap reaches."""
    check(parse(f"conv input_grad f32 n1 c2 k3 g1 {axis}{flip}"), "cuda", "implicit_gemm", rng=rng)


@simulated
def test_phases_on_several_axes(scheduled, rng):
    check(
        parse("conv input_grad f64 n2 c3 k2 g1 in5x4x3 w3x2x1 s2x3x2 p1x0x0 d1 accuracy=strict"), "cuda", "implicit_gemm", rng=rng
    )
    scheduled(0, 2)
    check(parse("conv input_grad f32 n1 c4 k6 g2 in5x4 w3x3 s2 p1 d1 bias=x act=relu"), "cuda", "implicit_gemm", rng=rng)


@simulated
@pytest.mark.parametrize("where", ["first", "second"])
def test_what_is_not_finite_meets_no_padding(where, scheduled):
    """In a factor that is padded and in one that is not, with sums in parts: outputs whose windows do not hold it stay finite."""
    scheduled(0, 2)
    x, w = np.ones((1, 4, 5, 5), np.float32), np.ones((3, 4, 3, 3), np.float32)
    if where == "first":
        w[1, 2, 0, 0] = np.inf
    else:
        x[0, 3, 0, 0] = np.nan
    found = nc.conv(x, w, padding=1, backend="cuda", algorithm="implicit_gemm")
    np.testing.assert_array_equal(found, nc.conv(x, w, padding=1, backend="reference"))
    assert np.isfinite(found).sum() == (75 - 16 if where == "first" else 75 - 12)


@simulated
@pytest.mark.parametrize(
    ("text", "ways"),
    [
        ("conv forward f32 n1 c8 k5 g1 in2x4 w1x1 s1 p0 d1", ["1 x4", "1 1"]),
        ("conv forward f32 n2 c4 k6 g2 in3x4 w2x2 s1 p0 d1", ["1 x1"]),
        ("conv forward f16 n1 c8 k5 g1 in2x4 w1x1 s1 p0 d1", ["1 x1"]),
        ("conv input_grad f32 n1 c4 k8 g1 in2x4 w1x1 s1 p0 d1", ["x4 x4", "x4 1"]),
        ("conv weight_grad f32 n2 c4 k4 g1 in2x4 w1x1 s1 p0 d1", ["1 1", "x4 x4"]),
        ("conv weight_grad f32 n2 c3 k4 g1 in3x5 w2x2 s1 p0 d1", ["1 1", "x4 1"]),
    ],
)
def test_wide_copies(text, ways, rng, monkeypatch):
    """Neighbours that are aligned are copied at once: with channels first, and with channels last."""
    from numconv_cuda.gemm import implicit_gemm

    known, found = implicit_gemm.ways_of, set()

    def noted(*given):
        found.add(" ".join(map(str, known(*given))))
        return known(*given)

    monkeypatch.setattr(implicit_gemm, "ways_of", noted)
    for layout in ("channels_first", "channels_last"):
        check(parse(text).replace(layout=layout), "cuda", "implicit_gemm", rng=rng)
    assert found >= set(ways)


def test_schedules_fit():
    """A block's threads take whole slices, tiles of warps fill it, and parts keep to what may be held."""
    from numconv_cuda.gemm.schedule import parts_fit, schedule_of
    from numconv_cuda.gemm.tiles import TILES

    for tile in {tile for tiles in TILES.values() for tile in tiles}:
        rows, columns = tile.warp
        assert (tile.rows % rows, tile.columns % columns) == (0, 0)
        assert tile.threads % (tile.lane_rows * tile.lane_columns) == 0
        assert tile.columns * tile.depth % tile.threads == 0
        assert tile.depth <= tile.threads
    problem = parse("conv weight_grad f32 n32 c64 k64 g1 in56x56 w3x3 s1 p1 d1")
    assert parts_fit(problem, schedule_of(problem).parts)
    assert schedule_of(problem.replace(max_workspace=2**20)).parts < schedule_of(problem).parts
