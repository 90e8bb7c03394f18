"""AUC and TPR with intervals over two levels at once: which models were trained, and which samples they were scored on.

An interval over samples speaks of these very models; one over models speaks of the next seed, too. All models are scored on the same samples, so a
hard sample is hard for all of them: models and samples cross, and both are resampled.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, final

import numpy as np
import torch
from scipy.special import ndtr, ndtri, stdtrit
from torch import Tensor

from ..checks import choose, is_integer
from ..errors import ConfigError, DataError
from ..rng import generator
from .bootstrap import ResampledAUC, blocks, draw_counts
from .estimate import Estimate, check_level, proportion_interval, unsupported
from .roc import FEW_FALSE_POSITIVES, MIN_FALSE_POSITIVES, false_positives, placements

KINDS = ("percentile", "bca")
ONE_MODEL = "one model: its interval says nothing of other seeds"
FEW = 10  # of fewer members found or missed, a bootstrap knows too little: the exact interval of a proportion bounds it


@final
@dataclass(frozen=True)
class TwoLevel:
    """AUC and TPR at a false-positive rate, of one group of models or as a difference of two, each with its interval.

    Attributes:
        auc, tpr: means over models, or their differences.
        fpr: the false-positive rate asked for.
        n_models: of each group, (A,) or (A, B).
    """

    auc: Estimate
    tpr: Estimate
    fpr: float
    n_models: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"auc": self.auc.to_dict(), "tpr": self.tpr.to_dict(), "fpr": self.fpr, "n_models": list(self.n_models)}


class Replicates(NamedTuple):
    """What one group of models gives: AUC and TPR of each model, of each model in each resample, and what each sample does to their mean."""

    values: np.ndarray  # (M, 2)
    drawn: np.ndarray  # (replicates, M, 2)
    influence: np.ndarray  # (n_members + n_nonmembers, 2)

    def minus(self, other: "Replicates", paired: bool) -> "list[Replicates]":
        """The groups whose means add up to the difference: one, of differences, where models come in pairs; otherwise two."""
        if paired:
            return [Replicates(self.values - other.values, self.drawn - other.drawn, self.influence - other.influence)]
        return [self, Replicates(-other.values, -other.drawn, -other.influence)]


def two_level(
    members: Tensor,
    nonmembers: Tensor,
    fpr: float = 0.001,
    level: float = 0.95,
    *,
    kind: str = "percentile",
    replicates: int = 1000,
    seed: int = 0,
) -> TwoLevel:
    """AUC and TPR at a false-positive rate, averaged over models that were scored on the same samples, with a two-level bootstrap.

        θ* = mean_m θ_m(samples*) + t/z · √(s² − v)₊ / √M · ξ,    ξ ~ N(0, 1)

    Samples are resampled by multinomial counts on the sorted order, the same for all models. s² is the variance of θ_m over models, and v the part of it that is chance of
    the samples, measured by the resamples and counted (M − 2)/(M − 1), since for few models s² is hardly known. The model level is drawn as a normal number and not as a
    resample of models: three models have ten different resamples, whose percentiles cover 75 %. t/z widens it to Student's t with M − 1 degrees of freedom.

    Args:
        members, nonmembers: scores (n,) of one model, or (M, n) of M models on the same samples in the same order; higher = member. Infinite is allowed, NaN is not.
        fpr: false-positive rate as a fraction in (0, 1]; the TPR is refused below 5 false positives, and noted as underpowered below 25.
        level: confidence in (0, 1).
        kind: "percentile", or "bca" (bias-corrected and accelerated), which shifts the percentiles for bias and skewness.
        replicates: ≥ 2. 1,000 for two digits of the ends.
        seed: of the resamples. The same seed compares methods on the same resamples; global generators are not touched.

    Raises:
        DataError: a group is empty, has NaN, or has another number of models. ConfigError: a setting is outside its range.

    Cost: O(M · replicates · n). 1,000 replicates of both on 15,000 scores: docs/results/audit_statistics.md.

    Paper: Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (BCa); Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007 (two crossed levels).
    Departures: the model level is normal, as above; where all replicates agree, or separation is perfect to within one sample, the exact interval of a proportion.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> members, nonmembers = torch.randn(3, 200, generator=rng) + 0.5, torch.randn(3, 600, generator=rng)
        >>> print(f"{two_level(members, nonmembers, fpr=0.01, replicates=200).auc:.2f}")
        0.65 [0.62, 0.69]
    """
    _check(fpr, kind, replicates)
    group = _group(*_checked(members, nonmembers), fpr=fpr, replicates=replicates, seed=seed)
    return _report([group], _Question((len(group.values),), _sizes(members, nonmembers), fpr, level, kind, seed))


def two_level_difference(
    members_a: Tensor,
    nonmembers_a: Tensor,
    members_b: Tensor,
    nonmembers_b: Tensor,
    fpr: float = 0.001,
    level: float = 0.95,
    *,
    same_seeds: bool = False,
    kind: str = "percentile",
    replicates: int = 1000,
    seed: int = 0,
) -> TwoLevel:
    """Mean AUC and TPR of models a minus those of models b, on the same samples: unlearned seeds against retrained seeds, or method against method.

    Both groups see the same resamples of the samples, so that what they share cancels. Models are drawn apart, unless they come in pairs.

    Args:
        members_a, nonmembers_a, members_b, nonmembers_b: scores (n,) or (A, n) and (B, n).
        same_seeds: model i of a and model i of b belong together (for example two methods that start from the same original); needs A = B.

    The other arguments, and what is raised, are those of `two_level`.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> members, nonmembers = torch.randn(200, generator=rng) + 0.5, torch.randn(600, generator=rng)
        >>> print(f"{two_level_difference(members, nonmembers, members - 0.1, nonmembers, replicates=200).auc:.3f}")
        0.028 [0.025, 0.031]
    """
    _check(fpr, kind, replicates)
    first, second = _checked(members_a, nonmembers_a), _checked(members_b, nonmembers_b)
    if _sizes(*first) != _sizes(*second):
        raise DataError(
            f"a paired difference needs the same samples for both groups of models; got {_sizes(*first)} and {_sizes(*second)} members and "
            "non-members. Score all models on one set, in one order."
        )
    if same_seeds and len(first[0]) != len(second[0]):
        raise DataError(
            f"same_seeds needs as many models a as b; got {len(first[0])} and {len(second[0])}. Leave it False, or pass the models of the common seeds."
        )
    a, b = (_group(*scores, fpr=fpr, replicates=replicates, seed=seed) for scores in (first, second))
    counts = (len(a.values), len(b.values))
    same = all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    return _report(a.minus(b, same_seeds or counts == (1, 1)), _Question(counts, _sizes(*first), fpr, level, kind, seed, same))


class _Ranked:
    """One model's scores, ranked once: AUC and TPR at k false positives of any weights on the samples."""

    def __init__(self, members: Tensor, nonmembers: Tensor, k: int) -> None:
        self.order, self.ranks = nonmembers.argsort(), members.argsort(descending=True)
        ordered, descending = nonmembers[self.order], members[self.ranks]
        self.k, self.n1, self.n0 = k, len(members), len(nonmembers)
        self.pairs = ResampledAUC(descending, nonmembers)
        # above[j]: how many members score strictly above non-member j of the ascending order; last, all of them, where every non-member may pass
        above = self.n1 - torch.searchsorted(descending.flip(0), ordered, right=True)
        self.above = torch.cat([above, above.new_full((1,), self.n1)])
        self.wins = placements(members, nonmembers)
        self.values = np.array([self.wins.auc, float(self.above[self._threshold(k)]) / self.n1])

    def _threshold(self, k: int) -> int:
        return self.n0 if k >= self.n0 else self.n0 - 1 - max(k, 0)

    def resampled(self, member_counts: Tensor, nonmember_counts: Tensor) -> Tensor:
        """AUC and TPR of every row of counts, (B, 2)."""
        counts, passed = member_counts[:, self.ranks], self.pairs.passed(nonmember_counts)
        areas = self.pairs.areas(counts, passed)
        found = torch.nn.functional.pad(counts.cumsum(1), (1, 0))
        if self.k >= self.n0:
            return torch.stack([areas, torch.ones_like(areas)], 1)
        # the (k + 1)-th highest non-member of a resample: the first place where n₀ − k draws are reached, counted from below
        places = torch.searchsorted(passed[:, 1:].contiguous(), torch.full((len(passed), 1), float(self.n0 - self.k)))
        return torch.stack([areas, found.gather(1, self.above[places]).squeeze(1).double() / self.n1], 1)

    def influence(self) -> np.ndarray:
        """What one more copy of each sample does to AUC and TPR, members first, up to terms of order 1/n²; (n₁ + n₀, 2)."""
        place, reach = self._threshold(self.k), max(1, math.isqrt(self.k))  # the rank of the threshold varies by about √k from draw to draw
        high, low = min(self.n0, self.k + reach), max(0, self.k - reach)
        slope = float(self.above[self._threshold(high)] - self.above[self._threshold(low)]) / self.n1 * self.n0 / max(high - low, 1)
        found, passed = torch.zeros(self.n1, dtype=torch.float64), torch.zeros(self.n0, dtype=torch.float64)
        found[self.ranks[: int(self.above[place])]] = 1.0
        passed[self.order[min(place + 1, self.n0) :]] = 1.0
        of_members = torch.stack([self.wins.of_members - self.wins.auc, found - found.mean()], 1) / self.n1
        of_nonmembers = torch.stack([self.wins.of_nonmembers - self.wins.auc, -slope * (passed - passed.mean())], 1) / self.n0
        return torch.cat([of_members, of_nonmembers]).numpy()


