"""The test helper itself: it must fail on everything that is wrong."""

import dataclasses
import re

import numpy as np
import pytest

from numconv.plugin import CONV_OPS, LEVELS, POOL_OPS, WINDOW_OPS, Implementation, UnsupportedProblemError, Verdict, parse
from numconv.problem import SHORT
from numconv.registry import default_registry
from numconv.testing import CONV_PROBLEMS, POOL_PROBLEMS, WINDOW_PROBLEMS, BackendContract, bound, candidates, check, inputs

pytest_plugins = ("pytester",)

CONV = "conv forward f32 n2 c3 k4 g1 in9x8 w3x3 s1 p1 d1"
OPS = {"conv": CONV_OPS, "pool": POOL_OPS, "window": WINDOW_OPS}


class Spoiled(Implementation):
    """The reference's result, after which `spoil(problem, outs, ins)` does something wrong."""

    name = "spoiled"
    ops = frozenset({*CONV_OPS, *POOL_OPS, *WINDOW_OPS})

    def __init__(self, spoil, levels=LEVELS):
        self.spoil = spoil
        self.levels = frozenset(levels)

    def supports(self, problem):
        return Verdict.yes() if problem.level != "fast" else Verdict.no("too slow for that")

    def cost(self, problem):
        return 1.0

    def build(self, problem):
        reference = next(each for each in default_registry().backend("reference").implementations() if problem.op in each.ops)
        compute = reference.build(problem)

        def run(outs, ins):
            compute(outs, ins)
            self.spoil(problem, outs, ins)

        return run


@dataclasses.dataclass
class Dummy:
    """A backend that is not installed."""

    implementation: Implementation
    name: str = "dummy"
    device: str = "cpu"
    automatic: bool = False
    version: str = "0"

    def availability(self):
        return Verdict.yes()

    def implementations(self):
        return [self.implementation]


def dummy(spoil, levels=LEVELS):
    return Dummy(Spoiled(spoil, levels))


def nothing(problem, outs, ins):
    pass


def one_element_off(problem, outs, ins):
    outs[0][-1:, 2, 3, 4] += 1  # also where the batch is empty


def one_ulp_off(problem, outs, ins):
    outs[0][1, 2, 3, 4] = np.nextafter(outs[0][1, 2, 3, 4], np.float32(np.inf))


def far_off_for_its_size(problem, outs, ins):
    outs[0][...] *= 1.0001


def changes_its_input(problem, outs, ins):
    ins[0][0, 0, 0, 0] = 1


def changes_its_weights(problem, outs, ins):
    ins[1][0, 0, 0, 0] = 1


def spreads_nan(problem, outs, ins):
    if np.isnan(outs[0]).any():
        outs[0][0, 0] = np.nan


def loses_the_sign_of_infinity(problem, outs, ins):
    outs[0][...] = np.where(np.isinf(outs[0]), np.inf, outs[0])


class Unwritten(Spoiled):
    """Leaves an element as it was."""

    def build(self, problem):
        compute = super().build(problem)

        def run(outs, ins):
            kept = outs[0][1, 2, 3, 4].copy()
            compute(outs, ins)
            outs[0][1, 2, 3, 4] = kept

        return run


class BesideItsOutput(Spoiled):
    """Writes a whole row of memory where the output has gaps."""

    def build(self, problem):
        compute = super().build(problem)

        def run(outs, ins):
            if outs[0].strides[-1] == 2 * outs[0].itemsize:
                outs[0].base[...] = 0
            compute(outs, ins)

        return run


class TrustsStrides(Spoiled):
    """Takes the distance of images for that of rows in memory, also where there is one image."""

    def build(self, problem):
        compute = super().build(problem)

        def run(outs, ins):
            compute(outs, ins)
            if ins[0].flags.c_contiguous and ins[0].strides[0] != ins[0][0].nbytes:
                outs[0][...] = 0

        return run


class StalePacking(Spoiled):
    """A bound executor that looks at the caller's weights instead of its own."""

    def build(self, problem):
        compute = super().build(problem)

        class Run:
            def __call__(self, outs, ins):
                compute(outs, ins)

            def bind(self, w):
                return lambda outs, ins: compute(outs, (ins[0], w, *ins[1:]))

        return Run()


class RoundsTwice(Spoiled):
    """Sums in float16 what has to be summed in float32."""

    def build(self, problem):
        def run(outs, ins):
            x, w = ins
            outs[0][...] = 0
            for c, r in np.ndindex(w.shape[1:]):
                outs[0][...] += x[:, None, c, r : r + outs[0].shape[2]] * w[None, :, c, r, None]

        return run


