"""RMIA: does this model find the sample likelier than models in general do, and by more than it does for other samples?

    r(x) = p(x | θ) / p(x),    online  p(x) = (mean_IN p + mean_OUT p) / 2,    offline  p(x) = ((1 + a) mean_OUT p + (1 − a)) / 2
    score(x) = share of population samples z with r(x) / r(z) ≥ γ

For one target model the score is an increasing function of r(x) alone, so that the ROC of log r is that of the score. `RMIA` therefore
ranks by log r, which has no ties: the score has only |Z| + 1 levels, and its ties at 1 spoil the true-positive rate at small false-positive
rates. The score (`RMIA.share`, `rmia`) serves to compare or pool target models.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import setting
from ..errors import ConfigError, DataError
from ..metrics.roc import auc
from ..metrics.signals import taylor_softmax, true_log_prob
from ..types import Included, Labels, Logits, Scores, ShadowScores
from .base import MembershipAudit, signal_of_models
from .groups import check_groups, kept_models

Population = Float[Tensor, " Z"]

BLOCK = 8192  # samples worked on at a time, so that float64 copies of (M, N) are never whole in memory
UNDERFLOW = -700.0  # exp of less is 0 in float64


def rmia(
    target: Scores,
    shadow: ShadowScores,
    included: Included,
    online: bool = True,
    gamma: float = 2.0,
    *,
    population: Population | None = None,
    offline_a: float = 0.3,
) -> Scores:
    """RMIA scores of one target model, (N,) float64 in [0, 1], higher = more likely a member.

    Args:
        target: (N,) log-probabilities of the true class (`true_log_prob`).
        shadow: (M, N) the same of the shadow models on the same samples.
        included: (M, N) bool, which shadow model trained on which sample; at least 1 with and 1 without each (offline: 1 without).
        online: use models that trained on the sample, too.
        gamma: γ > 0, by how much x must beat z. AMUN: 2.
        population: log-ratios of the samples z (`rmia_log_ratio`); None = all the other samples, as in AMUN.
        offline_a: a in [0, 1]; see `choose_offline_a`.

    Example:
        >>> p = torch.tensor([0.9, 0.5, 0.5])
        >>> included = torch.tensor([[True], [False]]).expand(2, 3)
        >>> rmia(p.log(), torch.full((2, 3), 0.4).log(), included, gamma=1.5)
        tensor([1., 0., 0.], dtype=torch.float64)

    Paper: Zarifzadeh et al., "Low-Cost High-Power Membership Inference Attacks", ICML 2024, arXiv:2312.03262.
    """
    _check_gamma(gamma)
    ratio = rmia_log_ratio(target, shadow, included, online, offline_a)
    reach = ratio - math.log(gamma)
    return _share(torch.searchsorted(_others(ratio, population).sort().values, reach, right=True), reach >= ratio, ratio, population)


def rmia_log_ratio(target: Scores, shadow: ShadowScores, included: Included, online: bool = True, offline_a: float = 0.3) -> Scores:
    """log r(x) = log p(x | θ) − log p(x), (N,) float64: what the ROC is made of.

    The arguments are those of `rmia`; each value depends on its own sample only.

    Example:
        >>> included = torch.tensor([[True], [False]])
        >>> rmia_log_ratio(torch.tensor([0.8]).log(), torch.tensor([[0.6], [0.2]]).log(), included)
        tensor([0.6931], dtype=torch.float64)
    """
    check_groups(included, 1 if online else 0, 1)
    log_out = _log_mean(shadow, ~included)
    log_in = _log_mean(shadow, included) if online else None
    return target.double() - _log_reference(log_in, log_out, offline_a)


def rmia_leave_one_out(
    shadow: ShadowScores, included: Included, online: bool = True, offline_a: float = 0.3, drop_mates: bool = True
) -> ShadowScores:
    """log r(x) with each shadow model in turn as the target and the others as its references, (M, N) float64.

    Row t belongs with the truth `included[t]`.

    Args:
        drop_mates: also leave out the target's complement, so that the group sizes do not depend on the answer (see groups.py).

    Example:
        >>> included = torch.tensor([[True, False], [False, True]]).repeat(2, 1)
        >>> rmia_leave_one_out(torch.rand(4, 2).log(), included).shape
        torch.Size([4, 2])
    """
    kept = kept_models(included, drop_mates)
    log_in, log_out = _leave_one_out_means(shadow, included, kept, online)
    return shadow.double() - _log_reference(log_in, log_out, offline_a)


def choose_offline_a(shadow: ShadowScores, included: Included, n_targets: int = 8) -> float:
    """The a in {0, 0.1, …, 1} with which the offline attack on a few of the shadow models, by the others, has the highest mean AUC.

    Args:
        shadow: (M, N) log-probabilities.
        included: (M, N) bool, in complementary pairs. Samples that none or all of the models trained on are passed over.
        n_targets: how many models are attacked, ≥ 1 (at most M are).

    Raises:
        DataError: no sample is in some models and not in others, or the models are not in complementary pairs.

    Example:
        >>> included = torch.tensor([[True, False, True], [False, True, False]]).repeat(2, 1)
        >>> choose_offline_a(torch.rand(4, 3).log(), included) in {i / 10 for i in range(11)}
        True
    """
    told_apart = included.any(0) & ~included.all(0)
    if not told_apart.any():
        raise DataError(
            "choosing offline_a needs samples that some shadow models trained on and others did not; got none. Pass offline_a=0.3."
        )
    shadow, included = shadow[:, told_apart], included[:, told_apart]
    kept = kept_models(included)[:n_targets]
    _, log_out = _leave_one_out_means(shadow, included, kept, online=False)

    def mean_auc(a: float) -> float:
        scores = shadow[: len(kept)].double() - _log_reference(None, log_out, a)
        return sum(auc(row[member], row[~member]).value for row, member in zip(scores, included, strict=False)) / len(kept)

    return max((i / 10 for i in range(11)), key=mean_auc)


def rmia_ratio(target: Scores, shadow: ShadowScores, included: Included, online: bool = True, offline_a: float = 0.3) -> Scores:
    """r(x) itself, (N,) float64, for signals that are not logarithms and may be negative (`taylor_softmax`).

    Online, p(x) is the plain mean over all references, as in AMUN's code; with each sample in half of them that is the mean of the IN and
    the OUT mean.

    Example:
        >>> rmia_ratio(torch.tensor([0.8]), torch.tensor([[0.6], [0.2]]), torch.tensor([[True], [False]]))
        tensor([2.0000], dtype=torch.float64)
    """
    check_groups(included, 1 if online else 0, 1)
    if online:
        return target.double() / shadow.mean(0, dtype=torch.float64)
    mean_out = shadow.double().masked_fill(included, 0).sum(0) / (~included).sum(0)
    return 2 * target.double() / ((1 + offline_a) * mean_out + 1 - offline_a)


def rmia_share(ratio: Scores, gamma: float = 2.0, population: Population | None = None) -> Scores:
    """The share of z with r(x) / r(z) ≥ γ from plain ratios of any sign; (N,) float64. `population` as in `rmia`, as plain ratios.

    Example:
        >>> rmia_share(torch.tensor([2.0, 1.0, -1.0]))
        tensor([0.5000, 0.0000, 0.0000], dtype=torch.float64)
    """
    _check_gamma(gamma)
    ratio = ratio.double()
    z = _others(ratio, population).sort().values
    negative, zero = torch.searchsorted(z, torch.tensor([0.0, 0.0], dtype=z.dtype)), (z == 0).sum()
    reach = (
        ratio / gamma
    )  # r(x) ≥ γ r(z) for positive r(z); the inequality turns around for negative ones, and x / 0 beats γ for positive x
    beaten_positive = (torch.searchsorted(z, reach, right=True) - negative[0] - zero).clamp_min(0)
    beaten_negative = (negative[0] - torch.searchsorted(z, reach)).clamp_min(0)
    count = beaten_positive + beaten_negative + torch.where(ratio > 0, zero, 0)
    return _share(count, (ratio != 0) & (gamma <= 1), ratio, population)


@final
@dataclass(frozen=True, kw_only=True)
class RMIA(MembershipAudit):
    """The relative membership-inference attack.

    The scores are log r(x) (signal "softmax") or r(x) (signal "taylor"): the ROC of RMIA without its ties.

    Use when: shadow models are few, or as the second opinion beside LiRA. Cost: the shadow models; the scoring takes milliseconds.

    Args:
        online: use shadow models that trained on the sample, too. Set False if none did.
        gamma: γ > 0 of `share`. The ranking does not depend on it.
        signal: "softmax" for log-probabilities; "taylor" for AMUN's published numbers.
        offline_a: a in [0, 1] for online=False; None = chosen by attacking shadow models with one another.

    Example:
        >>> RMIA()
        RMIA(online=True, gamma=2.0, signal='softmax', offline_a=None)

    Paper: Zarifzadeh et al., "Low-Cost High-Power Membership Inference Attacks", ICML 2024, arXiv:2312.03262.
    Departures: one query without augmentation.
    """

    name: ClassVar[str] = "rmia"
    paper: ClassVar[str] = "Zarifzadeh et al., ICML 2024, arXiv:2312.03262"
    needs_shadows: ClassVar[bool] = True

    online: bool = setting(True)
    gamma: float = setting(2.0, gt=0)
    signal: str = setting("softmax", choices=("softmax", "taylor"))
    offline_a: float | None = setting(None, ge=0, le=1)

    def scores(
        self, target_logits: Logits, labels: Labels, shadow_logits: Tensor | None = None, included: Included | None = None
    ) -> Scores:
        assert shadow_logits is not None and included is not None  # it says that it needs them
        signal, ratio = (true_log_prob, rmia_log_ratio) if self.signal == "softmax" else (taylor_softmax, rmia_ratio)
        shadow = signal_of_models(signal, shadow_logits, labels)
        a = self.offline_a
        if a is None and not self.online:
            a = choose_offline_a(signal_of_models(true_log_prob, shadow_logits, labels), included)
        return ratio(signal(target_logits, labels), shadow, included, self.online, 0.0 if a is None else a)

    def share(self, target_logits: Tensor, labels: Tensor, shadow_logits: Tensor, included: Tensor) -> Tensor:
        """RMIA's own score in [0, 1], (N,): the share of the other samples that x beats by γ.

        The same order as the call, with ties; comparable between target models.
        """
        ratio = self(target_logits, labels, shadow_logits, included)
        return rmia_share(ratio.exp() if self.signal == "softmax" else ratio, self.gamma)


def _log_reference(log_in: Tensor | None, log_out: Tensor, a: float) -> Tensor:
    """log p(x), from the logarithms of the mean probabilities; offline if there are no IN models."""
    if log_in is not None:
        return torch.logaddexp(log_in, log_out) - math.log(2)
    if not 0 <= a <= 1:
        raise ConfigError(f"offline_a must be a number in [0, 1]; got {a!r}. choose_offline_a finds one.")
    constant = torch.tensor(1 - a, dtype=torch.float64).log()  # −∞ for a = 1
    return torch.logaddexp(math.log1p(a) + log_out, constant) - math.log(2)


def _log_mean(shadow: Tensor, group: Tensor) -> Tensor:
    """log of the mean probability over the models of a group, (N,) float64."""
    sums = [
        one.double().masked_fill(~members, -torch.inf).logsumexp(0)
        for one, members in zip(shadow.split(BLOCK, 1), group.split(BLOCK, 1), strict=True)
    ]
    return torch.cat(sums) - group.sum(0).double().log()


def _leave_one_out_means(shadow: Tensor, included: Tensor, kept: Tensor, online: bool) -> tuple[Tensor | None, Tensor]:
    """log of the mean probability over the kept IN and OUT models for each target, (T, N) float64.

    Each sum is made anew as a matrix product; subtracting the target from the total would cancel where the target is the only one that is
    sure of a sample.
    """
    weights = kept.double()
    means_in: list[Tensor] = []
    means_out: list[Tensor] = []
    for one, members in zip(shadow.split(BLOCK, 1), included.split(BLOCK, 1), strict=True):
        top = one.double().amax(0)
        p, inside = (one.double() - top).clamp_min(UNDERFLOW).exp(), members.double()
        for means, group, wanted in ((means_in, inside, online), (means_out, 1 - inside, True)):
            if wanted:
                counts = weights @ group
                if (counts == 0).any():
                    raise DataError(
                        "leaving a model out needs another one on each side of every sample; got none for some. Train more shadow models."
                    )
                means.append((weights @ (p * group)).div_(counts).log_().add_(top))
    return (torch.cat(means_in, 1) if online else None), torch.cat(means_out, 1)


def _others(ratio: Tensor, population: Tensor | None) -> Tensor:
    if population is None and len(ratio) < 2:
        raise DataError("RMIA's score compares a sample with others; got one sample and no population. Pass population=… or more samples.")
    return ratio if population is None else population.double()


def _check_gamma(gamma: float) -> None:
    if not gamma > 0:
        raise ConfigError(f"gamma must be a number > 0; got {gamma!r}. The papers use 1 or 2.")


def _share(count: Tensor, counts_itself: Tensor, ratio: Tensor, population: Tensor | None) -> Tensor:
    """Counts as shares of the population; a sample is not part of its own."""
    if population is not None:
        return count.double() / len(population)
    return (count - counts_itself.long()).double() / (len(ratio) - 1)
