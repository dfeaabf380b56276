"""Whether a row became slower, told from the noise that was measured beside it.

A takes part twice, so that every round also compares it with itself. What differs between those two is noise: of the machine, of
the order, of where a process happened to lie in memory.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from numconv.errors import ProblemError

__all__ = ["FALSE_ALARMS", "Verdict", "check_rounds", "least_rounds", "verdict"]

FALSE_ALARMS = 0.01
"""How likely a run of A against itself may be to report any row at all."""


class Verdict(NamedTuple):
    """What can be said of one pass of a row.

    Attributes
    ----------
    word : {"slower", "faster", "same", "can't tell"}
        "same": the difference, noise included, stays within the tolerance.
    ratio : float
        The median over the rounds of B's seconds over A's.
    noise : float
        By how much A differed from itself in the middle of the rounds, as a share.
    chance : float
        How likely times that differ as much would be, were A and B the same.
    """

    word: str
    ratio: float
    noise: float
    chance: float


def verdict(a: Sequence[float], again: Sequence[float], b: Sequence[float], *, rows: int, tolerance: float) -> Verdict:
    """Compare B with A.

    Reported is a row whose times are told apart by the exact Mann-Whitney test, at a level that allows for the number of rows
    (Bonferroni), and whose ratio lies outside of both the tolerance and the noise.

    Parameters
    ----------
    a, again, b : sequence of float
        Seconds of each round, of A, of A again, and of B.
    rows : int
        How many verdicts belong to the run.
    tolerance : float
        A share: changes below it are of no interest.

    References
    ----------
    H. B. Mann, D. R. Whitney, "On a test of whether one of two random variables is stochastically larger than the other", Annals of
    Mathematical Statistics 18 (1947).

    Examples
    --------
    >>> steady, slower = [1.00, 1.01, 1.02, 1.00, 1.01, 1.02, 1.00], [1.30, 1.31, 1.32, 1.30, 1.31, 1.30, 1.32]
    >>> verdict(steady, steady[::-1], slower, rows=10, tolerance=0.05).word
    'slower'
    >>> verdict(steady, steady[::-1], steady, rows=10, tolerance=0.05).word
    'same'
    """
    from scipy.stats import mannwhitneyu

    ratios = [third / math.sqrt(first * second) for first, second, third in zip(a, again, b, strict=True)]
    differences = [abs(math.log(second / first)) for first, second in zip(a, again, strict=True)]
    ratio, noise = statistics.median(ratios), math.expm1(statistics.median(differences))
    chance = float(mannwhitneyu(b, [*a, *again], method="exact").pvalue)
    if chance < FALSE_ALARMS / rows and abs(math.log(ratio)) > math.log1p(max(tolerance, noise)):
        return Verdict("slower" if ratio > 1 else "faster", ratio, noise, chance)
    # The rounds' own spread bounds what may have been missed.
    within = all(abs(math.log(each)) < math.log1p(tolerance) for each in _middle(ratios)) and noise < tolerance
    return Verdict("same" if within else "can't tell", ratio, noise, chance)


def _middle(values: Sequence[float]) -> list[float]:
    """The values less a sixth at either end, which stalls may have made."""
    cut = len(values) // 6
    return sorted(values)[cut : len(values) - cut]


def least_rounds(rows: int) -> int:
    """In how few rounds the times of a row, all of B's beyond all of A's, can be told apart at all.

    Examples
    --------
    >>> least_rounds(1), least_rounds(76)
    (4, 6)
    """
    rounds = 1
    while 2 / math.comb(3 * rounds, rounds) >= FALSE_ALARMS / rows:
        rounds += 1
    return rounds


def check_rounds(rounds: int, rows: int) -> None:
    """Raise ProblemError if no row could be told apart in so few rounds."""
    least = least_rounds(rows)
    if rounds < least:
        raise ProblemError(
            f"{rounds} rounds cannot tell {rows} rows apart with {FALSE_ALARMS:.0%} of false alarms: {least} rounds could; "
            "ask for more rounds or fewer rows"
        )
