"""Intervals of a proportion."""

from __future__ import annotations

from statistics import NormalDist

from foveal.errors import BadInput


def wilson(successes: int, n: int, confidence: float = 0.95, *, one_sided: bool = False) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a proportion; (0, 1) when `n` is 0.

    With `one_sided` each end alone is a bound at `confidence` (the quantile of 1 - confidence, not of half of it).

    Raises:
        BadInput: counts or confidence out of range.
    """
    if not 0 <= successes <= n:
        raise BadInput(
            "impossible counts for a proportion", expected="0 <= successes <= n", received=f"{successes} of {n}"
        )
    if not 0 < confidence < 1:
        raise BadInput("confidence out of range", expected="between 0 and 1, as in 0.95", received=str(confidence))
    if n == 0:
        return 0.0, 1.0
    tail = 1 - confidence if one_sided else (1 - confidence) / 2
    z = NormalDist().inv_cdf(1 - tail)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def smallest_sample(target: float, confidence: float = 0.95) -> int:
    """How many samples, all correct, a one-sided Wilson bound needs before it reaches `target`."""
    if not 0 < target < 1:
        raise BadInput("target out of range", expected="between 0 and 1, as in 0.90", received=str(target))
    n = 1
    while wilson(n, n, confidence, one_sided=True)[0] < target:
        n += 1
    return n