def failing(text, backend, match, **options):
    with pytest.raises(AssertionError, match=match) as failure:
        check(parse(text), backend, rng=np.random.default_rng(3), **options)
    assert text in str(failure.value)


@pytest.mark.parametrize("text", [CONV, "pool avg_pool f16 n1 c3 in9x8 w3x3 s2 p1 d1", "window pad i8 n1 c3 in5 w1 s1 p2 d1"])
@pytest.mark.parametrize("integer", [True, False])
def test_a_right_result_passes(text, integer):
    check(parse(text), dummy(nothing), rng=np.random.default_rng(1), integer=integer)


def test_one_element_off():
    numbers = r"output 0 at \[1, 2, 3, 4\] is -?\d+.*and the reference gives -?\d+.*1 of 576 elements differ"
    failing(CONV, dummy(one_element_off), numbers)


def test_integers_must_agree_to_the_last_bit():
    failing(CONV, dummy(one_ulp_off), "it must be equal")


def test_an_algorithm_below_level_high_may_be_an_ulp_off():
    check(parse(CONV), dummy(one_ulp_off, ("default",)), rng=np.random.default_rng(1))


def test_floats_must_stay_within_the_bound():
    check(parse(CONV), dummy(one_ulp_off), rng=np.random.default_rng(1), integer=False)
    failing(CONV, dummy(far_off_for_its_size), r"the error may be [\d.e-]+; \d+ of 576", integer=False)


@pytest.mark.parametrize("text", [CONV, CONV.replace("f32", "i8"), CONV.replace("f32", "c64"), CONV.replace("f32", "bf16")])
def test_an_element_that_is_not_written(text):
    failing(text, Dummy(Unwritten(nothing)), r"at \[1, 2, 3, 4")


def test_memory_beside_the_output():
    failing(CONV, Dummy(BesideItsOutput(nothing)), "memory beside output 0 was written")


def test_strides_of_axes_of_one_element():
    failing("conv forward f32 n1 c2 k2 g1 in6 w3 s1 p0 d1", Dummy(TrustsStrides(nothing)), "oddly strided")


@pytest.mark.parametrize(("spoil", "position"), [(changes_its_input, 0), (changes_its_weights, 1)])
def test_a_changed_input(spoil, position):
    failing(CONV, dummy(spoil), f"input {position} was changed")


def test_bound_weights_that_are_only_borrowed():
    failing(CONV, Dummy(StalePacking(nothing)), "bound weights")


def test_sums_in_the_wrong_dtype():
    text = "conv forward f16 n1 c40 k2 g1 in200 w5 s1 p0 d1"
    failing(text, Dummy(RoundsTwice(nothing)), "the error may be", integer=False)


def test_nan_that_spreads():
    check(parse(CONV), dummy(spreads_nan), rng=np.random.default_rng(1))
    failing(CONV, dummy(spreads_nan), r"is nan, and the reference gives", nonfinite=(0,))


def test_the_sign_of_infinity():
    failing(CONV, dummy(loses_the_sign_of_infinity), "reference gives -inf", nonfinite=(0,))


def test_indices_are_compared():
    def last_wins(problem, outs, ins):
        outs[1][0, 0, 0] += 1

    failing("pool max_pool f32 n1 c3 in9 w3 s2 p1 d1 indices=1", dummy(last_wins), "output 1 at")


def test_a_refusal_is_an_error_with_its_reason():
    with pytest.raises(UnsupportedProblemError, match="too slow for that"):
        check(parse(CONV + " accuracy=fast"), dummy(nothing), rng=np.random.default_rng(1))


def test_candidates_of_a_backend_that_is_not_installed():
    rows = candidates(parse(CONV), dummy(nothing))
    assert [(row.backend, row.algorithm, bool(row.verdict)) for row in rows] == [("dummy", "spoiled", True)]


def test_bound():
    forward = parse(CONV)
    assert bound(forward.replace(dtype="int8", out_dtype="int8")) == 0
    assert bound(forward) == 1e-5
    assert bound(forward.replace(accuracy="strict")) == bound(forward.replace(accuracy="high")) < 2e-6
    assert bound(forward.replace(accuracy="fast")) == 2**-8
    assert bound(forward.replace(dtype="float64", out_dtype="float64", accuracy="fast")) == 1e-13
    assert bound(forward.replace(dtype="float16", out_dtype="float16")) == 1e-5 + 2**-10
    assert bound(forward.replace(dtype="float16", out_dtype="float32")) == 1e-5
    assert bound(parse("window unfold f32 n1 c1 in9 w3 s1 p0 d1")) == 0


def test_bound_grows_with_the_number_of_terms():
    small, large = (bound(parse(f"conv forward f32 n1 c{c} k1 g1 in9 w3 s1 p0 d1 accuracy=high")) for c in (3, 300))
    assert 5 < large / small < 10


