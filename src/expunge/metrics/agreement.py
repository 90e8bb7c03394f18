"""How far an unlearned model's answers are from those of retrained models, image by image and in accuracies, and how far retrained models are from one another.

    D(θ) = mean over images x and retrained models r of d(p_θ(x), p_r(x)),    floor = the same over pairs of retrained models,    excess = D(θ) − floor

d is the Jensen-Shannon divergence in nats, or the total variation. A model that is just one more retrained model has an excess of 0 on average; a D of 0 is
nothing to strive for. (`total_variation` holds a model against the mean of retrained models instead, which is nearer to each than they are to one another.)
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ..checks import choose
from .answers import ONE_REFERENCE, check_references, half_width
from .estimate import Estimate, check_level, unsupported
from .signals import check_logits, jsd

ONE_IMAGE = "one image: nothing is known about others"
LARGEST = {"jsd": math.log(2), "tv": 1.0}


@final
@dataclass(frozen=True, eq=False)
class Agreement:
    """How far a model is from retrained models, and they from one another, on one set of images.

    Attributes:
        distance: mean distance to a retrained model, in [0, ln 2] (JSD, nats) or [0, 1] (TV).
        floor: mean distance between two retrained models; n/a with one.
        excess: distance − floor, signed, paired over images; 0 = like retraining. n/a with one retrained model.
        per_image: float64 (N,), the distance on each image, mean over retrained models.
        measure: "jsd" or "tv".
        n_retrained: how many.
    """

    distance: Estimate
    floor: Estimate
    excess: Estimate
    per_image: Tensor
    measure: str
    n_retrained: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        estimates = {name: getattr(self, name).to_dict() for name in ("distance", "floor", "excess")}
        return estimates | {"measure": self.measure, "n_retrained": self.n_retrained, "per_image": self.per_image.tolist()}

    def __str__(self) -> str:
        return (
            f"{self.measure.upper()} to {self.n_retrained} retrained models {self.distance}, among them {self.floor}, excess {self.excess}"
        )


def agreement(logits: Tensor, references: Tensor, *, measure: str = "jsd", level: float = 0.95) -> Agreement:
    """The mean distance of a model's answers to those of retrained models on the same images, beside the distance between retrained models.

    Call it on forget, retain and test images apart. Intervals cover which images were drawn and which retrained models were trained. A retrained model may
    lie farther from all others than they do from one another, by its seed; with d(i, j) = μ + a_i + a_j the variance of a is measured among the retrained models, and
    that of `excess` is a's own (1 + 1 / M): for 95 % of retrained models the interval holds 0.

    Args:
        logits: (N, K) of the audited model.
        references: (M, N, K) of M ≥ 1 retrained models; 3 or more for a full interval of the excess.
        measure: "jsd" or "tv".
        level: confidence in (0, 1).

    Raises:
        ConfigError: level is out of range. MissingError: an unknown measure.
        DataError: shapes do not fit.
        ModelError: logits are NaN or infinite.

    Cost: M (M + 1) / 2 passes over N · K numbers.

    Example:
        >>> references = torch.tensor([[[0.0, 90.0]] * 9, [[0.0, 90.0]] * 9, [[0.0, 90.0]] * 9])
        >>> found = agreement(torch.tensor([[0.0, 90.0]] * 8 + [[90.0, 0.0]]), references)
        >>> round(found.distance.value * 9 / math.log(2), 6), found.floor.value
        (1.0, 0.0)

    Departures: public code calls KL with its arguments exchanged, which is not bounded by ln 2, and averages over classes as if they were images.
    """
    check_references(references, tuple(logits.shape))
    check_finite(logits, "logits")
    check_level(level)
    distance = _distance(choose("measure", measure, LARGEST))
    m, n = len(references), len(logits)
    to_each = torch.stack([distance(logits, other) for other in references])
    pairs = torch.zeros(m, m, n, dtype=torch.float64)
    for i, j in itertools.combinations(range(m), 2):
        pairs[i, j] = pairs[j, i] = distance(references[i], references[j])

    per_image, models = to_each.mean(0), to_each.mean(1)
    value = estimate_over_images(per_image, float(models.var()) / m if m > 1 else 0.0, m, level, ONE_REFERENCE if m == 1 else None)
    if m == 1:
        floor = excess = unsupported("needs two retrained models, got 1", n)
    else:
        floor_per_image = pairs.sum((0, 1)) / (m * (m - 1))
        own, two = (
            own_variance(pairs.mean(2)),
            "two retrained models: the interval leaves out how retrained models differ" if m == 2 else None,
        )
        floor = estimate_over_images(floor_per_image, 4 * own / m, m, level, two)
        excess = estimate_over_images(per_image - floor_per_image, own * (1 + 1 / m), m, level, two)
    top = LARGEST[measure]
    return Agreement(within(value, 0.0, top), within(floor, 0.0, top), within(excess, -top, top), per_image, measure, m)


def jsd64(a: Tensor, b: Tensor) -> Tensor:
    """The JSD of each row, in float64."""
    return jsd(a.double(), b.double())


def _total_variation(a: Tensor, b: Tensor) -> Tensor:
    return (a.double().softmax(1) - b.double().softmax(1)).abs().sum(1) / 2


def _distance(measure: str) -> Callable[[Tensor, Tensor], Tensor]:
    return {"jsd": jsd64, "tv": _total_variation}[measure]


def own_variance(pairs: Tensor) -> float:
    """The variance over retrained models of a model's own share a in d(i, j) = μ + a_i + a_j, from the mean distances (M, M); 0 for two models."""
    m = len(pairs)
    return float((pairs.sum(1) / (m - 2)).var()) if m > 2 else 0.0


def estimate_over_images(per_image: Tensor, models: float, n_models: int, level: float, note: str | None) -> Estimate:
    """The mean over images, with the variance over images and a variance over retrained models that is given; not cut to where it can be."""
    n, value = len(per_image), float(per_image.mean())
    if n == 1:
        return Estimate(value, -math.inf, math.inf, 1, ONE_IMAGE)
    reach = half_width(float(per_image.var()) / n, models, n_models, level)
    return Estimate(value, value - reach, value + reach, n, note)


def within(estimate: Estimate, low: float, high: float) -> Estimate:
    """The estimate with its interval cut to where the truth can be."""
    if not estimate.supported:
        return estimate
    return Estimate(estimate.value, max(low, estimate.low), min(high, estimate.high), estimate.n, estimate.note)


def check_finite(logits: Tensor, what: str) -> None:
    """Raises DataError unless logits are (N, K), ModelError unless they are finite."""
    check_logits(logits, torch.zeros(logits.shape[:1], dtype=torch.int64, device=logits.device), what)
