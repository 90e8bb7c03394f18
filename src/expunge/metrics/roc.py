"""How well a score tells members from non-members: AUC, TPR at a small FPR, and the ROC curve, each with an interval.

Scores are higher for likelier members. The AUC counts pairs (ties half); the ROC is the conservative staircase, without interpolation, with
ties decided against the attacker.
Everything costs one sort of each group: O(n log n) time and O(n) memory.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, DataError
from .estimate import Estimate, check_level, proportion_interval, unsupported

Members = Float[Tensor, " n_members"]
NonMembers = Float[Tensor, " n_nonmembers"]

# A threshold that k non-members may pass has a false-positive rate known only to a factor; 95 % intervals:
# [0.32, 2.3] for k = 5, [0.65, 1.5] for k = 25.
MIN_FALSE_POSITIVES = 5
FEW_FALSE_POSITIVES = 25


def false_positives(fpr: float, n: int) -> int:
    """How many of n non-members a threshold at this false-positive rate may let through: k = floor(fpr · n).

    Example:
        >>> false_positives(0.29, 100), false_positives(0.001, 999)
        (29, 0)
    """
    return min(n, math.floor(fpr * n + 1e-9))  # 1e-9: 0.29 · 100 is 28.999… in floating point


def auc(members: Members, nonmembers: NonMembers, level: float = 0.95) -> Estimate:
    """The probability that a random member scores above a random non-member, ties counted half; in [0, 1], 0.5 = no information.

    The interval is DeLong's on the logit scale. Where it collapses (separation perfect to within one of min(n₁, n₀) pairs, or constant
    scores), it is the exact interval of min(n₁, n₀) independent pairs instead, so that it never has zero width.

    Args:
        members, nonmembers: scores, at least one each. Infinite is allowed, NaN is not.
        level: confidence in (0, 1).

    Raises:
        DataError: a group is empty or has NaN.

    Example:
        >>> print(auc(torch.arange(100.0) + 20, torch.arange(100.0)))
        0.680 [0.603, 0.748]

    Paper: DeLong et al., Biometrics 1988; Sun and Xu, IEEE Signal Processing Letters 2014 (the fast form).
    """
    wins = placements(members, nonmembers)
    n_pairs = min(len(members), len(nonmembers))
    value, error = wins.auc, wins.error()
    if n_pairs < 2 or error == 0 or n_pairs * min(value, 1 - value) < 1 - 1e-9:  # 1 − 0.8 is less than 0.2 in floating point
        low, high = proportion_interval(value * n_pairs, n_pairs, level)
    else:
        reach = _normal_quantile(level) * error / (value * (1 - value))
        low, high = (1 / (1 + math.exp(-(math.log(value / (1 - value)) + x))) for x in (-reach, reach))
    return Estimate(value, low, high, len(members) + len(nonmembers))


def auc_difference(
    members_a: Members, nonmembers_a: NonMembers, members_b: Members, nonmembers_b: NonMembers, level: float = 0.95
) -> Estimate:
    """AUC of a minus AUC of b on the same samples in the same order, in [−1, 1], with DeLong's paired interval.

    Pairing matters: what two models share about a sample cancels, and the interval is much narrower than that of two separate AUCs.

    Raises:
        DataError: a group is empty or has NaN, or a and b have different numbers of samples.

    Example:
        >>> members, nonmembers = torch.linspace(0, 2, 50), torch.linspace(-1, 1, 50)
        >>> print(auc_difference(members, nonmembers, members - 0.5, nonmembers))
        0.151 [0.109, 0.193]
    """
    if len(members_a) != len(members_b) or len(nonmembers_a) != len(nonmembers_b):
        raise DataError(
            f"a paired difference needs the same samples for both models; got {len(members_a)} and {len(members_b)} members, "
            f"{len(nonmembers_a)} and {len(nonmembers_b)} non-members. Score both models on one set, in one order."
        )
    a, b = placements(members_a, nonmembers_a), placements(members_b, nonmembers_b)
    value, error, n_pairs = a.auc - b.auc, a.error(b), min(len(members_a), len(nonmembers_a))
    width = _normal_quantile(level) * error
    same = torch.equal(members_a, members_b) and torch.equal(nonmembers_a, nonmembers_b)
    if not same and (n_pairs < 2 or error == 0):  # for example two perfect separations: as wide as the exact interval of one of them
        low, high = proportion_interval(n_pairs, n_pairs, level)
        width = high - low
    return Estimate(value, max(-1.0, value - width), min(1.0, value + width), len(members_a) + len(nonmembers_a))


@dataclass(frozen=True, eq=False)
class Roc:
    """The ROC as a staircase: the points of every distinct threshold, from (0, 0) to (1, 1), float64 (P,).

    Draw it with steps to the right ("post").

    Attributes:
        fpr: share of non-members with a score ≥ threshold, ascending.
        tpr: share of members with a score ≥ threshold, ascending.
        thresholds: descending, from +∞.
    """

    fpr: Float[Tensor, " P"]
    tpr: Float[Tensor, " P"]
    thresholds: Float[Tensor, " P"]


def roc(members: Members, nonmembers: NonMembers) -> Roc:
    """The ROC curve: one point for each distinct score, so that tied members and non-members are passed together.

    Example:
        >>> curve = roc(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0]))
        >>> curve.fpr.tolist(), curve.tpr.tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    members, nonmembers = (group.sort().values for group in _checked(members, nonmembers))
    thresholds = torch.cat([members, nonmembers]).unique().flip(0)
    fpr, tpr = ((len(group) - torch.searchsorted(group, thresholds)).double() / len(group) for group in (nonmembers, members))
    start = torch.zeros(1, dtype=torch.float64)
    return Roc(torch.cat([start, fpr]), torch.cat([start, tpr]), torch.cat([start + math.inf, thresholds]))


