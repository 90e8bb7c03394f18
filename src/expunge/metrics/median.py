"""The median of a few draws of any distribution, also where some were too large to be seen to the end."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from ..errors import DataError
from .estimate import Estimate, check_level, unsupported


def median(
    values: Sequence[float | int] | np.ndarray,
    upper: Sequence[float | int] | np.ndarray | None = None,
    *,
    level: float = 0.95,
    cap: str = "the cap",
) -> Estimate:
    """The median, with the closest pair of order statistics that covers the true one at least as often as `level` says, whatever the distribution:

        P(X₍ₖ₎ ≤ median ≤ X₍ₙ₊₁₋ₖ₎) ≥ 1 − 2 P(Binomial(n, ½) ≤ k − 1)

    There is no value where what could not be seen may be the median itself. The upper end of the interval can be inf: beyond the cap.

    Args:
        values: independent draws, at least one; inf = more than could be seen.
        upper: where a draw is known only to lie between two numbers, `values` holds the smaller ones and this the larger ones, inf for no end.
        level: confidence in (0, 1). With too few draws for it the interval goes from the smallest to the largest, and the note says what that covers; 6 draws are enough for 95 %. One draw
            has no interval.
        cap: what could not be seen is beyond this, for the note.

    Raises:
        DataError: no draw, NaN, or an upper end below the lower one.

    Example:
        >>> print(median([3, 9, 4, 5, 8, 6]), "|", median([3, 4, 5, 6, np.inf]).note)
        5.500 [3.000, 9.000] | 1 of 5 beyond the cap; 5 draws: from the smallest to the largest covers 93.8 %
        >>> print(median([3, np.inf, np.inf]))
        n/a (2 of 3 beyond the cap)
    """
    lows = np.asarray(values, float)
    highs = lows if upper is None else np.asarray(upper, float)
    n = lows.size
    if n == 0 or lows.shape != highs.shape or np.isnan([lows, highs]).any() or (highs < lows).any():
        raise DataError(f"a median needs numbers, at least one; got {lows.tolist()}{'' if upper is None else f' to {highs.tolist()}'}.")
    beyond = int((np.isinf(lows) | (lows != highs)).sum())
    lows, highs = np.sort(lows), np.sort(highs)
    notes = [f"{beyond} of {n} beyond {cap}"] if beyond else []
    value = float(np.median(lows))
    if value != float(np.median(highs)) or np.isinf(value):
        return unsupported(notes[0], n)
    k = rank_of_end(n, level)
    if n == 1:
        return Estimate(value, math.nan, math.nan, 1, "one draw has no interval")
    if k == 0:
        notes.append(f"{n} draws: from the smallest to the largest covers {100 * (1 - 2 * 0.5**n):.1f} %")
    k = max(1, k)
    return Estimate(value, float(lows[k - 1]), float(highs[n - k]), n, "; ".join(notes) or None)


def rank_of_end(n: int, level: float = 0.95) -> int:
    """The largest k for which the k-th smallest and the k-th largest of n draws cover the median at least as often as `level` says; 0 if not even k = 1 does.

    Example:
        >>> rank_of_end(5), rank_of_end(6), rank_of_end(20)
        (0, 1, 6)
    """
    return int((binom.cdf(np.arange(n), n, 0.5) <= (1 - check_level(level)) / 2).sum())
