"""Several attacks as one: each is turned into a p-value, and p-values are combined by rules whose null is known.

    p_a(x) = (1 + #{null scores of attack a ≥ its score of x}) / (n_a + 1)        null: scores of samples that a model did not train on

    min-p     p = 1 − (1 − min_a p_a)^A                                 Šidák; exact if attacks are independent, too careful if they agree
    Cauchy    p = ½ − atan(mean_a tan(π (½ − p_a))) / π                 nearly right in the tail whatever the dependence

Calling a sample a member if *any* attack passes its threshold at false-positive rate α ("coverage", union) accuses up to Aα of the
non-members; and thresholds taken from the evaluated labels give away the answer. Here the null scores come from held-out shadow models.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import setting
from ..errors import ConfigError, DataError
from ..metrics.signals import check_logits
from ..types import Included, Labels, Logits, Scores
from .base import MembershipAudit
from .groups import kept_models
from .lira import LiRA
from .loss_threshold import LossThreshold
from .rmia import RMIA

COMBINATIONS = ("min_p", "cauchy")


def empirical_p_values(scores: Float[Tensor, " N"], null: Float[Tensor, " n_null"]) -> Float[Tensor, " N"]:
    """The p-value of each score, (N,) float64 in [1/(n + 1), 1]: how likely a non-member scores at least as high.

    Never smaller than the truth on average: of non-members at most a share α has p ≤ α, ties included.

    Args:
        scores: of the samples in question, higher = member.
        null: n ≥ 1 scores of non-members that are not among them.

    Raises:
        DataError: no null score, or NaN.

    Cost: one sort.

    Example:
        >>> empirical_p_values(torch.tensor([5.0, 2.0, 0.0]), torch.tensor([1.0, 2.0, 3.0]))
        tensor([0.2500, 0.7500, 1.0000], dtype=torch.float64)
    """
    if len(null) == 0 or torch.isnan(null).any() or torch.isnan(scores).any():
        raise DataError(f"p-values need scores without NaN and at least one of a non-member; got {len(null)} of non-members.")
    below = torch.searchsorted(null.double().sort().values, scores.double())
    return (1 + len(null) - below).double() / (len(null) + 1)


def min_p(p_values: Float[Tensor, "A N"]) -> Float[Tensor, " N"]:
    """The p-value of the smallest of A p-values (Šidák), (N,): 1 − (1 − min p)^A.

    Exact under independence, valid under positive dependence, which attacks on the same outputs have; at worst min(1, A · min p) is valid.

    Args:
        p_values: in [0, 1], a row for each attack (or seed of shadow models).

    Raises:
        DataError: no row, or a value outside [0, 1].

    Example:
        >>> min_p(torch.tensor([[0.01, 0.5], [0.9, 0.5]]))
        tensor([0.0199, 0.7500], dtype=torch.float64)

    Paper: Šidák, Journal of the American Statistical Association 1967.
    """
    smallest = _checked(p_values).amin(0)
    return -torch.expm1(len(p_values) * torch.log1p(-smallest))


def cauchy_combination(p_values: Float[Tensor, "A N"], weights: Float[Tensor, " A"] | None = None) -> Float[Tensor, " N"]:
    """The p-value of the weighted mean of tan(π (½ − p)), which is standard Cauchy under the null, (N,).

    Exact under independence and for identical p-values; for other dependence right in the limit of small p. Several attacks that agree a little help
    one another, unlike in `min_p`; one that says p = 1 outweighs the others.

    Args:
        p_values: in [0, 1], a row for each attack.
        weights: ≥ 0, at least one positive; None = equal.

    Raises:
        DataError: no row, a value outside [0, 1], or weights that do not fit.

    Example:
        >>> cauchy_combination(torch.tensor([[0.01, 0.5], [0.9, 0.5]]))
        tensor([0.0221, 0.5000], dtype=torch.float64)

    Paper: Liu and Xie, Journal of the American Statistical Association 2020, arXiv:1808.09011.
    """
    p = _checked(p_values).clamp(1e-300, 1 - 1e-16)
    weights = torch.ones(len(p), dtype=torch.float64) if weights is None else weights.double()
    if len(weights) != len(p) or not (weights >= 0).all() or not float(weights.sum()) > 0:
        raise DataError(f"weights must be one number ≥ 0 for each of the {len(p)} attacks, not all 0; got {weights.tolist()}.")
    weights = weights / weights.sum()
    total = weights @ (1 / torch.tan(math.pi * p))  # cot(πp) keeps the digits of small p, tan(π(½ − p)) does not
    # ½ − atan(t)/π is atan(1/t)/π for positive t, again without losing the digits.
    return torch.where(total > 0, torch.atan(1 / total), math.pi / 2 - torch.atan(total)) / math.pi


@final
@dataclass(frozen=True, kw_only=True)
class Ensemble(MembershipAudit):
    """Several membership attacks combined by their p-values.

    The null scores of each attack come from shadow models in turn as its target, with it and its mate left out, on the samples that it did not train
    on; no label of the audited model enters. Scores are −log p; samples with the same p, such as all those above every null score, are ordered by
    the mean of their attacks' scores in units of the null's spread.

    Use when: attacks find different members, and one number is wanted. Cost: the attacks once for the target and `n_null` times for the null.

    Args:
        attacks: at least one; each is asked as it is configured, but for `online`.
        combine: "min_p" or "cauchy".
        n_null: shadow models that serve as null targets, ≥ 1 (at most all).
        online: passed on to attacks that have that setting.

    Raises:
        ConfigError: no attack, or an unknown combination (at construction).

    Example:
        >>> Ensemble(attacks=(LossThreshold(), LiRA()))
        Ensemble(attacks=(LossThreshold(), LiRA(online=True, variance='shrunk', prior_weight=10.0)), combine='min_p', n_null=8, online=True)

    Paper: Šidák, JASA 1967; Liu and Xie, JASA 2020, arXiv:1808.09011. The idea of an ensemble is that of the code mia-disparity.
    Departures: a null target is scored with two shadow models fewer than the audited one, which makes its scores wider and p-values careful. p-values from held-out shadow models with a known null, instead of unions and intersections of verdicts whose thresholds come from the
        evaluated labels.
    """

    name: ClassVar[str] = "ensemble"
    paper: ClassVar[str] = "Šidák, JASA 1967; Liu and Xie, JASA 2020, arXiv:1808.09011"
    needs_shadows: ClassVar[bool] = True

    attacks: tuple[MembershipAudit, ...] = setting((LossThreshold(), LiRA(), RMIA()))
    combine: str = setting("min_p", choices=COMBINATIONS)
    n_null: int = setting(8, ge=1)
    online: bool = setting(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attacks or not all(isinstance(attack, MembershipAudit) for attack in self.attacks):
            raise ConfigError(f"Ensemble: attacks must be a tuple of at least one MembershipAudit; got {self.attacks!r}.")

    @property
    def models_needed(self) -> tuple[int, int]:
        """One more of each kind than an attack needs: a null target and its mate are left out."""
        needed = [attack.models_needed for attack in self._asked()]
        n_in, n_out = (max(counts) for counts in zip(*needed, strict=True))
        return (n_in + 1 if self.online else 0), n_out + 1

    def scores(
        self, target_logits: Logits, labels: Labels, shadow_logits: Tensor | None = None, included: Included | None = None
    ) -> Scores:
        assert shadow_logits is not None and included is not None  # it says that it needs them
        p_values, strength = self._evidence(target_logits, labels, shadow_logits, included)
        combined = min_p(p_values) if self.combine == "min_p" else cauchy_combination(p_values)
        return _ordered(-combined.log(), strength)

    def p_values(self, target_logits: Tensor, labels: Tensor, shadow_logits: Tensor, included: Tensor) -> Tensor:
        """The combined p-values, (N,): of non-members about a share α, or less, has p ≤ α. Checked like a call."""
        check_logits(target_logits, labels, "target logits")
        self._check_shadows(target_logits, labels, shadow_logits, included)
        p_values, _ = self._evidence(target_logits, labels, shadow_logits, included)
        return min_p(p_values) if self.combine == "min_p" else cauchy_combination(p_values)

    def _asked(self) -> list[MembershipAudit]:
        online: dict[str, Any] = {"online": self.online}
        return [dataclasses.replace(a, **online) if hasattr(a, "online") else a for a in self.attacks]

    def _evidence(self, target: Tensor, labels: Tensor, shadow_logits: Tensor, included: Tensor) -> tuple[Tensor, Tensor]:
        """The p-values of each attack, (A, N), and the mean of their scores in units of the null's spread, (N,)."""
        # Samples that all models or none trained on have no place in a null; without them mates are complements again.
        told_apart = included.any(0) & ~included.all(0)
        if not told_apart.any():
            raise DataError(
                "null scores need samples that some shadow models trained on and others did not; got none. Train shadow models."
            )
        columns = slice(None) if told_apart.all() else told_apart.nonzero().flatten()  # the usual case copies nothing
        known, members, shadows = labels[columns], included[:, columns], shadow_logits[:, columns]
        kept = kept_models(members)[: self.n_null]
        p_values, strength = [], torch.zeros(len(labels), dtype=torch.float64)
        for attack in self._asked():
            scores = attack.scores(target, labels, shadow_logits, included).double()
            of_nonmembers = []
            for t, others in enumerate(kept):
                of_shadow = attack.scores(shadows[t], known, shadows[others], members[others])
                of_nonmembers.append(of_shadow[~members[t]].double())
            null = torch.cat(of_nonmembers)
            p_values.append(empirical_p_values(scores, null))
            strength += (scores - null.mean()) / null.std().clamp_min(1e-12) / len(self.attacks)
        return torch.stack(p_values), strength


def _ordered(scores: Tensor, ties: Tensor) -> Tensor:
    """The scores, with samples of the same score moved apart in the order of `ties`, by less than the distance to the next score."""
    levels, place = scores.unique(return_inverse=True)
    room = torch.cat([levels.diff(), levels.new_ones(1)])[place]
    return scores + 0.5 * room * torch.sigmoid(ties)


def _checked(p_values: Tensor) -> Tensor:
    if len(p_values) == 0 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise DataError(f"p-values must lie in [0, 1], one row for each of at least one attack; got shape {tuple(p_values.shape)}.")
    return p_values.double()
