"""Simple MIA: can a logistic regression on the loss tell forget samples from test samples?

    accuracy = mean over K folds of the share of held-out samples that P(forget | loss) ≷ ½ puts into the right group

0.5 = no; so says a retrained model about samples like the test set. A population attack on one model and one number a sample: its best
accuracy is that of one threshold on the loss. What a value means depends on who computed it: see `simple_mia`.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor
from torch.nn.functional import softplus

from ..checks import is_integer
from ..errors import ConfigError, DataError
from ..metrics.balanced import balanced_accuracy
from ..metrics.estimate import Estimate, check_level
from ..metrics.roc import auc
from ..rng import permutation

NEWTON = 100  # iterations at most; five to ten are enough


@final
@dataclass(frozen=True, eq=False)
class SimpleMIAResult:
    """How well a logistic regression on the loss tells forget from test samples.

    Attributes:
        accuracy: over held-out samples; 0.5 = guessing. The interval is the wider of two: the exact one over samples, and Nadeau and Bengio's over
            folds, which share training samples.
        auc: of minus the loss, for comparison: no fit, no fold, and it does not go below what the loss says.
        folds: the accuracy of each fold, (K,).
        n_forget, n_test: samples of each group that were used.
    """

    accuracy: Estimate
    auc: Estimate
    folds: Tensor
    n_forget: int
    n_test: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "accuracy": self.accuracy.to_dict(),
            "auc": self.auc.to_dict(),
            "folds": self.folds.tolist(),
            "n_forget": self.n_forget,
            "n_test": self.n_test,
        }


def simple_mia(
    forget: Float[Tensor, " n_forget"],
    test: Float[Tensor, " n_test"],
    *,
    balanced: bool = True,
    n_folds: int = 10,
    seed: int = 0,
    level: float = 0.95,
) -> SimpleMIAResult:
    """The cross-validated accuracy of a logistic regression on the loss, forget against test samples.

    Every sample is held out once. The interval must not treat folds as independent trials: their regressions share (K − 2)/(K − 1) of their
    samples. Nadeau and Bengio's correction is

        SE² = (1/K + n_held_out / n_fitted) · variance over folds,    t with K − 1 degrees of freedom

    and the exact interval over samples takes the fits as given; the wider of the two is reported.

    Use when: a table quotes "MIA" of the starting kit. Cost: K regressions with two parameters, all at once: 0.2 s at 15,000 samples.

    Args:
        forget, test: losses of one model (`loss`; entropies likewise), at least `n_folds` of each, finite.
        balanced: use all samples, weigh the classes equally, report balanced accuracy. Otherwise, as in the starting kit, the larger group is cut
            to the size of the smaller one at random, and plain accuracy is reported.
        n_folds: K ≥ 2.
        seed: of folds and cut; the global generators are not touched.
        level: confidence in (0, 1).

    Raises:
        ConfigError: n_folds or level outside its range.
        DataError: a loss is not finite, or a group has fewer than `n_folds`.

    Example:
        >>> losses = torch.linspace(0, 4, 200)
        >>> print(simple_mia(losses / 4, losses).accuracy)
        0.860 [0.817, 0.903]

    Paper: Triantafillou et al., NeurIPS 2023 machine unlearning challenge, starting kit, as used by Kurmanji et al. (SCRUB), NeurIPS 2023,
        arXiv:2302.09880. Interval: Nadeau and Bengio, Machine Learning 2003.
    Departures: K disjoint folds instead of 10 random tenths, which may overlap; intervals. The metrics of bad-teaching (Chundawat et al.) and SSD
        (Foster et al.) have the same name and are something else: fitted on the entropy of *retain* against test samples, unequal in number,
        they report the share of *forget* samples taken for members, the former by an RBF machine, the latter by a balanced logistic
        regression. Neither is an accuracy, 0.5 means nothing there, and the two are not comparable with one another; `SVCMIA` (feature
        "entropy") gives one minus such a share.
    """
    if not is_integer(n_folds, 2):
        raise ConfigError(f"n_folds must be an integer ≥ 2; got {n_folds!r}. The starting kit has 10.")
    check_level(level)
    groups = [_checked(name, losses, n_folds) for name, losses in (("forget", forget), ("test", test))]
    if not balanced:
        n = min(map(len, groups))
        groups = [group[permutation(len(group), seed, which)[:n]] for which, group in enumerate(groups)]
    losses = torch.cat(groups)
    member = torch.arange(len(losses)) < len(groups[0])
    fold = torch.cat([_folds(len(group), n_folds, seed, 2 + which) for which, group in enumerate(groups)])
    right = _right(losses, member, fold, n_folds)

    per_fold = torch.stack([_accuracy(right[fold == k], member[fold == k]) for k in range(n_folds)])
    exact = balanced_accuracy(right[member], right[~member], level)
    value = exact.value
    reach = float(stdtrit(n_folds - 1, (1 + level) / 2)) * math.sqrt(float(per_fold.var()) * (1 / n_folds + 1 / (n_folds - 1)))
    low, high = max(0.0, min(exact.low, value - reach)), min(1.0, max(exact.high, value + reach))
    area = auc(-groups[0], -groups[1], level)
    return SimpleMIAResult(Estimate(value, low, high, len(losses)), area, per_fold, *map(len, groups))


def _checked(name: str, losses: Tensor, n_folds: int) -> Tensor:
    if losses.ndim != 1 or len(losses) < n_folds:
        raise DataError(
            f"{name} losses must be one number a sample, at least one for each of {n_folds} folds; got shape {tuple(losses.shape)}. "
            "Pass more samples, or fewer folds."
        )
    losses = losses.detach().cpu().double()
    broken = ~torch.isfinite(losses)
    if broken.any():
        raise DataError(
            f"{name} losses must be finite; got {int(broken.sum())} NaN or infinite. Take them from logits: expunge.metrics.loss."
        )
    return losses


def _folds(n: int, n_folds: int, seed: int, which: int) -> Tensor:
    """The fold of each of n samples, sizes as equal as can be, int64 (n,)."""
    fold = torch.empty(n, dtype=torch.int64)
    fold[permutation(n, seed, which)] = torch.arange(n) % n_folds
    return fold


def _right(losses: Tensor, member: Tensor, fold: Tensor, n_folds: int) -> Tensor:
    """Whether each sample is put into its group by the regression that did not see it."""
    fitted = fold != torch.arange(n_folds)[:, None]  # (K, N)
    # Weights make the classes equal in each fit; in groups of one size they are (nearly) 1.
    sizes = torch.stack([(fitted & ~member).sum(1), (fitted & member).sum(1)], 1)
    weights = fitted * (fitted.sum(1, keepdim=True) / (2 * sizes))[:, member.long()]
    slope, intercept = _logistic(losses, member.double() * 2 - 1, weights)
    return (slope[fold] * losses + intercept[fold] > 0) == member


def _logistic(x: Tensor, sign: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of K weighted logistic regressions at once, penalty slope² / 2 as in scikit-learn's default; by Newton's method."""
    centre, scale = x.mean(), x.std().clamp_min(1e-12)
    columns = torch.stack([(x - centre) / scale, torch.ones_like(x)], 1)
    penalty = torch.tensor([float(scale) ** -2, 0.0], dtype=torch.float64)  # the slope is measured in units of 1 / scale

    def objective(theta: Tensor) -> Tensor:
        return (weights * softplus(-sign * (theta @ columns.T))).sum(1) + (penalty * theta**2).sum(1) / 2

    theta = torch.zeros(len(weights), 2, dtype=torch.float64)
    value = objective(theta)
    for _ in range(NEWTON):
        wrong = torch.sigmoid(-sign * (theta @ columns.T))
        gradient = penalty * theta - (weights * wrong * sign) @ columns
        hessian = torch.einsum("kn,na,nb->kab", weights * wrong * (1 - wrong), columns, columns) + torch.diag(penalty + 1e-9)
        step = torch.linalg.solve(hessian, gradient)
        length = torch.ones(len(weights), 1, dtype=torch.float64)
        for _ in range(30):  # halve steps that lead upwards
            tried = objective(theta - length * step)
            if (tried <= value).all():
                break
            length = torch.where((tried <= value)[:, None], length, length / 2)
        settled = bool((value - tried <= 1e-10 * value.abs()).all())
        theta, value = torch.where((tried <= value)[:, None], theta - length * step, theta), torch.minimum(tried, value)
        if settled:
            break
    return theta[:, 0] / scale, theta[:, 1] - theta[:, 0] * centre / scale


def _accuracy(right: Tensor, member: Tensor) -> Tensor:
    return (right[member].double().mean() + right[~member].double().mean()) / 2
