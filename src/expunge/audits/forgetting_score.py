"""The forgetting score of the NeurIPS 2023 unlearning competition, with the floor and the intervals that it lacks.

For each forget sample the margins of many unlearned models are compared with those of many retrained ones. A rule (threshold_rules.py) that calls margins
"unlearned" or "retrained" is wrong at the rates FPR and FNR; (ε, δ)-unlearning bounds how good it can be, so the best rule gives an ε:

    ε = max over rules of max( log((1 − δ − FPR) / FNR), log((1 − δ − FNR) / FPR) )
    H(ε) = 2^−⌊ε / 0.5⌋,    0 from ⌈log(N − 1)⌉ on,    F = mean of H over forget samples
    score = F · (retain accuracy, unlearned / retrained) · (test accuracy, unlearned / retrained)

This ε is the largest of many ratios of small counts, not a bound: two groups of retrained models have an ε of about 1.2 and an F of about 0.36 by thresholds alone,
and 1.6 and 0.18 with intervals, however many models there are. So F is read against the F of retrained models, and ε against the one that these models can prove (`expunge.metrics.epsilon`).

Paper: Triantafillou et al., "Are we making progress in unlearning? Findings from the first NeurIPS unlearning competition", 2024, arXiv:2406.09073.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import is_integer
from ..errors import ConfigError, DataError
from ..metrics.epsilon import EpsilonBounds, epsilon_bounds, epsilon_ceiling
from ..metrics.estimate import Estimate, check_level, proportion_interval, unsupported
from ..rng import generator
from .populations import Matched, checked_populations, matched
from .threshold_rules import Worth, best_rule, error_rates

DELTA = 1e-5
CAP = 50.0  # what the competition writes for ε = ∞
NARROW = 0.01  # a range this much narrower than the other's is taken for ε = ∞
WINDOW = 2.0  # logits: how far from the narrower group's ends the competition looks for intervals
LEAST_MODELS = 4  # with fewer H is 0 for every ε, or no models are left to prove one


class Utility(NamedTuple):
    """Accuracies of each model, as fractions: (N,) of the unlearned and (N',) of the retrained models, on retain and on test samples."""

    retain_unlearned: Float[Tensor, " N"]
    retain_retrained: Float[Tensor, " N2"]
    test_unlearned: Float[Tensor, " N"]
    test_retrained: Float[Tensor, " N2"]


@final
@dataclass(frozen=True, eq=False)
class ForgettingScore:
    """How well unlearned models hide among retrained ones, sample by sample.

    Attributes:
        quality: F, in [0, 1], higher = better. The number of the competition; not 1 for retraining itself.
        floor: F of retrained models against others. As many models a group as `normalised` is made of.
        normalised: F over the F of retrained models, both from groups of equal size; 1 = like retraining.
        score: F times the ratios of accuracies; n/a without accuracies.
        epsilon: mean plug-in ε over samples; not a bound. Of retrained models it is 1.2 by thresholds, 1.6 with intervals.
        certified: share of samples whose ε is proven to be above 0, in [0, 1]; up to 1 − level of them by chance.
        ceiling: the largest ε that this many models could prove, with perfect separation and a rule fixed before.
        epsilons: float64 (n,), the plug-in ε of each sample.
        proven: the ε of each sample that is proven; half of the models choose the rule, so that its ceiling is lower.
        n_unlearned, n_retrained, n_samples: sizes.
    """

    quality: Estimate
    floor: Estimate
    normalised: Estimate
    score: Estimate
    epsilon: Estimate
    certified: Estimate
    ceiling: float
    epsilons: Tensor
    proven: EpsilonBounds
    n_unlearned: int
    n_retrained: int
    n_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        estimates = {name: getattr(self, name).to_dict() for name in ("quality", "floor", "normalised", "score", "epsilon", "certified")}
        rest = {name: getattr(self, name) for name in ("ceiling", "n_unlearned", "n_retrained", "n_samples")}
        return estimates | rest | {"epsilons": self.epsilons.tolist(), "proven": self.proven.to_dict()}

    def __str__(self) -> str:
        return (
            f"forgetting quality {self.quality} (retrained {self.floor}), {self.normalised} of retraining's; mean plug-in ε {self.epsilon} "
            f"({self.n_unlearned} and {self.n_retrained} models could prove {self.ceiling:.2f}); ε above 0 for {self.certified:.1%} of {self.n_samples} samples "
            f"(at most {self.proven.ceiling:.2f})"
        )


def forgetting_epsilon(
    unlearned: Tensor, retrained: Tensor, *, delta: float = DELTA, intervals: bool = True, window: float | None = WINDOW
) -> Float[Tensor, " n"]:
    """The plug-in ε of each sample, float64 (n,) in [0, 50]: the competition's, by exact search. Not a bound, and not 0 for retraining itself.

    A rule with exactly one error rate of 0 is discarded, as a sign of too few models; with both 0, ε is 50. It is also 50 if the range of one group is
    less than 1 % of the other's.

    Args:
        unlearned, retrained: margins, (N, n) and (N', n), N, N' ≥ 2 (`logit_margin`).
        delta: δ in [0, 1).
        intervals: also interval rules, as the competition does.
        window: logits; the competition looks only at intervals whose ends are near the narrower group's. None = all intervals.

    Raises:
        ConfigError: a setting is outside its range.
        DataError: shapes do not fit, a margin is not finite, or there are too few models.

    Cost: n sorts of N + N' numbers, and with intervals n (N + N')² / 2 look-ups: for 1,000 samples 0.1 s with 64 models of each kind, 2 s with 256, 7 s with 512.

    Example:
        >>> margins = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> forgetting_epsilon(margins + 9, margins).item(), round(forgetting_epsilon(margins + 1.5, margins, intervals=False).item(), 3)
        (50.0, 1.099)

    Paper: arXiv:2406.09073. Departures: every rule is tried instead of a grid with a step of 0.01, whose intervals are also 0.01 apart; equal constants give 0 instead of an
    error. Known faults of google-deepmind/unlearning_evaluation that are not copied: an assertion that fails for more than one threshold, a GPU that is
    required, logits that are changed in place.
    """
    unlearned, retrained = checked_populations(unlearned=unlearned, retrained=retrained)
    if not 0 <= delta < 1:
        raise ConfigError(f"delta must be a probability in [0, 1); got {delta!r}. The competition's is 1e-5.")
    if window is not None and not window >= 0:
        raise ConfigError(f"window must be a number of logits ≥ 0, or None; got {window!r}. The competition's is 2.")
    return _epsilon(unlearned, retrained, delta=delta, intervals=intervals, window=window)


def forgetting_points(epsilon: Tensor, n_models: int) -> Tensor:
    """H(ε) of each sample, float64 in [0, 1]: 2^−⌊ε / 0.5⌋, and 0 from ⌈log(n_models − 1)⌉ on, the largest that so many models can show.

    Args:
        epsilon: ≥ 0.
        n_models: of the smaller group, ≥ 2.

    Example:
        >>> forgetting_points(torch.tensor([0.0, 0.49, 0.5, 1.7, 50.0]), 64).tolist()
        [1.0, 1.0, 0.5, 0.125, 0.0]
    """
    points = torch.exp2(-(epsilon.double() / 0.5).floor())
    return torch.where(epsilon < math.ceil(math.log(n_models - 1)), points, 0.0)


def forgetting_score(
    unlearned: Tensor,
    retrained: Tensor,
    second: Tensor | None = None,
    *,
    utility: Utility | None = None,
    intervals: bool = True,
    level: float = 0.95,
    replicates: int = 100,
    seed: int = 0,
) -> ForgettingScore:
    """The competition's score, F against its floor, and the ε that can be proven, with intervals.

    Intervals: value ± z · SE, where SE² is the variance over bootstrap samples of the models plus the variance over samples. The spread of the bootstrap
    is used and not its percentiles: a model drawn twice looks like evidence, so that the resampled F is lower than F (0.26 for 0.34 with 64 models).

    Args:
        unlearned: (N, n) margins of unlearned models on the forget set, N ≥ 4.
        retrained: (N', n) of retrained models, N' ≥ 4; best as many.
        second: (N'', n) of further retrained models for the floor. None: two halves of `retrained` (6 or more), and F is normalised by groups of half size.
        utility: accuracies of all models; None = no `score`.
        intervals: as in `forgetting_epsilon`.
        level: confidence in (0, 1).
        replicates: bootstrap samples of models, ≥ 2.
        seed: of bootstrap, halves and split; the global generators are not touched.

    Raises:
        ConfigError: a setting is outside its range.
        DataError: shapes do not fit, a number is not finite, or there are too few models.

    Cost: about 2 · replicates times `forgetting_epsilon`: half a minute for 1,000 samples and 64 models of each kind.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> unlearned, retrained = (torch.randn(32, 100, generator=rng) for _ in range(2))
        >>> found = forgetting_score(unlearned, retrained, intervals=False)
        >>> round(found.quality.value, 1), found.normalised.low < 1 < found.normalised.high, f"{found.ceiling:.2f}"
        (0.3, True, '2.10')

    Paper: arXiv:2406.09073. Departures: floor, normalisation, certified ε and all intervals are ours; of unequal groups the smaller decides where H is 0.
    """
    unlearned, retrained = checked_populations(unlearned=unlearned, retrained=retrained, least=LEAST_MODELS)
    if second is not None:
        second, _ = checked_populations(second=second, retrained=retrained, least=LEAST_MODELS)
    _check_utility(utility, len(unlearned), len(retrained))
    z = NormalDist().inv_cdf((1 + check_level(level)) / 2)
    if not is_integer(replicates, 2):
        raise ConfigError(f"replicates must be an integer ≥ 2; got {replicates!r}. Pass 100.")

    def search(a: Tensor, b: Tensor) -> Tensor:
        return _epsilon(a, b, delta=DELTA, intervals=intervals, window=WINDOW)

    epsilons, n = search(unlearned, retrained), unlearned.shape[1]
    points = forgetting_points(epsilons, min(len(unlearned), len(retrained)))
    ratio = _ratio(utility)
    quality, epsilon, score = float(points.mean()), float(epsilons.mean()), float(points.mean()) * ratio
    rng, drawn = generator(seed), []
    for _ in range(replicates):
        i, j = (torch.randint(len(x), (len(x),), generator=rng) for x in (unlearned, retrained))
        found = search(unlearned[i], retrained[j])
        mean = forgetting_points(found, min(len(i), len(j))).mean()
        drawn.append(torch.stack([mean, mean * _ratio(utility, i, j), found.mean()]))
    spread = torch.stack(drawn).var(0).tolist()

    def estimate(value: float, models: float, samples: float) -> Estimate:
        reach = z * math.sqrt(models + samples / n)
        low, high = max(0.0, value - reach), value + reach
        if reach == 0 and value <= 1:  # all samples alike in every resample: the exact interval of n independent ones
            low, high = proportion_interval(value * n, n, level)
        return Estimate(value, low, high, n, "one sample: nothing is known about others" if n == 1 else None)

    samples = [float(x.var()) if n > 1 else 0.0 for x in (points, epsilons)]
    quality_estimate = estimate(quality, spread[0], samples[0])
    score_estimate = (
        unsupported("needs the accuracies of all models, utility=", n)
        if utility is None
        else estimate(score, spread[1], samples[0] * ratio**2)
    )
    floor, normalised = _against_floor(unlearned, retrained, second, search, estimate, rng=rng, replicates=replicates, seed=seed)
    proven = epsilon_bounds(unlearned, retrained, DELTA, level, seed=seed)
    hits, alone = int((proven.bounds > 0).sum()), "the interval leaves out that samples share models"
    return ForgettingScore(
        quality_estimate, floor, normalised, score_estimate, estimate(epsilon, spread[2], samples[1]),
        Estimate(hits / n, *proportion_interval(hits, n, level), n, alone), epsilon_ceiling(len(unlearned), len(retrained), DELTA, level),
        epsilons, proven, len(unlearned), len(retrained), n,
    )  # fmt: skip


def _epsilon(unlearned: Tensor, retrained: Tensor, *, delta: float, intervals: bool, window: float | None) -> Tensor:
    n_u, n_r = len(unlearned), len(retrained)
    worth = Worth(_plug_in(n_u, n_r, delta), _plug_in(n_r, n_u, delta).T)
    best = best_rule(unlearned, retrained, worth, intervals=intervals, window=window).clamp(0, CAP)
    widths = torch.stack([x.amax(0) - x.amin(0) for x in (unlearned, retrained)])
    return torch.where(widths.amin(0) < NARROW * widths.amax(0), CAP, best)  # of two constants neither is narrower


def _plug_in(n_inside: int, n_outside: int, delta: float) -> Tensor:
    """ε of a rule that holds a scores of the group it is for and b of the other, (A, B); −∞ where the rule is discarded."""
    fnr, fpr = error_rates(n_inside, n_outside)
    epsilon = torch.maximum((1 - delta - fpr).clamp_min(0).log() - fnr.log(), (1 - delta - fnr).clamp_min(0).log() - fpr.log())
    one_zero, both_zero = (fnr == 0) ^ (fpr == 0), (fnr == 0) & (fpr == 0)
    return torch.where(both_zero, math.inf, torch.where(one_zero, -math.inf, epsilon))


def _against_floor(
    unlearned: Tensor,
    retrained: Tensor,
    second: Tensor | None,
    search: Callable[[Tensor, Tensor], Tensor],
    estimate: Callable[[float, float, float], Estimate],
    *,
    rng: torch.Generator,
    replicates: int,
    seed: int,
) -> tuple[Estimate, Estimate]:
    """F of retrained against retrained models, and F over it: groups of the same size in both, so that a bias by size cancels."""
    n, groups = unlearned.shape[1], matched(unlearned, retrained, second, LEAST_MODELS, seed)
    if groups is None:
        short = unsupported(f"the floor needs {2 * LEAST_MODELS} models of each kind, or second=", n)
        return short, short

    def both(groups: Matched) -> tuple[Tensor, Tensor]:
        *ours, floor = (forgetting_points(search(a, b), min(len(a), len(b))) for a, b in (*groups.ours, groups.floor))
        return torch.stack(ours).mean(0), floor

    top, bottom = both(groups)
    floor = float(bottom.mean())
    if floor == 0:
        note = "retrained models are told apart on every sample"
        return Estimate(0.0, 0.0, 1.0, n, note), unsupported(f"{note}: nothing can be normalised by a floor of 0", n)
    ratio, drawn = float(top.mean()) / floor, []
    for _ in range(replicates):
        means = [x.mean() for x in both(groups.redrawn(rng))]
        drawn.append(torch.stack([means[1], (means[0] - ratio * means[1]) / floor]))  # linear in both, so that a small floor does no harm
    spread = torch.stack(drawn).var(0).tolist()
    samples = [float(x.var()) if n > 1 else 0.0 for x in (bottom, (top - ratio * bottom) / floor)]
    return estimate(floor, spread[0], samples[0]), estimate(ratio, spread[1], samples[1])


def _ratio(utility: Utility | None, i: Tensor | slice = slice(None), j: Tensor | slice = slice(None)) -> float:
    """Retain accuracy over the retrained models', times the same of the test accuracy, of these models."""
    if utility is None:
        return 1.0
    ours, theirs = (utility.retain_unlearned[i], utility.test_unlearned[i]), (utility.retain_retrained[j], utility.test_retrained[j])
    return math.prod(float(a.double().mean() / b.double().mean()) for a, b in zip(ours, theirs, strict=True))


def _check_utility(utility: Utility | None, n_unlearned: int, n_retrained: int) -> None:
    for name, values in (utility._asdict() if utility else {}).items():
        n = n_unlearned if name.endswith("unlearned") else n_retrained
        if values.shape != (n,) or not bool(((values >= 0) & (values <= 1)).all()) or (name.endswith("retrained") and not values.sum() > 0):
            raise DataError(
                f"{name} must hold {n} accuracies as fractions in [0, 1], not all 0 of retrained models; got {values.tolist()[:5]}, {len(values)} of them."
            )