def _group(members: Tensor, nonmembers: Tensor, *, fpr: float, replicates: int, seed: int) -> Replicates:
    k = false_positives(fpr, nonmembers.shape[1])
    ranked = [_Ranked(m, n, k) for m, n in zip(members, nonmembers, strict=True)]
    rng, rows = generator(seed), []
    for size in blocks(replicates):
        counts = draw_counts(members.shape[1], size, rng), draw_counts(nonmembers.shape[1], size, rng)
        rows.append(torch.stack([model.resampled(*counts) for model in ranked], 1))
    influence = np.mean([model.influence() for model in ranked], axis=0)
    return Replicates(np.stack([model.values for model in ranked]), torch.cat(rows).numpy(), influence)


class _Question(NamedTuple):
    """What is asked for, and of how much."""

    n_models: tuple[int, ...]
    sizes: tuple[int, int]
    fpr: float
    level: float
    kind: str
    seed: int
    same: bool = False  # both groups have the same scores: the difference is exactly 0


def _report(groups: list[Replicates], asked: _Question) -> TwoLevel:
    (n1, n0), fpr = asked.sizes, asked.fpr
    k, note = false_positives(fpr, n0), ONE_MODEL if max(asked.n_models) == 1 else None
    area, rate = (_estimate(groups, which, asked, note) for which in (0, 1))
    if k < MIN_FALSE_POSITIVES:
        needed = math.ceil(MIN_FALSE_POSITIVES / fpr - 1e-9)
        rate = unsupported(f"TPR at {100 * fpr:g}% FPR needs {needed} non-members, got {n0}", n1 + n0)
    elif k < FEW_FALSE_POSITIVES:
        weak = f"underpowered: the threshold rests on {k} non-members"
        rate = Estimate(rate.value, rate.low, rate.high, rate.n, "; ".join(filter(None, (note, weak))))
    return TwoLevel(area, rate, fpr, asked.n_models)


