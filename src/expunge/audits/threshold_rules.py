"""The best of all threshold rules and of all interval rules that tell two groups of scores apart, exactly, for many examples at once.

A rule is a set of values: those above a threshold, or those in an interval. What it is worth depends only on two counts, how many scores of each group
lie in the set; so a table of (n₁ + 1) × (n₂ + 1) values is made once, both groups are sorted together, and each rule is one look-up. The largest
over all rules is exact, whatever the scale of the scores; a grid of thresholds is not.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

First = Float[Tensor, "M N"]
Second = Float[Tensor, "L N"]
BLOCK = 2**15  # numbers in a block: 256 KB of codes, which stay in the cache


class Worth(NamedTuple):
    """What a set is worth that holds a scores of the first group and b of the second, (n₁ + 1, n₂ + 1) each.

    Attributes:
        first: where the rule says "of the first group" inside the set.
        second: where it says "of the second group" there.
    """

    first: Float[Tensor, "A B"]
    second: Float[Tensor, "A B"]


def error_rates(n_inside: int, n_outside: int) -> tuple[Tensor, Tensor]:
    """FNR and FPR of a rule that holds a of the n_inside scores that it should, and b of the n_outside that it should not; float64 (A, 1) and (1, B)."""
    a, b = torch.arange(n_inside + 1, dtype=torch.float64), torch.arange(n_outside + 1, dtype=torch.float64)
    return ((n_inside - a) / n_inside)[:, None], (b / n_outside)[None]


def best_rule(first: First, second: Second, worth: Worth, *, intervals: bool = True, window: float | None = None) -> Float[Tensor, " N"]:
    """The largest worth over all rules, for each example, float64 (N,).

    Threshold rules hold what is at or above the threshold, and say that it is of the group with the larger median. Interval rules hold what is in a
    closed interval, and say that it is of the group with the narrower range. Equal scores are never separated.

    Args:
        first, second: (n₁, N) and (n₂, N) scores of two groups of models on the same examples; finite.
        worth: of every pair of counts.
        intervals: also try intervals.
        window: only intervals whose upper end lies within `window` of the narrower group's maximum, and whose length is within `window` of its
            range; None = all.

    Cost: one sort of n₁ + n₂ scores an example, and with intervals (n₁ + n₂)² / 2 look-ups.
    """
    size = max(1, BLOCK // (len(first) + len(second) + 1))
    parts = [_block(a, b, worth, intervals, window) for a, b in zip(first.split(size, 1), second.split(size, 1), strict=True)]
    return torch.cat(parts)


class _Cuts(NamedTuple):
    """Both groups in one order, one row an example. A cut lies between two neighbours; its code says how many of each group are below it.

    Attributes:
        values: (n, n₁ + n₂), ascending.
        codes: (n, n₁ + n₂ + 1), a · (n₂ + 1) + b. A cut between equal values has the code of the one before all of them.
    """

    values: Float[Tensor, "n both"]
    codes: Int64[Tensor, "n cuts"]


def _cuts(first: Tensor, second: Tensor) -> _Cuts:
    values, order = torch.cat([first, second]).T.contiguous().sort(1)
    step = torch.where(order < len(first), len(second) + 1, 1)
    codes = torch.nn.functional.pad(step.cumsum(1), (1, 0))
    before = torch.searchsorted(values, values)
    return _Cuts(values, torch.cat([codes.gather(1, before), codes[:, -1:]], 1))


def _block(first: Tensor, second: Tensor, worth: Worth, intervals: bool, window: float | None) -> Tensor:
    cuts = _cuts(first, second)
    first_is_higher = ~(_median(second) > _median(first))
    above = cuts.codes[:, -1:] - cuts.codes
    best = _tables(worth)[above + _offset(worth, first_is_higher)].amax(1)
    if intervals:
        widths = [x.amax(0) - x.amin(0) for x in (first, second)]
        # Of equal widths the group with the lower median, as the published code does.
        first_is_inside = torch.where(widths[0] == widths[1], ~first_is_higher, widths[0] < widths[1])
        best = torch.maximum(best, _best_interval(first, second, cuts, worth, first_is_inside, window))
    return best


def _best_interval(first: Tensor, second: Tensor, cuts: _Cuts, worth: Worth, first_is_inside: Tensor, window: float | None) -> Tensor:
    best = torch.full_like(cuts.values[:, 0], -math.inf)
    n_cuts = cuts.codes.shape[1]
    if window is not None:
        top = torch.where(first_is_inside, first.amax(0), second.amax(0))
        bottom = torch.where(first_is_inside, first.amin(0), second.amin(0))
        # An interval from cut i to cut j has its lower end in (v[i−1], v[i]] and its upper end in [v[j−1], v[j]).
        edge = torch.full_like(best, math.inf)[:, None]
        below, at = torch.cat([-edge, cuts.values], 1), torch.cat([cuts.values, edge], 1)
        low, high = torch.maximum(below, (top - window)[:, None]), torch.minimum(at, (top + window)[:, None])
        reach = (top - bottom)[:, None]
        low = torch.where((low <= high) & (below < at), low, math.inf) - reach - window
        high = high - reach + window
    tables, upper = _tables(worth), cuts.codes + _offset(worth, first_is_inside)
    for lag in range(1, n_cuts):
        held = tables[upper[:, lag:] - cuts.codes[:, :-lag]]
        if window is not None:
            held.masked_fill_((at[:, :-lag] < low[:, lag:]) | (below[:, :-lag] > high[:, lag:]), -math.inf)
        best = torch.maximum(best, held.amax(1))
    return best


def _tables(worth: Worth) -> Tensor:
    return torch.cat([worth.first.flatten(), worth.second.flatten()])


def _offset(worth: Worth, first: Tensor) -> Tensor:
    """What to add to codes, (n, 1), to find them in the first group's table in rows where `first` is True, and otherwise in the second's."""
    return torch.where(first, 0, worth.first.numel())[:, None]


def _median(scores: Tensor) -> Tensor:
    """The median of each column; of an even number the mean of the middle two."""
    ordered, n = scores.sort(0).values, len(scores)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