def tpr_at_fpr(
    members: Members, nonmembers: NonMembers, fpr: float, level: float = 0.95, *, replicates: int = 1000, seed: int = 0
) -> Estimate:
    """The share of members found by the lowest threshold that lets through at most k = floor(fpr · n₀) non-members.

    Ties are decided against the attacker: a member counts only if it scores strictly above the (k+1)-th highest non-member. The interval
    has the percentiles of the bootstrap over non-members, which move the threshold, and of Jeffreys' distribution of the share of members
    above it; where none or all members are found it reaches as far as the exact interval (docs/results/coverage.md). It is refused, with
    the reason, when k < 5, and noted as underpowered when k < 25.

    Args:
        members, nonmembers: scores, at least one each.
        fpr: false-positive rate as a fraction in (0, 1]; 0.01 = 1 %.
        level: confidence in (0, 1).
        replicates: bootstrap samples, ≥ 1. Their cost does not depend on n.
        seed: of the bootstrap; the global generators are not touched.

    Example:
        >>> print(tpr_at_fpr(torch.arange(1000.0) + 500, torch.arange(1000.0), fpr=0.1))
        0.600 [0.562, 0.637]
        >>> print(tpr_at_fpr(torch.arange(1000.0) + 500, torch.arange(1000.0), fpr=0.001))
        n/a (TPR at 0.1% FPR needs 5000 non-members, got 1000)
    """
    curve = _staircase(members, nonmembers, [fpr], level=level, replicates=replicates, seed=seed)
    k, n = int(curve.n_false[0]), len(members) + len(nonmembers)
    if k < MIN_FALSE_POSITIVES:
        needed = math.ceil(MIN_FALSE_POSITIVES / fpr - 1e-9)
        return unsupported(f"TPR at {100 * fpr:g}% FPR needs {needed} non-members, got {len(nonmembers)}", n)
    note = f"underpowered: the threshold rests on {k} non-members" if k < FEW_FALSE_POSITIVES else None
    return Estimate(float(curve.tpr[0]), float(curve.low[0]), float(curve.high[0]), n, note)


@dataclass(frozen=True, eq=False)
class RocBand:
    """TPR at chosen FPRs with a pointwise interval, float64 (F,).

    `supported` is False where fewer than 5 false positives set the threshold.
    """

    fpr: Float[Tensor, " F"]
    tpr: Float[Tensor, " F"]
    low: Float[Tensor, " F"]
    high: Float[Tensor, " F"]
    n_false: Float[Tensor, " F"]

    @property
    def supported(self) -> Tensor:
        return self.n_false >= MIN_FALSE_POSITIVES


def roc_band(
    members: Members, nonmembers: NonMembers, fprs: list[float], level: float = 0.95, *, replicates: int = 1000, seed: int = 0
) -> RocBand:
    """The ROC at these false-positive rates with pointwise intervals, for plots; the same numbers as `tpr_at_fpr`, without its refusals.

    Example:
        >>> band = roc_band(torch.arange(1000.0) + 500, torch.arange(1000.0), [0.001, 0.1])
        >>> band.tpr.tolist(), band.supported.tolist()
        ([0.501, 0.6], [False, True])
    """
    return _staircase(members, nonmembers, fprs, level=level, replicates=replicates, seed=seed)