def _estimate(groups: list[Replicates], which: int, asked: _Question, note: str | None) -> Estimate:
    sizes, level, difference = asked.sizes, asked.level, len(asked.n_models) == 2
    value = float(sum(group.values[:, which].mean() for group in groups))
    moved, extra = _spread(groups, which, level)
    drawn = value + moved + np.random.default_rng(asked.seed).standard_normal(len(moved)) * math.sqrt(extra)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if asked.kind == "bca":
        influence = np.add.reduce([group.influence[:, which] for group in groups])
        tails = _bca(tails, drawn, value, influence, extra)
    low, high = np.quantile(drawn, tails)
    n = min(sizes) if which == 0 else sizes[0]
    limit = -1.0 if difference else 0.0
    if (
        difference and high - low < 1e-9 and not asked.same
    ):  # for example two perfect separations: as wide as the exact interval of one of them
        width = 1 - proportion_interval(n, n, level)[0]
        low, high = value - width, value + width
    if not difference:
        rare = n * min(value, 1 - value)
        exact = proportion_interval(value * n, n, level)
        if rare < 1 - 1e-9 or high - low < 1e-9:
            low, high = exact
        elif which == 1 and rare < FEW:
            low, high = min(low, exact[0]), max(high, exact[1])
    return Estimate(value, max(limit, float(min(low, value))), min(1.0, float(max(high, value))), sum(sizes), note)


