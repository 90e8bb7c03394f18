"""Which methods are better than which, when many are compared on the same seeds or samples: ranks with ties, corrected for how many comparisons are made.

Two questions, two corrections. "Is i better than j?" for all pairs: paired t-tests with Holm's correction (`rank_methods`). "Which could be the best?": a method stays
unless it is worse than another one, at α / (k − 1) one-sided (`ties_with_best`); that keeps the true best with probability 1 − α, and asks for less.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
from scipy.special import stdtr, stdtrit

from ..errors import ConfigError, DataError
from .estimate import Estimate, check_level

Gaps = Mapping[str, Any]  # by name an array (units,), or (seeds, samples)


@final
@dataclass(frozen=True)
class Pair:
    """One comparison: how much larger the gap of `worse` is than that of `better`, its 95 % interval by itself, and Holm's p-value of all comparisons together."""

    better: str
    worse: str
    difference: Estimate
    p: float


@final
@dataclass(frozen=True)
class Ranking:
    """Methods in the order of their mean gaps, smallest first.

    Attributes:
        names: in this order. means: of each, with its own t interval.
        ranks: (first, last) place that each could have: 1 + how many are shown to be better, and k − how many are shown to be worse.
        groups: the largest sets of neighbours among which no two are shown to differ; they overlap. A method of two groups differs from neither's end.
        best: who could be the best, by `ties_with_best`.
        pairs: all comparisons.
        level: of confidence, for all pairs together.
    """

    names: tuple[str, ...]
    means: dict[str, Estimate]
    ranks: dict[str, tuple[int, int]]
    groups: tuple[tuple[str, ...], ...]
    best: tuple[str, ...]
    pairs: tuple[Pair, ...]
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        pairs = [{"better": x.better, "worse": x.worse, "difference": x.difference.to_dict(), "p": x.p} for x in self.pairs]
        return {
            "names": list(self.names), "means": {n: e.to_dict() for n, e in self.means.items()}, "best": list(self.best), "level": self.level,
            "ranks": {n: list(r) for n, r in self.ranks.items()}, "groups": [list(g) for g in self.groups], "pairs": pairs,
        }  # fmt: skip

    def __str__(self) -> str:
        rows = []
        for name in self.names:
            first, last = self.ranks[name]
            place = f"{first}" if first == last else f"{first}-{last}"
            rows.append(f"{place:>7}  {name}  {self.means[name]}{'  could be the best' if name in self.best else ''}")
        return "\n".join(rows)


class _Mean(NamedTuple):
    value: float
    error: float
    freedom: float
    n: int
    same_sign: float  # p-value of signs alone, the smallest that data without any spread can give


def rank_methods(gaps: Gaps, level: float = 0.95) -> Ranking:
    """Methods ranked by their mean gap, smaller = better, with ties where they cannot be told apart.

        p_ij of the paired t-test of gap_i − gap_j over units;  Holm: the r-th smallest p times (number of pairs − r + 1), never decreasing

    Args:
        gaps: by name of method, at least two, an array of finite numbers: (S,) for S ≥ 2 units that all methods share (seeds, or samples), or (S, N) for S seeds and
            N samples; then seeds and samples are both units, the fewer bound what can be claimed, and S = 1 is allowed. Take absolute gaps if closer to 0 is better, accuracies with a minus sign.
        level: confidence in (0, 1), for all pairs together.

    Raises:
        DataError: fewer than two methods or units, different shapes, or a number that is not finite. ConfigError: a level outside its range.

    Cost: O(k² · units) for k methods.

    Paper: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    Departures: differences without any spread get the p-value of their signs, and not 0: 2^(1−S) for S units, of (S, N) 2^(1−min(S, N)). With 3 seeds hardly any of many methods can be told
    apart: the smallest gaps are then ties, which is what 3 seeds say.

    Example:
        >>> print(rank_methods({"a": [1.0, 1.2, 0.9, 1.1], "b": [1.1, 1.1, 1.0, 1.0], "c": [5.0, 5.3, 5.1, 4.9]}))
            1-2  a  1.050 [0.845, 1.255]  could be the best
            1-2  b  1.050 [0.958, 1.142]  could be the best
              3  c  5.075 [4.803, 5.347]
    """
    arrays = _checked(gaps)
    check_level(level)
    names = sorted(arrays, key=lambda name: float(arrays[name].mean()))
    means = {name: _estimate(_mean(arrays[name]), level) for name in names}
    compared = [(i, j, _mean(arrays[j] - arrays[i])) for i, j in itertools.combinations(names, 2)]
    adjusted = holm([_p_value(mean) for *_, mean in compared])
    pairs = tuple(Pair(i, j, _estimate(mean, level), p) for (i, j, mean), p in zip(compared, adjusted, strict=True))
    alpha, k = 1 - level, len(names)
    told = {(pair.better, pair.worse) for pair in pairs if pair.p <= alpha}
    ranks = {name: (1 + sum(w == name for _, w in told), k - sum(b == name for b, _ in told)) for name in names}
    return Ranking(tuple(names), means, ranks, _groups(names, told), tuple(ties_with_best(arrays, level)), pairs, level)


