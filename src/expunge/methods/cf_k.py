"""CF-k: catastrophic forgetting of the last k layers."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from ..checks import setting
from ..data.split import Split
from ..training.last_layers import last_layers
from ..training.loop import sgd
from ..training.objectives import cross_entropy
from ..training.schedules import Constant, Schedule
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class CFk(Method):
    """Fine-tunes the last k layers with the retain set; the layers φ before them stay as they are, bit for bit:

        min_ψ  E_{(x, y) ∈ D_R} CE(f_{φ, ψ}(x), y),    starting at ψ_O

    Use when: a baseline between doing nothing and FineTune is wanted, or a quicker FineTune. Whatever φ knows of D_F it goes on knowing: probes of the features find it.
    Cost: `epochs` passes over D_R, whose backward half ends at the first layer that learns (counted as whole passes).

    Args:
        k: number of layers that learn, counted from the last one that the model calls, ≥ 1; from their number on CFk is FineTune. A layer is a convolution or a linear
            layer with its BatchNorm: 1 = the head; 6 = the last stage of a ResNet-18 and its head.
        epochs: passes over the retain set, ≥ 1. SCRUB's authors: 10.
        lr: SGD step per mini-batch of mean loss, > 0. SCRUB's authors: 0.01.
        batch_size: samples in a step, ≥ 1. SCRUB's authors: 64.
        momentum: of SGD, in [0, 1). SCRUB's authors: 0.
        weight_decay: on the layers that learn, ≥ 0. SCRUB's authors: 0.
        schedule: learning rate over time. SCRUB's authors divide by 10 after epochs 10, 15 and 20: never, in 10 epochs.

    Raises:
        DataError: the split has no retain samples.
        ModelError: the model calls no layer, or nothing in the last k may change.

    Paper: Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning", arXiv:2201.06640; defaults of SCRUB's code (Kurmanji et al., NeurIPS 2023).
    Departures: the authors' code is not known to us. SCRUB's code trains the last stage of a ResNet and leaves the head behind it frozen: the head always learns here.
    In other code layers before the last k go on learning, or BatchNorm among them goes on moving its statistics: nothing of φ changes here.
    Example:
        >>> CFk(k=6, epochs=5).name
        'cf_k'
    """

    name: ClassVar[str] = "cf_k"
    paper: ClassVar[str] = "Goel et al. 2022, arXiv:2201.06640"
    retain: ClassVar[str] = "full"

    k: int = setting(1, ge=1)
    epochs: int = setting(10, ge=1)
    lr: float = setting(0.01, gt=0)
    batch_size: int = setting(64, ge=1)
    momentum: float = setting(0.0, ge=0, lt=1)
    weight_decay: float = setting(0.0, ge=0)
    schedule: Schedule = setting(factory=Constant)

    def cost(self, forget: float) -> float:
        return self.epochs * (1 - forget)

    def run(self, model: nn.Module, split: Split) -> None:
        sgd(
            model, split.retain, cross_entropy, frozen=last_layers(model, split.retain, self.k).front,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, momentum=self.momentum, weight_decay=self.weight_decay,
            schedule=self.schedule,
        )  # fmt: skip
