"""Fine-tuning on the retain set: the baseline that hopes for forgetting by neglect."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from ..checks import setting
from ..data.split import Split
from ..training.loop import sgd
from ..training.objectives import cross_entropy
from ..training.schedules import Constant, Schedule
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class FineTune(Method):
    """Goes on training with the retain set alone, so that the forget set is slowly overwritten:

        min_θ  E_{(x, y) ∈ D_R} CE(f_θ(x), y),    starting at θ_O

    Use when: a baseline is wanted. A model that fits its retain set perfectly has almost no gradient there and forgets only by the noise of the steps, so
    that the result is a matter of lr. Cost: `epochs` passes over D_R.

    Args:
        epochs: passes over the retain set, ≥ 1. Paper: 10.
        lr: SGD step per mini-batch of mean loss, > 0.
        batch_size: samples in a step, ≥ 1.
        weight_decay: on all parameters, ≥ 0.
        schedule: learning rate over time.

    Raises:
        DataError: the split has no retain samples.

    Paper: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, arXiv:2108.11577; defaults of Jia et al., arXiv:2304.04934.
    Departures: none.
    Example:
        >>> FineTune(epochs=5)
        FineTune(epochs=5, lr=0.01, batch_size=128, weight_decay=0.0005, schedule=Constant())
    """

    name: ClassVar[str] = "fine_tune"
    paper: ClassVar[str] = "Warnecke et al. 2023, arXiv:2108.11577"
    retain: ClassVar[str] = "full"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "unlearn_sparse_cifar10_resnet18": {"epochs": 10, "lr": 0.01, "batch_size": 128, "weight_decay": 5e-4}
    }

    epochs: int = setting(10, ge=1)
    lr: float = setting(0.01, gt=0)
    batch_size: int = setting(128, ge=1)
    weight_decay: float = setting(5e-4, ge=0)
    schedule: Schedule = setting(factory=Constant)

    def cost(self, forget: float) -> float:
        return self.epochs * (1 - forget)

    def run(self, model: nn.Module, split: Split) -> None:
        sgd(
            model, split.retain, cross_entropy,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule,
        )  # fmt: skip