def ties_with_best(gaps: Gaps, level: float = 0.95) -> list[str]:
    """The methods that could be the best, in the order of their means: the truly best one is among them with probability ≥ `level`.

    A method is out when some other one is better, by a one-sided paired t-test at (1 − level) / (k − 1). The method with the smallest mean is always in.

    Args, Raises: as for `rank_methods`.

    Paper: the idea of Hsu, Multiple Comparisons, 1996 (comparisons with the best), with paired tests and Bonferroni's correction. Comparing all with the one that happens
    to look best, without correction, calls too many methods worse: the luck of the winner counts twice.

    Example:
        >>> ties_with_best({"a": [1.0, 1.2, 0.9, 1.1], "b": [1.1, 1.1, 1.0, 1.0], "c": [5.0, 5.3, 5.1, 4.9]})
        ['a', 'b']
    """
    arrays = _checked(gaps)
    alpha = (1 - check_level(level)) / (len(arrays) - 1)

    def beaten(name: str) -> bool:
        differences = (_mean(arrays[name] - arrays[other]) for other in arrays if other != name)
        return any(mean.value > 0 and _p_value(mean) / 2 <= alpha for mean in differences)

    ordered = sorted(arrays, key=lambda name: float(arrays[name].mean()))
    return [name for name in ordered if name == ordered[0] or not beaten(name)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject where they are ≤ α, and no true null is rejected with probability ≥ 1 − α.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def _mean(x: np.ndarray) -> _Mean:
    """The mean over units with its standard error; over seeds and samples at once, by the two-way analysis of variance without repeats.

    Var(mean) = (MS_seeds + MS_samples − MS_rest) / (S N),    min(S, N) − 1 degrees of freedom

    Satterthwaite's degrees of freedom, which are more, let the interval of two seeds and a hundred samples hold the truth in 88 %: two seeds that happen to agree look like
    certainty.
    """
    value, n = float(x.mean()), x.size
    if x.ndim == 1 or 1 in x.shape:
        units, signs = x.reshape(-1), 2.0 ** (1 - n)
        return _Mean(value, float(units.std(ddof=1)) / math.sqrt(n), n - 1, n, signs)
    s, m = x.shape
    signs = 2.0 ** (1 - min(s, m))  # a thousand samples that agree under two seeds are two seeds that agree, and not a thousand
    rows, columns = x.mean(1), x.mean(0)
    by_seed, by_sample = m * float(rows.var(ddof=1)), s * float(columns.var(ddof=1))
    rest = float(((x - rows[:, None] - columns + value) ** 2).sum()) / ((s - 1) * (m - 1))
    # Where seeds or samples differ by less than the rest explains, theirs counts as the rest: never less than one layer of noise.
    total = max(by_seed, rest) + max(by_sample, rest) - rest
    return _Mean(value, math.sqrt(max(0.0, total) / n), min(s, m) - 1, n, signs)


def _p_value(mean: _Mean) -> float:
    """Two-sided, of the mean being 0."""
    if mean.value == 0:
        return 1.0
    if mean.error <= 1e-12 * abs(mean.value):
        return mean.same_sign
    return 2 * float(stdtr(mean.freedom, -abs(mean.value) / mean.error))


def _estimate(mean: _Mean, level: float) -> Estimate:
    reach = float(stdtrit(mean.freedom, (1 + level) / 2)) * mean.error
    return Estimate(mean.value, mean.value - reach, mean.value + reach, mean.n)


def _groups(names: Sequence[str], told: set[tuple[str, str]]) -> tuple[tuple[str, ...], ...]:
    """Runs of the order in which no two are told apart, without those that lie inside another."""
    runs: list[tuple[str, ...]] = []
    for start in range(len(names)):
        end = start
        while end < len(names) and not any((name, names[end]) in told for name in names[start:end]):
            end += 1
        run = tuple(names[start:end])
        if not runs or not set(run) <= set(runs[-1]):
            runs.append(run)
    return tuple(runs)


def _checked(gaps: Gaps) -> dict[str, np.ndarray]:
    if len(gaps) < 2:
        raise ConfigError(f"a ranking needs at least two methods; got {list(gaps)}. Pass a mapping of names to gaps.")
    arrays = {name: np.asarray(values, dtype=float) for name, values in gaps.items()}
    first = next(iter(arrays.values()))
    for name, values in arrays.items():
        if values.shape != first.shape:
            raise DataError(
                f"all methods must be measured on the same seeds and samples; got {values.shape} for {name!r} and {first.shape} for "
                f"{next(iter(arrays))!r}. Keep the ones that all have."
            )
        if values.ndim not in (1, 2) or values.size < 2:
            raise DataError(
                f"{name!r} needs gaps of at least 2 seeds or samples, (S,) or (S, N); got shape {values.shape}. Run more seeds."
            )
        if not np.isfinite(values).all():
            raise DataError(f"gaps of {name!r} must be finite; got {int((~np.isfinite(values)).sum())} that are not. Leave the method out.")
    return arrays