def _spread(groups: list[Replicates], which: int, level: float) -> tuple[np.ndarray, float]:
    """How far resampled samples move the mean, and the variance that models add, widened for how few they are."""
    moved, extra = np.zeros(len(groups[0].drawn)), 0.0
    for group in groups:
        steps, m = group.drawn[:, :, which] - group.values[:, which], len(group.values)
        mean_step = steps.mean(1)
        moved = moved + mean_step
        if m > 1:
            chance = float(((steps - mean_step[:, None]) ** 2).sum(1).mean()) / (m - 1)  # of the samples, in the spread between models
            wider = float(stdtrit(m - 1, (1 + check_level(level)) / 2)) / NormalDist().inv_cdf((1 + level) / 2)
            extra += wider**2 * max(0.0, float(group.values[:, which].var(ddof=1)) - chance * (m - 2) / (m - 1)) / m
    return moved, extra


def _bca(tails: np.ndarray, drawn: np.ndarray, value: float, influence: np.ndarray, extra: float) -> np.ndarray:
    """The tails moved for bias (how much of the replicates lies below the value) and for skewness (of what samples do to it)."""
    below = ((drawn < value).sum() + 0.5 * (drawn == value).sum() + 0.5) / (len(drawn) + 1)
    bias, total = float(ndtri(below)), float((influence**2).sum()) + extra
    skew = float((influence**3).sum()) / (6 * total**1.5) if total > 0 else 0.0
    reach = bias + ndtri(tails)
    return ndtr(bias + reach / (1 - skew * reach))


def _sizes(members: Tensor, nonmembers: Tensor) -> tuple[int, int]:
    return members.shape[-1], nonmembers.shape[-1]


def _checked(members: Tensor, nonmembers: Tensor) -> tuple[Tensor, Tensor]:
    """Both groups as float64 (M, n) on the CPU."""
    checked = []
    for name, group in (("members", members), ("non-members", nonmembers)):
        if group.ndim not in (1, 2) or group.numel() == 0 or not group.is_floating_point():
            raise DataError(
                f"the scores of {name} must be floating point of shape (n,) or (models, n), at least one; got {group.dtype} of shape {tuple(group.shape)}."
            )
        if torch.isnan(group).any():
            raise DataError(
                f"the scores of {name} must be numbers; got {int(torch.isnan(group).sum())} NaN. Check the logits of the models."
            )
        checked.append(group.detach().cpu().double().reshape(-1, group.shape[-1]))
    if len(checked[0]) != len(checked[1]):
        raise DataError(
            f"every model must be scored on members and non-members; got {len(checked[0])} models for members and {len(checked[1])} for non-members."
        )
    return checked[0], checked[1]


def _check(fpr: float, kind: str, replicates: int) -> None:
    if not 0 < fpr <= 1:
        raise ConfigError(f"fpr must be a fraction in (0, 1]; got {fpr!r}. Pass 0.01 for 1 %.")
    choose("interval", kind, KINDS, 'Pass "percentile" or "bca".')
    if not is_integer(replicates, 2):
        raise ConfigError(f"replicates must be an integer ≥ 2; got {replicates!r}. 1000 gives two digits of the ends.")
