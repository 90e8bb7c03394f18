"""RULI: two games about an unlearned model, and one about which samples to ask.

For each sample, shadow models of three kinds give margins φ: IN (trained on it), OUT (never), UNLEARN (trained, then unlearned). Kernel densities of the
last two make the score

    Λ(x) = log f_u(φ) − log f_o(φ),    f_g(φ) = mean_m N(φ; φ_m, h²),    h = 1.06 σ n^(−1/5)

    privacy    forgotten samples against samples that the target never saw, both scored on the unlearned target
    efficacy   forgotten samples scored on the unlearned target against the *same* samples scored on a retrained model

0.5 is ideal in both. Random samples hide the risk, because most samples are easy and leave no trace: the games are also played on vulnerable and on
protected samples apart, by what LiRA would have found before unlearning.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ConfigError, DataError
from ..metrics.estimate import Estimate, proportion_interval
from ..metrics.roc import auc, tpr_at_fpr
from .lira import Group
from .populations import checked_margins
from .told_apart import check_report, contrast

ONE_MODEL = "one target model: the interval covers samples, not models"
PRIOR_WEIGHT = 10.0  # how many models the pooled variance is worth, as in lira.py
SMALLEST = 1e-6  # bandwidth, in logits: constant margins give no evidence instead of 0/0


@final
@dataclass(frozen=True, eq=False)
class RULIGame:
    """One game on one set of samples.

    Attributes:
        auc: in [0, 1], 0.5 = ideal. In the efficacy game the same samples are on both sides, and the interval is paired.
        tpr: share of members found at `fpr`.
        fpr: the false-positive rate asked for.
        n_members, n_nonmembers: how many scores of each kind.
    """

    auc: Estimate
    tpr: Estimate
    fpr: float
    n_members: int
    n_nonmembers: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        counts = {name: getattr(self, name) for name in ("fpr", "n_members", "n_nonmembers")}
        return {"auc": self.auc.to_dict(), "tpr": self.tpr.to_dict()} | counts


def ruli_scores(target: Tensor, unlearned: Tensor, unseen: Tensor, *, bandwidth: float | None = None) -> Float[Tensor, " N"]:
    """Λ of each sample, (N,) float64, higher = more likely trained on and unlearned.

    The bandwidth follows the data, sample by sample: σ² is the variance within the two groups, shrunk towards its mean over samples (few models say
    little about one sample), n the size of the smaller group. It is the same for both groups, or far from all shadow models the narrower kernel
    would decide alone.

    Args:
        target: (N,) margins of the model under audit (`logit_margin`), not clipped.
        unlearned: (A, N), A ≥ 2, of models that trained on the samples and unlearned them.
        unseen: (B, N), B ≥ 2, of models that never saw them.
        bandwidth: h > 0 in logits for all samples, instead of the rule; the public code has 1.0.

    Raises:
        ConfigError: bandwidth is not positive.
        DataError: shapes do not fit, a margin is not finite, or there are too few models.

    Cost: O((A + B) N).

    Example:
        >>> unlearned, unseen = torch.tensor([[4.0], [5.0]]), torch.tensor([[0.0], [1.0]])
        >>> ruli_scores(torch.tensor([2.5]), unlearned, unseen).abs().item() < 1e-9
        True

    Paper: Naderloui et al., "Rectifying Privacy and Efficacy Measurements in Machine Unlearning: A New Inference Attack Perspective", USENIX Security
        2025, arXiv:2506.13009.
    Departures: the bandwidth. Known faults of the public code that are not copied: margins from probabilities clipped at 1e-6, so that |φ| ≤ 13.8;
        a bandwidth of 1.0 whatever the data; in the efficacy game, scores of the original model in the place of the retrained one's.
    """
    unlearned = checked_margins("unlearned models", unlearned, 2)
    n = unlearned.shape[1]
    unseen, target = checked_margins("unseen models", unseen, 2, n), checked_margins("the target", target[None], 1, n)[0]
    if bandwidth is None:
        h = _bandwidth(unlearned, unseen)
    elif bandwidth > 0 and math.isfinite(bandwidth):
        h = torch.full_like(target, bandwidth)
    else:
        raise ConfigError(f"bandwidth must be a number > 0 or None; got {bandwidth!r}. None follows the data.")
    return _log_density(target, unlearned, h) - _log_density(target, unseen, h)


def ruli_privacy(
    target: Tensor,
    forgotten: Tensor,
    unlearned: Tensor,
    unseen: Tensor,
    *,
    fpr: float = 0.01,
    level: float = 0.95,
    bandwidth: float | None = None,
) -> RULIGame:
    """The privacy game: can forgotten samples be told from samples never seen, by the unlearned model?

    Args:
        target: (N,) margins of the unlearned target on both kinds of samples.
        forgotten: bool (N,), True = the target trained on it and unlearned it, False = it never saw it.
        unlearned, unseen, bandwidth: as in `ruli_scores`, on the same samples.
        fpr: in (0, 1]. level: confidence in (0, 1).

    Raises:
        ConfigError, DataError: as `ruli_scores`; or one kind of sample is missing.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> margins, forgotten = torch.randn(21, 400, generator=rng), torch.arange(400) < 200
        >>> margins[:10] += 3  # unlearning left a trace
        >>> print(ruli_privacy(margins[20] + 3 * forgotten, forgotten, margins[:10], margins[10:20]).auc.value > 0.95)
        True
    """
    check_report(fpr, level)
    scores = ruli_scores(target, unlearned, unseen, bandwidth=bandwidth)
    if forgotten.dtype != torch.bool or forgotten.shape != scores.shape or forgotten.all() or not forgotten.any():
        raise DataError(
            f"forgotten must be bool of shape ({len(scores)},) with samples of both kinds; got {forgotten.dtype} of shape "
            f"{tuple(forgotten.shape)} with {int(forgotten.sum())} forgotten. Add samples that the target never saw."
        )
    members, nonmembers = scores[forgotten], scores[~forgotten]
    area = auc(members, nonmembers, level)
    noted = Estimate(area.value, area.low, area.high, area.n, ONE_MODEL)
    return RULIGame(noted, tpr_at_fpr(members, nonmembers, fpr, level), fpr, len(members), len(nonmembers))


def ruli_efficacy(
    target: Tensor,
    retrained: Tensor,
    unlearned: Tensor,
    unseen: Tensor,
    *,
    fpr: float = 0.01,
    level: float = 0.95,
    bandwidth: float | None = None,
) -> RULIGame:
    """The efficacy game: can the unlearned model be told from a retrained one, by its margins on the same forgotten samples?

    Args:
        target: (N,) margins of the unlearned target on forgotten samples.
        retrained: (N,) margins of a model retrained without them, on the same samples. Not of the original model.
        unlearned, unseen, bandwidth: as in `ruli_scores`, on the same samples.
        fpr: in (0, 1]. level: confidence in (0, 1).

    Raises:
        ConfigError, DataError: as `ruli_scores`.

    Example:
        >>> margins = torch.randn(12, 300, generator=torch.Generator().manual_seed(0))
        >>> game = ruli_efficacy(margins[0], margins[0], margins[2:7], margins[7:])  # unlearned as retrained
        >>> print(game.auc)
        0.500 [0.500, 0.500]
    """
    check_report(fpr, level)
    members, nonmembers = (ruli_scores(x, unlearned, unseen, bandwidth=bandwidth) for x in (target, retrained))
    area = _paired_auc(members, nonmembers, fpr, level)
    return RULIGame(area, tpr_at_fpr(members, nonmembers, fpr, level), fpr, len(members), len(nonmembers))


def vulnerability(seen: Tensor, unseen: Tensor) -> Float[Tensor, " N"]:
    """How far LiRA would on average accuse a model that trained on the sample, (N,) ≥ 0: E_IN[Λ] = KL(N_in ‖ N_out), before unlearning.

        log(σ_out / σ_in) + (σ_in² + (μ_in − μ_out)²) / (2 σ_out²) − ½

    A property of the sample and the recipe: no target enters, so that choosing samples by it does not choose by the answer. Choosing by the target's
    own LiRA score would: members score higher.

    Args:
        seen: (C, N), C ≥ 2, margins of models that trained on the samples and unlearned nothing.
        unseen: (B, N), B ≥ 2, of models that never saw them.

    Raises:
        DataError: shapes do not fit, a margin is not finite, or there are too few models.

    Example:
        >>> seen, unseen = torch.tensor([[9.0, 1.0], [11.0, -1.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> [round(x, 3) for x in vulnerability(seen, unseen).tolist()]
        [25.0, 0.0]
    """
    seen = checked_margins("models that saw the samples", seen, 2)
    unseen = checked_margins("unseen models", unseen, 2, seen.shape[1])
    centre = torch.cat([seen, unseen]).mean(0)  # so that sums of squares lose no digits
    (mean_in, sd_in), (mean_out, sd_out) = (_group(x - centre).gaussian("shrunk", PRIOR_WEIGHT) for x in (seen, unseen))
    return (sd_out / sd_in).log() + (sd_in**2 + (mean_in - mean_out) ** 2) / (2 * sd_out**2) - 0.5


def vulnerable(prior: Float[Tensor, " N"], share: float = 0.5) -> Bool[Tensor, " N"]:
    """The `share` of samples with the highest prior scores (`vulnerability`), bool (N,); the others are protected. At least one of each.

    Raises:
        ConfigError: share is not in (0, 1). DataError: fewer than two samples.

    Example:
        >>> vulnerable(torch.tensor([0.1, 3.0, 0.2, 0.0]), share=0.25)
        tensor([False,  True, False, False])
    """
    if not 0 < share < 1:
        raise ConfigError(f"share must be a fraction in (0, 1); got {share!r}. Pass 0.5 for the upper half.")
    if len(prior) < 2:
        raise DataError(f"vulnerable and protected samples need at least two; got {len(prior)}.")
    k = min(max(round(share * len(prior)), 1), len(prior) - 1)
    chosen = torch.zeros(len(prior), dtype=torch.bool)
    chosen[prior.cpu().argsort(descending=True, stable=True)[:k]] = True
    return chosen


def _group(margins: Tensor) -> Group:
    return Group(torch.full_like(margins[0], len(margins)), margins.sum(0), margins.square().sum(0))


def _bandwidth(a: Tensor, b: Tensor) -> Tensor:
    within = ((a - a.mean(0)).square().sum(0) + (b - b.mean(0)).square().sum(0)) / (freedom := len(a) + len(b) - 2)
    shrunk = (PRIOR_WEIGHT * within.mean() + freedom * within) / (PRIOR_WEIGHT + freedom)
    return (1.06 * shrunk.sqrt() * min(len(a), len(b)) ** -0.2).clamp_min(SMALLEST)


def _log_density(x: Tensor, models: Tensor, h: Tensor) -> Tensor:
    """Without the constant of the kernel, which cancels."""
    return (-0.5 * ((x - models) / h).square()).logsumexp(0) - math.log(len(models))


def _paired_auc(members: Tensor, nonmembers: Tensor, fpr: float, level: float) -> Estimate:
    """The AUC where member i and non-member i are one sample: what a sample does on both sides is counted as one contribution."""
    terms, n = contrast(members, nonmembers, fpr), len(members)
    value = float(terms.values[0])
    if torch.equal(members, nonmembers):  # one model against itself
        return Estimate(value, value, value, 2 * n, ONE_MODEL)
    error = float((terms.of_members[0] + terms.of_nonmembers[0]).std()) / math.sqrt(n) if n > 1 else 0.0
    if error == 0 or n * min(value, 1 - value) < 1 - 1e-9:
        low, high = proportion_interval(value * n, n, level)
    else:
        reach = NormalDist().inv_cdf((1 + level) / 2) * error / (value * (1 - value))
        low, high = (1 / (1 + math.exp(-(math.log(value / (1 - value)) + x))) for x in (-reach, reach))
    return Estimate(value, low, high, 2 * n, ONE_MODEL)
