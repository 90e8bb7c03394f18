"""U-LiRA: is this margin more like those of models that trained on the sample and then forgot it, or of models that never saw it?

It is LiRA whose IN models have been through unlearning:

    Λ = log N(φ; μ_u, σ_u²) − log N(φ; μ_o, σ_o²)        u: trained on the sample, then unlearned it    o: never trained on it

An AUC of 0.5 is ideal: unlearned models cannot be told from retrained ones. The models here are both shadows and targets, each scored by fits
that leave it out.

Paper: Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy", SaTML 2025, arXiv:2403.01218.
"""

import itertools

import torch
from torch import Tensor

from ..metrics.estimate import Estimate
from ..rng import permutation
from .lira import Gaussian, Group, LiRA, lira
from .populations import checked_margins
from .told_apart import ULiRAResult, check_report, contrast, estimates

HALVINGS = 10  # as many as six models have


def u_lira(target: Tensor, unlearned: Tensor, unseen: Tensor, variance: str = "shrunk", *, prior_weight: float = 10.0) -> Tensor:
    """U-LiRA scores of one unlearned model, (N,) float64, higher = more likely to have been trained on the sample.

    Args:
        target: (N,) margins of the model under audit (`logit_margin`). It must not be among the other models.
        unlearned: (A, N), A ≥ 2, of models that trained on the samples and then unlearned them.
        unseen: (B, N), B ≥ 2, of models that never saw them.
        variance, prior_weight: as in `lira`.

    Raises:
        ConfigError: unknown variance, or a negative prior weight.
        DataError: shapes do not fit, a margin is not finite, or there are too few models.

    Cost: O((A + B) N).

    Example:
        >>> round(u_lira(torch.tensor([4.5]), torch.tensor([[4.0], [5.0]]), torch.tensor([[0.0], [1.0]])).item(), 6)
        16.0

    Paper: Hayes et al., SaTML 2025, arXiv:2403.01218. Departures: "shrunk" variances, for few models.
    """
    unlearned = checked_margins("unlearned models", unlearned, 2)
    n_samples = unlearned.shape[1]
    unseen, target = checked_margins("unseen models", unseen, 2, n_samples), checked_margins("the target", target[None], 1, n_samples)[0]
    rows = torch.arange(len(unlearned) + len(unseen)) < len(unlearned)
    included = rows[:, None].expand(-1, n_samples)
    return lira(target, torch.cat([unlearned, unseen]), included, variance, prior_weight=prior_weight)


