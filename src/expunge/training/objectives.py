"""What one training step minimises: a function of (model, batch) that returns a scalar."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.mixture import Batch
from ..types import Logits
from .sharding import whole

Objective = Callable[[nn.Module, Batch], Tensor]


class Enough(Exception):
    """An objective raises it where the model is as it should be: `sgd` ends before this step."""


def cross_entropy(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy between the model's answers and the batch's labels (class numbers or rows of probabilities)."""
    return functional.cross_entropy(model(batch.images).float(), batch.labels, label_smoothing=label_smoothing)


def smoothed_cross_entropy(label_smoothing: float) -> Objective:
    """Cross-entropy with labels mixed with the uniform distribution, by a share in [0, 1)."""
    return partial(cross_entropy, label_smoothing=label_smoothing)


def negated_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Minus the mean cross-entropy: minimising it is gradient ascent. It has no lower bound."""
    return -cross_entropy(model, batch)


def l1_norm(weights: Iterable[Tensor]) -> Tensor:
    """The sum of all absolute weights, also where ranks share them out."""
    return whole(torch.stack([w.abs().sum() for w in weights]).sum())


def distillation(student: Logits, teacher: Logits, temperature: float = 1.0) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the samples; T² keeps the gradient's size where T is large.

    The division is written out: torch's default, "mean", divides by the number of classes too.
    """
    answers, target = ((logits / temperature).log_softmax(1) for logits in (student, teacher))
    return functional.kl_div(answers, target, reduction="sum", log_target=True) * temperature**2 / len(student)
