"""LiRA: is this margin more like those of models that trained on the sample, or of models that did not?

For each sample a Gaussian is fitted to the margins φ of the shadow models that included it (IN) and another to the rest (OUT):

    online    Λ = log N(φ; μ_in, σ_in²) − log N(φ; μ_out, σ_out²)
    offline   z = (φ − μ_out) / σ_out          (one-sided; no model may have seen the sample)
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import setting
from ..errors import ConfigError
from ..metrics.signals import logit_margin
from ..types import Included, Labels, Logits, Scores, ShadowScores
from .base import MembershipAudit, signal_of_models
from .groups import check_counts, check_groups, kept_models

VARIANCES = ("shrunk", "per_example", "fixed")
FLOOR = 1e-12  # smallest variance, in squared logits: constant scores give 0 instead of 0/0


def lira(
    target: Scores, shadow: ShadowScores, included: Included, variance: str = "shrunk", online: bool = True, *, prior_weight: float = 10.0
) -> Scores:
    """LiRA scores of one target model, (N,) float64, higher = more likely a member.

    Args:
        target: (N,) margins of the model under audit (`logit_margin`).
        shadow: (M, N) margins of the shadow models on the same samples.
        included: (M, N) bool, which shadow model trained on which sample; at least 2 with and 2 without each (offline: 2 without).
        variance: "per_example", "fixed" (one variance for all samples, of IN and of OUT scores apart), or "shrunk" in between:
            σ² = (ν₀ s₀² + (n − 1) s²) / (ν₀ + n − 1), with s₀² the fixed and s² the sample's own variance. Only "per_example" is exactly
            independent of which other samples are scored along.
        online: compare IN with OUT; otherwise measure against OUT alone.
        prior_weight: ν₀ ≥ 0, how many observations the pooled variance is worth. 0 = "per_example", ∞ = "fixed".

    Raises:
        ConfigError: unknown variance, or a negative prior weight.
        DataError: a sample with too few models.

    Example:
        >>> shadow = torch.tensor([[4.0], [5.0], [0.0], [1.0]])
        >>> round(lira(torch.tensor([4.5]), shadow, torch.tensor([[True], [True], [False], [False]])).item(), 6)
        16.0

    Paper: Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022, arXiv:2112.03570. Departures: "shrunk" is
    ours.
    """
    _check(variance, prior_weight)
    check_groups(included, 2 if online else 0, 2)
    centre, group_in, group_out = moments(shadow, included)
    return _compare(target.double() - centre, group_in, group_out, online, variance=variance, prior_weight=prior_weight)


def lira_leave_one_out(
    shadow: ShadowScores,
    included: Included,
    variance: str = "shrunk",
    online: bool = True,
    *,
    prior_weight: float = 10.0,
    drop_mates: bool = True,
) -> ShadowScores:
    """LiRA scores with each shadow model in turn as the target and the others as its shadows, (M, N) float64.

    Row t belongs with the truth `included[t]`. In closed form: the target's contribution is subtracted from sums over all models, so that M
    targets cost little more than one.

    Args:
        drop_mates: also leave out the target's complement. Without that, complementary halves leak the answer (see groups.py).

    The other arguments are those of `lira`.

    Raises:
        DataError: models are not in complementary pairs (with `drop_mates`), or too few are left for a sample.

    Example:
        >>> included = torch.tensor([[True, False], [False, True]]).repeat(3, 1)
        >>> lira_leave_one_out(torch.rand(6, 2) + included, included).shape
        torch.Size([6, 2])
    """
    _check(variance, prior_weight)
    kept = kept_models(included, drop_mates)
    centre, all_in, all_out = moments(shadow, included)
    rows = []
    for t, target in enumerate(shadow):
        group_in, group_out = all_in, all_out
        for left_out in (~kept[t]).nonzero().flatten().tolist():
            scores = shadow[left_out].double() - centre
            group_in, group_out = group_in.without(scores, included[left_out]), group_out.without(scores, ~included[left_out])
        check_counts(group_in.n, group_out.n, 2 if online else 0, 2)
        rows.append(_compare(target.double() - centre, group_in, group_out, online, variance=variance, prior_weight=prior_weight))
    return torch.stack(rows)


@final
@dataclass(frozen=True, kw_only=True)
class LiRA(MembershipAudit):
    """The likelihood-ratio attack on logit margins, sample by sample.

    Use when: at least 16 shadow models are at hand; 64 or more for `variance="per_example"`. Cost: the shadow models; the scoring takes
    milliseconds.

    Args:
        online: use shadow models that trained on the sample, too. Set False if none did.
        variance: "shrunk" (default), "per_example" or "fixed"; see `lira`.
        prior_weight: ν₀ ≥ 0 of "shrunk".

    Example:
        >>> LiRA(variance="fixed")
        LiRA(online=True, variance='fixed', prior_weight=10.0)

    Paper: Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022, arXiv:2112.03570.
    Departures: one query without augmentation; offline ranks by z, which orders samples as the paper's tail probability does.
    """

    name: ClassVar[str] = "lira"
    paper: ClassVar[str] = "Carlini et al., IEEE S&P 2022, arXiv:2112.03570"
    needs_shadows: ClassVar[bool] = True

    online: bool = setting(True)
    variance: str = setting("shrunk", choices=VARIANCES)
    prior_weight: float = setting(10.0, ge=0)

    def scores(
        self, target_logits: Logits, labels: Labels, shadow_logits: Tensor | None = None, included: Included | None = None
    ) -> Scores:
        assert shadow_logits is not None and included is not None  # it says that it needs them
        shadow = signal_of_models(logit_margin, shadow_logits, labels)
        return lira(logit_margin(target_logits, labels), shadow, included, self.variance, self.online, prior_weight=self.prior_weight)


class Gaussian(NamedTuple):
    mean: Tensor
    deviation: Tensor

    def z(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation

    def log_density(self, x: Tensor) -> Tensor:
        """Without −½ log 2π, which cancels in the ratio."""
        return -0.5 * self.z(x) ** 2 - self.deviation.log()


class Group(NamedTuple):
    """Count, sum and sum of squares of the centred scores of one group of models, for each sample: float64 (N,)."""

    n: Float[Tensor, " N"]
    total: Float[Tensor, " N"]
    squares: Float[Tensor, " N"]

    def without(self, scores: Tensor, member: Tensor) -> "Group":
        """The group after a model with these scores has left it, for the samples where it was a member."""
        left = torch.where(member, scores, 0.0)
        return Group(self.n - member.double(), self.total - left, self.squares - left * scores)

    def gaussian(self, variance: str, prior_weight: float) -> Gaussian:
        mean, freedom = self.total / self.n, self.n - 1
        scatter = (self.squares - self.total * mean).clamp_min(0)
        if variance == "per_example":
            prior_weight = 0.0
        pooled = scatter.sum() / freedom.sum()
        square = pooled.expand_as(mean) if variance == "fixed" else (prior_weight * pooled + scatter) / (prior_weight + freedom)
        return Gaussian(mean, square.clamp_min(FLOOR).sqrt())


def moments(shadow: Tensor, included: Tensor) -> tuple[Tensor, Group, Group]:
    """The mean of all models, and the IN and OUT groups of scores around it (centred, so that sums of squares lose no digits)."""
    centre = shadow.mean(0, dtype=torch.float64)
    everything = torch.zeros(3, *centre.shape, dtype=torch.float64)
    inside = torch.zeros_like(everything)
    for scores, member in zip(
        shadow, included, strict=True
    ):  # model by model: a few vectors that stay in the cache, instead of float64 copies of (M, N)
        centred = scores.double() - centre
        row = torch.stack([torch.ones_like(centred), centred, centred**2])
        everything += row
        inside += row * member
    return centre, Group(*inside), Group(*(everything - inside))


def _compare(target: Tensor, group_in: Group, group_out: Group, online: bool, *, variance: str, prior_weight: float) -> Tensor:
    outside = group_out.gaussian(variance, prior_weight)
    if not online:
        return outside.z(target)
    return group_in.gaussian(variance, prior_weight).log_density(target) - outside.log_density(target)


def _check(variance: str, prior_weight: float) -> None:
    if variance not in VARIANCES:
        raise ConfigError(f"variance must be one of {', '.join(map(repr, VARIANCES))}; got {variance!r}.")
    if not prior_weight >= 0:
        raise ConfigError(f"prior_weight must be a number ≥ 0; got {prior_weight!r}. 0 = each sample's own variance.")
