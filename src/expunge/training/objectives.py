"""What one training step minimises: a function of (model, batch) that returns a scalar."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from ..data.mixture import Batch

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
