"""EU-k: exact unlearning of the last k layers."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from ..checks import setting
from ..data.split import Split
from ..training.last_layers import last_layers
from ..training.loop import sgd
from ..training.objectives import cross_entropy
from ..training.reinitialise import reset
from ..training.schedules import Schedule, Step
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class EUk(Method):
    """Draws the last k layers anew and trains them with the retain set; the layers φ before them stay as they are, bit for bit:

        ψ ~ initialisation;    min_ψ  E_{(x, y) ∈ D_R} CE(f_{φ, ψ}(x), y)

    Use when: what the last layers have memorised must be gone for certain, and what the others have learnt may stay. Features that φ fitted to D_F still separate it, so
    that a new head often finds the old answers. Cost: `epochs` passes over D_R, whose backward half ends at the first layer that learns (counted as whole passes).

    Args:
        k: number of layers that start anew, counted from the last one that the model calls, ≥ 1; from their number on everything does. A layer is a convolution or a
            linear layer with its BatchNorm: 1 = the head; 6 = the last stage of a ResNet-18 and its head.
        epochs: passes over the retain set, ≥ 1. SCRUB's authors: 25.
        lr: first SGD step per mini-batch of mean loss, > 0. SCRUB's authors: 0.01.
        batch_size: samples in a step, ≥ 1. SCRUB's authors: 64.
        momentum: of SGD, in [0, 1). SCRUB's authors: 0.
        weight_decay: on the layers that learn, ≥ 0. SCRUB's authors: 0.
        schedule: learning rate over time. SCRUB's authors: divided by 10 after epochs 10, 15 and 20.

    Raises:
        DataError: the split has no retain samples.
        ModelError: one of the last k layers has no `reset_parameters`, the model calls no layer, or nothing in the last k may change.

    Paper: Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning", arXiv:2201.06640; defaults of SCRUB's code (Kurmanji et al., NeurIPS 2023).
    Departures: the authors' code is not known to us. SCRUB's code draws the last stage of a ResNet anew, but neither the head behind it nor the BatchNorm of its shortcut:
    both are new here. In other code layers before the last k go on learning: nothing of φ changes here, statistics included. New weights are those of PyTorch's
    `reset_parameters`, whatever initialisation the architecture chose; weights that do not require gradients stay.
    Example:
        >>> EUk(k=6).reads_retain
        True
    """

    name: ClassVar[str] = "eu_k"
    paper: ClassVar[str] = "Goel et al. 2022, arXiv:2201.06640"
    retain: ClassVar[str] = "full"

    k: int = setting(1, ge=1)
    epochs: int = setting(25, ge=1)
    lr: float = setting(0.01, gt=0)
    batch_size: int = setting(64, ge=1)
    momentum: float = setting(0.0, ge=0, lt=1)
    weight_decay: float = setting(0.0, ge=0)
    schedule: Schedule = setting(factory=lambda: Step(first=10, every=5))

    def cost(self, forget: float) -> float:
        return self.epochs * (1 - forget)

    def run(self, model: nn.Module, split: Split) -> None:
        last, front = last_layers(model, split.retain, self.k)
        reset(last)
        sgd(
            model, split.retain, cross_entropy, frozen=front,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, momentum=self.momentum, weight_decay=self.weight_decay,
            schedule=self.schedule,
        )  # fmt: skip