def _staircase(members: Tensor, nonmembers: Tensor, fprs: list[float], *, level: float, replicates: int, seed: int) -> RocBand:
    members, nonmembers = _checked(members, nonmembers)
    if not all(0 < fpr <= 1 for fpr in fprs):
        raise ConfigError(f"fpr must be a fraction in (0, 1]; got {fprs}. Pass 0.01 for 1 %.")
    n1, n0 = len(members), len(nonmembers)
    false = np.array([false_positives(fpr, n0) for fpr in fprs])
    descending = nonmembers.sort(descending=True).values
    # hits[k]: how many members score strictly above the (k+1)-th highest non-member; all of them once every non-member may pass.
    above = n1 - torch.searchsorted(members.sort().values, descending, right=True)
    hits = np.append(above.numpy(), n1)

    # In a bootstrap sample the place of the (k+1)-th highest non-member is that order statistic of n₀ uniform numbers, hence Beta(k+1,
    # n₀−k): drawing it is the bootstrap over non-members, without ever resampling n values. Of the share of members above it n₁ members
    # tell Beta(h + ½, n₁ − h + ½), Jeffreys' distribution; resampled members would never leave h = 0, and miss the truth too often for small h.
    draw = np.random.default_rng(seed)
    places = draw.beta(false[:, None] + 1, np.maximum(n0 - false, 1)[:, None], size=(len(fprs), replicates)) * n0
    places = np.where((false == n0)[:, None], n0, np.minimum(places.astype(np.int64), n0 - 1))
    shares = draw.beta(hits[places] + 0.5, n1 - hits[places] + 0.5)
    tail = (1 - check_level(level)) / 2
    found = hits[false]
    low, high = np.quantile(shares, [tail, 1 - tail], axis=1)
    exact, all_or_none = np.array([proportion_interval(int(h), n1, level) for h in found]), (found == 0) | (found == n1)
    low = np.minimum(np.where(all_or_none, np.minimum(low, exact[:, 0]), low), found / n1)
    high = np.maximum(np.where(all_or_none, np.maximum(high, exact[:, 1]), high), found / n1)
    columns = (np.array(fprs), found / n1, low, high, false)
    return RocBand(*(torch.tensor(column, dtype=torch.float64) for column in columns))


class Placements(NamedTuple):
    """For each member the share of non-members below it, for each non-member that of members above it (ties half); their mean."""

    of_members: Tensor
    of_nonmembers: Tensor
    auc: float

    def error(self, other: "Placements | None" = None) -> float:
        """DeLong's standard error of this AUC, or of its difference to another AUC on the same samples."""
        terms = self[:2] if other is None else [mine - theirs for mine, theirs in zip(self[:2], other[:2], strict=True)]
        return math.sqrt(sum(float(term.var()) / len(term) for term in terms if len(term) > 1))


def placements(members: Tensor, nonmembers: Tensor) -> Placements:
    members, nonmembers = _checked(members, nonmembers)
    below, above = _twice_below(members, nonmembers), 2 * len(members) - _twice_below(nonmembers, members)
    n1, n0 = len(members), len(nonmembers)
    return Placements(below.double() / (2 * n0), above.double() / (2 * n1), int(below.sum()) / (2 * n1 * n0))


def _twice_below(scores: Tensor, others: Tensor) -> Tensor:
    """Twice the number of `others` below each score, ties counted half; whole numbers, so that sums are exact."""
    others = others.sort().values
    return torch.searchsorted(others, scores) + torch.searchsorted(others, scores, right=True)


def _checked(members: Tensor, nonmembers: Tensor) -> tuple[Tensor, Tensor]:
    for name, group in (("members", members), ("non-members", nonmembers)):
        if group.ndim != 1 or len(group) == 0:
            raise DataError(f"the scores of {name} must be one number for each sample, at least one; got shape {tuple(group.shape)}.")
        if torch.isnan(group).any():
            raise DataError(
                f"the scores of {name} must be numbers; got {int(torch.isnan(group).sum())} NaN. Check the logits of the models."
            )
    return members.detach().cpu().double(), nonmembers.detach().cpu().double()


def _normal_quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + check_level(level)) / 2)
