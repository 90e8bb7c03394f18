"""Label-only attacks: the model gives away nothing but its answer.

    gap attack     a member if the answer is right
    share          how many of V views of the sample are answered rightly
    label-only LiRA  is this number of right views more like that of shadow models that trained on the sample, or of the others?

The last one is derived here; no paper has it in this form. The right views c of a model on a sample are Beta-binomial given the group
g ∈ {IN, OUT}, with a Beta prior shared by all samples:

    rate ~ Beta(α_g, β_g),  S_g right and F_g wrong views of the sample's shadow models in group g
    log p(c | g) = log B(α_g + S_g + c, β_g + F_g + V − c) − log B(α_g + S_g, β_g + F_g)
    Λ = log p(c | IN) − log p(c | OUT)

The binomial coefficient is the same in both and cancels. Views of one model agree with each other more than independent trials do. With ρ their intraclass
correlation, V views are worth V / (1 + (V − 1) ρ) (design effect), and all counts are scaled down to that. α_g and β_g are moments over samples.
Everything read of a model is whether it is right.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..checks import setting
from ..errors import DataError
from ..metrics.balanced import balanced_accuracy
from ..metrics.estimate import Estimate
from ..types import Included, Labels, Logits, Scores
from .base import MembershipAudit
from .groups import check_groups

WEAKEST, STRONGEST = 0.5, 200.0  # bounds of α + β: how many views the prior is worth


def gap_attack(predictions: Tensor, labels: Tensor) -> Tensor:
    """The share of views that are answered rightly, (N,) float64 in [0, 1]; with one view 1 for right and 0 for wrong. Higher = member.

    Args:
        predictions: labels given by the model, (N,) or (V, N).
        labels: the true ones, (N,).

    Raises:
        DataError: shapes do not fit.

    Example:
        >>> gap_attack(torch.tensor([[0, 1], [0, 0]]), torch.tensor([0, 1])).tolist()
        [1.0, 0.5]

    Paper: Yeom et al., CSF 2018, arXiv:1709.01604 (one view); Choquette-Choo et al., "Label-Only Membership Inference Attacks", ICML 2021,
        arXiv:2007.14321 (views).
    """
    if labels.ndim != 1 or predictions.shape[-1:] != labels.shape or predictions.ndim > 2 or predictions.numel() == 0:
        raise DataError(
            f"predictions must be labels of shape (N,) or (V, N) for the {len(labels)} samples, none of them 0; got {tuple(predictions.shape)}."
        )
    right = (predictions == labels).double()
    return right if right.ndim == 1 else right.mean(0)


def gap_accuracy(
    members_right: Bool[Tensor, " n_members"], nonmembers_right: Bool[Tensor, " n_nonmembers"], level: float = 0.95
) -> Estimate:
    """The balanced accuracy of the gap attack, ½ + (accuracy on members − accuracy on non-members) / 2: what anybody achieves by the train-test gap.

    The floor of every label-only attack. Retrained models have 0.5 on forget samples like the test set.

    Example:
        >>> print(gap_accuracy(torch.arange(200) < 190, torch.arange(200) < 150))
        0.600 [0.565, 0.635]
    """
    return balanced_accuracy(members_right, ~nonmembers_right, level)


def label_only_lira(target: Tensor, shadow: Tensor, included: Tensor, *, online: bool = True) -> Float[Tensor, " N"]:
    """Label-only LiRA scores, (N,) float64, higher = more likely a member: Λ of this file's derivation.

    Offline, without IN models: (share of right views − its mean under the OUT posterior) / its standard deviation there.

    Args:
        target: bool (V, N), whether each view of each sample is answered rightly by the model under audit.
        shadow: bool (M, V, N), the same of M shadow models, on the same views.
        included: bool (M, N), which shadow model trained on which sample; at least 2 with (online) and 2 without each.
        online: compare IN with OUT.

    Raises:
        DataError: shapes do not fit, or too few shadow models of a sample.

    Cost: O(MVN) to count, O(N) after that.

    Example:
        >>> included = torch.tensor([True, False]).repeat(4)[:, None].expand(8, 4)
        >>> shadow = included[:, None].clone()  # right if trained on, else wrong
        >>> label_only_lira(torch.tensor([[True, True, False, False]]), shadow, included).sign().tolist()
        [1.0, 1.0, -1.0, -1.0]

    Paper: none; after Carlini et al. (LiRA), IEEE S&P 2022, arXiv:2112.03570, with a Beta-binomial likelihood. Departures: see above.
    """
    fit = target.ndim == 2 and target.shape == shadow.shape[1:] and included.shape == (len(shadow), target.shape[1])
    if not fit or not target.dtype == shadow.dtype == included.dtype == torch.bool:
        raise DataError(
            f"target (V, N), shadow (M, V, N) and included (M, N) must be bool and fit; got {target.dtype} of shapes {tuple(target.shape)}, {tuple(shadow.shape)} and "
            f"{tuple(included.shape)}. Ask every model about the same views of the same samples."
        )
    check_groups(included, 2 if online else 0, 2)
    n_views, counts, asked = target.shape[0], shadow.sum(1, dtype=torch.float64), target.sum(0, dtype=torch.float64)
    worth = 1 / (1 + (n_views - 1) * _agreement(counts, included, n_views))  # of a view, in independent trials
    outside = _posterior(counts, ~included, n_views, worth)
    if not online:
        return (asked / n_views - outside.mean) / outside.deviation(n_views * worth)
    inside = _posterior(counts, included, n_views, worth)
    right, wrong = worth * asked, worth * (n_views - asked)
    return inside.log_likelihood(right, wrong) - outside.log_likelihood(right, wrong)


@final
@dataclass(frozen=True, kw_only=True)
class LabelOnly(MembershipAudit):
    """Label-only LiRA at the seam of audits: one view, and of the logits only which is the highest.

    Not among `AUDITS`: scores have few distinct values, and a surer target that answers the same gets the same ones.

    Use when: a service gives away labels only, or to see what is then left of LiRA. Cost: the shadow models; the scoring takes milliseconds.

    Args:
        online: use shadow models that trained on the sample, too. Set False if none did.

    Example:
        >>> LabelOnly(online=False)
        LabelOnly(online=False)

    Paper: none; see `label_only_lira`.
    """

    name: ClassVar[str] = "label_only"
    paper: ClassVar[str] = "after Choquette-Choo et al., ICML 2021, arXiv:2007.14321, and Carlini et al., IEEE S&P 2022, arXiv:2112.03570"
    needs_shadows: ClassVar[bool] = True

    online: bool = setting(True)

    def scores(
        self, target_logits: Logits, labels: Labels, shadow_logits: Tensor | None = None, included: Included | None = None
    ) -> Scores:
        assert shadow_logits is not None and included is not None  # it says that it needs them
        right = (target_logits.argmax(-1) == labels)[None]
        return label_only_lira(right, (shadow_logits.argmax(-1) == labels)[:, None], included, online=self.online)


class _Beta(NamedTuple):
    """What is believed about the share of right views of each sample, given its shadow models."""

    a: Tensor
    b: Tensor

    @property
    def mean(self) -> Tensor:
        return self.a / (self.a + self.b)

    def deviation(self, trials: Tensor) -> Tensor:
        """Of the share among this many trials, Beta-binomial."""
        total = self.a + self.b
        return (self.mean * (1 - self.mean) / trials * (total + trials) / (total + 1)).sqrt()

    def log_likelihood(self, right: Tensor, wrong: Tensor) -> Tensor:
        """Without the binomial coefficient."""
        return _log_beta(self.a + right, self.b + wrong) - _log_beta(self.a, self.b)


def _posterior(counts: Tensor, group: Tensor, n_views: int, worth: Tensor) -> _Beta:
    """The prior by moments over samples, and the sample's own views in this group."""
    n = group.sum(0).double()
    right = (counts * group).sum(0)
    rates = right / (n * n_views)
    mean = (worth * right.sum() + 0.5) / (worth * n.sum() * n_views + 1)  # never 0 or 1
    noise = (1 / (n * n_views * worth)).mean()  # a rate of m trials varies by mean (1 − mean) (1/m + (1 − 1/m) / (α + β + 1))
    spread = (rates - mean).square().mean() / (mean * (1 - mean))
    strength = ((1 - noise) / (spread - noise).clamp_min(1e-9) - 1).clamp(WEAKEST, STRONGEST)
    return _Beta(strength * mean + worth * right, strength * (1 - mean) + worth * (n * n_views - right))


def _agreement(counts: Tensor, included: Tensor, n_views: int) -> Tensor:
    """ρ in [0, 1], the intraclass correlation of the views of one model on one sample, within groups; from an analysis of variance."""
    if n_views == 1:
        return counts.new_zeros(())
    within = (counts * (n_views - counts) / n_views).sum() / (counts.numel() * (n_views - 1))
    between, freedom = counts.new_zeros(()), counts.new_zeros(())
    for group in (included, ~included):
        n = group.sum(0).double()
        mean = (counts * group).sum(0) / n.clamp_min(1)
        between = between + ((counts - mean).square() * group).sum() / n_views
        freedom = freedom + (n - 1).clamp_min(0).sum()
    between = between / freedom
    return ((between - within) / (between + (n_views - 1) * within).clamp_min(1e-12)).clamp(0, 1)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
