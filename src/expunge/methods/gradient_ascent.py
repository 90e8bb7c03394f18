"""Gradient ascent: training backwards on the forget set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from ..checks import setting
from ..data.split import Split
from ..training.loop import BATCHNORM, sgd
from ..training.objectives import negated_cross_entropy
from ..training.schedules import Constant, Schedule
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class GradientAscent(Method):
    """Climbs the loss of the forget set for a few epochs; nothing holds the retain set in place:

        max_θ  E_{(x, y) ∈ D_F} CE(f_θ(x), y),    starting at θ_O

    Use when: a baseline without retain data is wanted. The loss has no upper bound: three times the right lr destroys the model within tens of steps, and on
    samples that are fitted perfectly nothing happens for long, then everything. Cost: `epochs` passes over D_F.

    Args:
        epochs: passes over the forget set, ≥ 1. Unlearn-Sparse: 5.
        lr: SGD step per mini-batch of mean loss, > 0. Unlearn-Sparse: 1e-4, right for whole classes; for random samples its authors advise 5e-4 to 1e-3.
        batch_size: samples in a step, ≥ 1.
        weight_decay: on all parameters, ≥ 0.
        batchnorm: "train" (the authors': running statistics drift to the forget set's), "frozen_statistics" or "frozen", as in `sgd`.
        schedule: learning rate over time.

    Raises:
        ModelError: the loss became infinite.

    Paper: Graves et al., "Amnesiac Machine Learning", AAAI 2021, arXiv:2010.10981; Golatkar et al., CVPR 2020, arXiv:1911.04933; defaults of Jia et al., arXiv:2304.04934.
    Departures: none.
    Example:
        >>> GradientAscent(batchnorm="frozen_statistics").reads_retain
        False
    """

    name: ClassVar[str] = "gradient_ascent"
    paper: ClassVar[str] = "Graves et al. 2021, arXiv:2010.10981"
    retain: ClassVar[str] = "none"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "unlearn_sparse_cifar10_resnet18_class": {"epochs": 5, "lr": 1e-4, "weight_decay": 5e-4, "batchnorm": "train"}
    }

    epochs: int = setting(5, ge=1)
    lr: float = setting(1e-4, gt=0)
    batch_size: int = setting(128, ge=1)
    weight_decay: float = setting(5e-4, ge=0)
    batchnorm: str = setting("train", choices=BATCHNORM)
    schedule: Schedule = setting(factory=Constant)

    def cost(self, forget: float) -> float:
        return self.epochs * forget

    def run(self, model: nn.Module, split: Split) -> None:
        sgd(
            model, split.forget, negated_cross_entropy,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule,
            batchnorm=self.batchnorm,
        )  # fmt: skip