def test_inputs():
    rng = np.random.default_rng(1)
    x, w = inputs(parse(CONV), rng)
    assert x.shape == (2, 3, 9, 8)
    assert set(np.unique(x)) == set(range(-4, 5))
    (x,) = inputs(parse("pool max_pool u8 n1 c3 in99 w3 s1 p0 d1"), rng, integer=False)
    assert x.max() > 200
    x, w = inputs(parse(CONV), rng, nonfinite=(0,))
    assert sorted(map(str, x[~np.isfinite(x)])) == ["-inf", "inf", "nan"]
    assert np.isfinite(w).all()


def test_indices_of_inputs_are_positions_of_their_windows():
    problem = parse("pool max_pool_backward f32 n2 c3 in9 w3 s3 p0 d1 indices=1")
    _, indices = inputs(problem, np.random.default_rng(1))
    assert (indices // 3 == np.arange(3)).all()


@pytest.mark.parametrize("kind", ["conv", "pool", "window"])
def test_problems_of_the_contract_are_canonical_and_complete(kind):
    texts = {"conv": CONV_PROBLEMS, "pool": POOL_PROBLEMS, "window": WINDOW_PROBLEMS}[kind]
    problems = [parse(text) for text in texts]
    assert [str(problem) for problem in problems] == list(texts)
    assert len(set(texts)) == len(texts)
    assert {problem.op for problem in problems} == set(OPS[kind])
    assert {problem.ndim for problem in problems} == {1, 2, 3, 4}


def test_conv_problems_use_every_option():
    problems = [parse(text) for text in CONV_PROBLEMS]
    dtypes = {problem.dtype for problem in problems}
    assert dtypes == set(SHORT) - {"uint32", "uint64"}  # as uint16 and int64
    for option, count in {"pad_mode": 5, "flip": 2, "layout": 2, "bias": 3, "activation": 4}.items():
        assert len({getattr(problem, option) for problem in problems}) == count, option


class TestContractOfTheReference(BackendContract):
    """The five lines, with few problems."""

    backend = "reference"
    problems = ("conv forward f32 n1 c2 k3 g1 in9 w3 s1 p1 d1", "pool max_pool i8 n1 c2 in9 w3 s1 p1 d1")


CONTRACT = """
from numconv.testing import BackendContract


class TestIt(BackendContract):
    backend = {backend!r}
    problems = {problems!r}
"""


@pytest.fixture
def contract(pytester, monkeypatch):
    """Run the contract of a backend in a pytest of its own, in a registry that holds `spoil` as the backend dummy."""
    from numconv.registry import Registry
    from numconv.testing import cases, checking
    from numconv.testing import contract as contract_of

    def run(backend, problems):
        registry = Registry([Entry("reference", default_registry().backend("reference")), Entry(backend.name, backend)])
        for module in (cases, checking, contract_of):
            monkeypatch.setattr(module, "default_registry", lambda: registry)
        pytester.makepyfile(CONTRACT.format(backend=backend.name, problems=problems))
        return pytester.runpytest_inprocess("-rs", "-p", "no:cacheprovider")

    return run


@dataclasses.dataclass
class Entry:
    name: str
    backend: object
    dist: object = None

    def load(self):
        return self.backend


def test_contract_passes(contract):
    result = contract(dummy(nothing), (CONV,))
    result.assert_outcomes(passed=6)


def test_contract_fails_on_a_wrong_result(contract):
    result = contract(dummy(one_element_off), (CONV,))
    result.assert_outcomes(passed=4, failed=2)


def test_contract_runs_what_is_computed(contract):
    class NoPooling(Spoiled):
        def supports(self, problem):
            return Verdict.yes() if problem.op in CONV_OPS else Verdict.no("pools nothing")

    result = contract(Dummy(NoPooling(nothing)), ("pool max_pool i8 n1 c2 in9 w3 s1 p1 d1", CONV))
    result.assert_outcomes(passed=7)  # among them a verdict on each problem


def test_contract_skips_with_the_reason_of_the_verdict(contract):
    class Refuses(Spoiled):
        def supports(self, problem):
            return Verdict.no("not on a Tuesday")

    result = contract(Dummy(Refuses(nothing)), (CONV,))
    result.assert_outcomes(passed=2, skipped=4)
    assert re.search("not on a Tuesday", result.stdout.str())


def test_contract_skips_an_unavailable_backend_with_its_reason(contract):
    class Away(Dummy):
        def availability(self):
            return Verdict.no("no such device")

    result = contract(Away(Spoiled(nothing)), (CONV,))
    assert result.ret == 0
    assert re.search("no such device", result.stdout.str())
