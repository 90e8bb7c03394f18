"""What one training step minimises: a function of (model, batch) that returns a scalar; and teachers, whose answers some of them copy."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..costs import count
from ..data.mixture import Batch
from ..types import Logits

Objective = Callable[[nn.Module, Batch], Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy between the model's answers and the batch's labels (class numbers or rows of probabilities)."""
    return functional.cross_entropy(model(batch.images).float(), batch.labels)


def smoothed_cross_entropy(label_smoothing: float) -> Objective:
    """Cross-entropy with labels mixed with the uniform distribution, by a share in [0, 1)."""

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch.images).float(), batch.labels, label_smoothing=label_smoothing)

    return objective


def negated_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Minus the mean cross-entropy: minimising it is gradient ascent. It has no lower bound."""
    return -cross_entropy(model, batch)


def distillation(student: Logits, teacher: Logits, temperature: float = 1.0) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the samples; T² keeps the gradient's size where T is large.

    The division is written out: torch's default, "mean", divides by the number of classes too.
    """
    answers, target = ((logits / temperature).log_softmax(1) for logits in (student, teacher))
    return functional.kl_div(answers, target, reduction="sum", log_target=True) * temperature**2 / len(student)


def frozen(model: nn.Module) -> nn.Module:
    """A copy in eval mode that does not learn: a teacher."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def taught(teacher: nn.Module, batch: Batch) -> Logits:
    """What a teacher answers for a batch as the student sees it, augmentation included; (B, K), float32.

    Where images are not augmented, `logits_of` before the training saves a forward pass in every epoch.
    """
    count(batch.ids, forward=1)
    return teacher(batch.images).float()