def u_lira_class(
    unlearned: Tensor,
    unseen: Tensor,
    *,
    variance: str = "shrunk",
    prior_weight: float = 10.0,
    fpr: float = 0.01,
    level: float = 0.95,
) -> ULiRAResult:
    """U-LiRA where all models forgot the same samples, such as a class: every unlearned model against every model that never saw them.

    For each pair both models are left out of the fit, so that it is independent of both and group sizes say nothing about who is who.
    AUC, balanced accuracy and TPR are taken within the pair (scores of different fits are not comparable) and averaged over all pairs.

    The interval is value ± t · SE with min(A, B) − 1 degrees of freedom: a two-sample U-statistic's variance over models, times
    2.5, plus the variance over samples, each sample's two roles counted as one. Times 2.5, because fits share models: what one model does
    to the fits of the others is at least as large as what it does as a target, and is not seen in its own mean. That is a rule of thumb
    checked on noise (95 % intervals cover 0.5 in 95 to 100 % of nulls where whole models differ by one standard deviation of a sample, and
    in about 90 % where they differ by more), not a theorem. The interval covers new models of the same recipe and new samples; not
    other recipes. Where no spread is seen, or fewer than 8 models a side are separated perfectly to within one, it is the exact interval of
    min(A, B) independent trials.

    Args:
        unlearned: (A, N) margins, A ≥ 3, of models that trained on all the samples and unlearned them.
        unseen: (B, N), B ≥ 3, of models that never saw them.
        variance, prior_weight: as in `lira`.
        fpr: false-positive rate as a fraction in (0, 1]; N must be at least 5 / fpr, or the TPR is n/a.
        level: confidence in (0, 1).

    Raises:
        ConfigError: a setting is outside its range.
        DataError: shapes do not fit, a margin is not finite, or there are too few models.

    Cost: A + B fits and A · B sorts of N scores.

    Example:
        >>> margins = torch.linspace(0, 1, 8)[:, None] + torch.linspace(-2, 2, 100)
        >>> print(u_lira_class(margins[:4] + 5, margins[4:]).auc)
        1.000 [0.398, 1.000]

    Paper: Hayes et al., SaTML 2025, arXiv:2403.01218. Departures: one class and few models, held out in pairs, as in Kodge et al., TMLR
    2024, who hold out one pair only.
    """
    check_report(fpr, level)
    settings = LiRA(variance=variance, prior_weight=prior_weight)  # which checks both
    unlearned = checked_margins("unlearned models", unlearned, 3)
    unseen = checked_margins("unseen models", unseen, 3, unlearned.shape[1])
    centre = torch.cat([unlearned, unseen]).mean(0)  # so that sums of squares lose no digits
    unlearned, unseen = unlearned - centre, unseen - centre
    fits_u, fits_o = _fits_without_each(unlearned, settings), _fits_without_each(unseen, settings)
    own_u = [fit.log_density(x) for fit, x in zip(fits_u, unlearned, strict=True)]
    own_o = [fit.log_density(x) for fit, x in zip(fits_o, unseen, strict=True)]

    n_u, n_o, n = len(unlearned), len(unseen), unseen.shape[1]
    values, influence = torch.empty(3, n_u, n_o, dtype=torch.float64), torch.zeros(3, n, dtype=torch.float64)
    for i in range(n_u):
        for j in range(n_o):
            terms = contrast(own_u[i] - fits_o[j].log_density(unlearned[i]), fits_u[i].log_density(unseen[j]) - own_o[j], fpr)
            values[:, i, j] = terms.values
            influence += (terms.of_members + terms.of_nonmembers) / (n_u * n_o)
    spread = values.mean(2).var(1) / n_u + values.mean(1).var(1) / n_o
    found = estimates(values.mean((1, 2)), spread, influence, trials=min(n_u, n_o), n_nonmembers=n, fpr=fpr, level=level)
    return ULiRAResult(*found, fpr, n_u, n_o, n)


def u_lira_floor(unseen: Tensor, *, variance: str = "shrunk", prior_weight: float = 10.0, seed: int = 0) -> Estimate:
    """The gap |AUC − 0.5| of `u_lira_class` between two groups of retrained models: what it finds where nothing is to be found.

    Value: the mean over 10 random halvings of the B models. low and high are the smallest and the largest of them, not a confidence interval. n is B.
    Groups of B / 2 differ more by chance than groups of B: on noise, the floor is about 1.5 times (1.1 to 1.8 for 6 to 16 models) the gap between B equal
    models and B others. A gap below the floor may be chance.

    Args:
        unseen: (B, N) margins, B ≥ 6, of models that never saw the samples.
        variance, prior_weight: as in `lira`.
        seed: of the halvings; the global generators are not touched.

    Raises:
        ConfigError: a setting is outside its range.
        DataError: the shape does not fit, a margin is not finite, or there are too few models.

    Cost: 10 times `u_lira_class` of B / 2 models a side.

    Example:
        >>> noise = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
        >>> floor = u_lira_floor(noise)
        >>> 0 <= floor.low < floor.value < floor.high < 0.1
        True
    """
    unseen = checked_margins("unseen models", unseen, 6)
    gaps = [
        u_lira_class(unseen[first], unseen[second], variance=variance, prior_weight=prior_weight).gap.value
        for first, second in _halvings(len(unseen), seed)
    ]
    return Estimate(sum(gaps) / len(gaps), min(gaps), max(gaps), len(unseen))


def _fits_without_each(models: Tensor, settings: LiRA) -> list[Gaussian]:
    """For each model the Gaussians of all the others."""
    everywhere = torch.ones(models.shape[1], dtype=torch.bool)
    group = Group(torch.full_like(models[0], len(models)), models.sum(0), models.square().sum(0))
    return [group.without(one, everywhere).gaussian(settings.variance, settings.prior_weight) for one in models]


def _halvings(n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """HALVINGS distinct ways to cut n ≥ 6 models into n // 2 and the rest; of equal halves, who comes first makes no difference."""
    found: dict[frozenset[frozenset[int]], tuple[Tensor, Tensor]] = {}
    for draw in itertools.count():
        order = permutation(n, seed, draw)
        halves = order[: n // 2], order[n // 2 :]
        found.setdefault(frozenset(frozenset(half.tolist()) for half in halves), halves)
        if len(found) == HALVINGS:
            break
    return list(found.values())
