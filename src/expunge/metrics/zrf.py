"""How far the answers on forget images are from random ones (ZRF), or from those on unseen images of the same class (RF-JSD): no retrained model is needed."""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from ..checks import is_integer
from ..errors import ConfigError, DataError
from ..rng import generator
from .agreement import check_finite, estimate_over_images, jsd64, within
from .answers import check_references
from .bootstrap import blocks, draw_counts
from .estimate import Estimate, check_level
from .signals import check_logits


def zrf(logits: Tensor, incompetent: Tensor, level: float = 0.95) -> Estimate:
    """ZRF = 1 − mean over forget images of JSD(unlearned(x), incompetent(x)), in [1 − ln 2, 1]; 1 = answers like a model that was never trained.

    It says how random the answers are, not whether they are those of retraining: compare it with the ZRF of a retrained model.

    Args:
        logits: of the unlearned model on forget images.
        incompetent: of a model with random weights, on the same images.
        level: confidence in (0, 1).

    Raises:
        ConfigError: level is out of range.
        DataError: shapes do not fit.
        ModelError: logits are NaN or infinite.

    Example:
        >>> opposite = torch.tensor([[90.0, 0.0], [0.0, 90.0]])
        >>> zrf(opposite, opposite).value, round(zrf(opposite, opposite.flip(0)).value, 3)
        (1.0, 0.307)

    Paper: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023, arXiv:2205.08096. Departures: the formula, in nats; the public code exchanges the arguments of KL
    and averages over classes, too.
    """
    check_references(incompetent[None], tuple(logits.shape))
    check_finite(logits, "logits")
    check_level(level)
    estimate = estimate_over_images(1 - jsd64(logits, incompetent), 0.0, 1, level, None)
    return within(estimate, 1 - math.log(2), 1.0)


def rf_jsd(
    original: Tensor,
    test_labels: Tensor,
    unlearned: Tensor,
    forget_labels: Tensor,
    *,
    level: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
) -> Estimate:
    """RF-JSD: mean over classes c of JSD(mean answer of the original on test images of c, mean answer of the unlearned model on forget images of c), in [0, ln 2] nats.

    Needs no retrained model, and is blind to what happens to single samples: only class means are compared. It is above 0 by chance, the more so the fewer forget images a
    class has; the value of a retrained model in the place of the unlearned one is what it should be. Classes without forget images do not count.

    Args:
        original, test_labels: the original model's logits on unseen images, and their labels.
        unlearned, forget_labels: the unlearned model's on forget images.
        level: confidence in (0, 1).
        replicates: bootstrap samples of images within classes, ≥ 2; value ± z · their spread.
        seed: of the bootstrap; the global generators are not touched.

    Raises:
        ConfigError: a setting is out of range.
        DataError: shapes do not fit, or a forgotten class has no test image.
        ModelError: logits are NaN or infinite.

    Example:
        >>> seen, labels = torch.tensor([[0.0, 90.0], [90.0, 0.0]]), torch.tensor([1, 0])
        >>> round(rf_jsd(seen, labels, seen[:1], labels[:1]).value, 3), round(rf_jsd(seen, labels, seen[1:], labels[:1]).value, 3)
        (0.0, 0.693)

    Paper: Spartalis et al., "LoTUS: Large-Scale Machine Unlearning with a Taste of Uncertainty", CVPR 2025, arXiv:2503.18314. Departures: each class a distribution of its own;
    the public code normalises all classes together and divides by their number as well.
    """
    check_logits(original, test_labels, "logits of the original model")
    check_logits(unlearned, forget_labels, "logits of the unlearned model")
    if original.shape[1] != unlearned.shape[1]:
        raise DataError(
            f"both models must have as many classes; got {original.shape[1]} and {unlearned.shape[1]}. Score models of one task."
        )
    z = NormalDist().inv_cdf((1 + check_level(level)) / 2)
    if not is_integer(replicates, 2):
        raise ConfigError(f"replicates must be an integer ≥ 2; got {replicates!r}. Pass 200.")
    classes, rng, values, variance = forget_labels.unique().tolist(), generator(seed), [], 0.0
    answers, seen = unlearned.double().softmax(1), original.double().softmax(1)
    for c in classes:
        groups = [seen[test_labels == c], answers[forget_labels == c]]
        if len(groups[0]) == 0:
            raise DataError(
                f"RF-JSD needs test images of every class of the forget set; got none of class {c}. Keep all classes in the test set."
            )
        values.append(_jsd_of(*(x.mean(0) for x in groups)))
        drawn = torch.cat([_jsd_of(*(draw_counts(len(x), size, rng).double() @ x / len(x) for x in groups)) for size in blocks(replicates)])
        variance += float(drawn.var()) / len(classes) ** 2
    value, reach = float(torch.stack(values).mean()), z * math.sqrt(variance)
    few = (
        "a class has one forget image: the interval leaves out which it is"
        if int(torch.bincount(forget_labels)[classes].min()) == 1
        else None
    )
    return within(Estimate(value, value - reach, value + reach, len(unlearned), few), 0.0, math.log(2))


def _jsd_of(p: Tensor, q: Tensor) -> Tensor:
    """JSD of distributions instead of logits; a probability of 0 is allowed."""
    m = (p + q) / 2
    return ((torch.special.xlogy(p, p / m.clamp_min(1e-300)) + torch.special.xlogy(q, q / m.clamp_min(1e-300))).sum(-1) / 2).clamp(
        0, math.log(2)
    )
