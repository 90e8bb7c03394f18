"""Boundary Shrink: giving each forget sample to the class across its nearest decision boundary."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from ..attacks.fgsm import logits_after_fgsm
from ..checks import setting
from ..data.images import relabel
from ..data.split import Split
from ..training.loop import BATCHNORM
from ..training.objectives import cross_entropy
from ..training.schedules import Constant, Schedule
from ..training.targets import other_classes
from ..training.until import sgd_until_gone
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(Method):
    """Moves the boundaries inwards until the forgotten class is gone: each forget sample gets the class that the frozen original sees one step outside:

        x' = clamp(x + eps · sign ∇_x CE(f_{θ_O}(x), y), 0, 1),    ŷ = argmax_{k ≠ y} f_{θ_O}(x')_k
        min_θ  E_{x ∈ D_F} CE(f_θ(x), ŷ)

    Use when: whole classes must leave and the retain data are gone; it also runs on single samples. Cost: two forward passes and one backward pass, then `epochs`
    passes over D_F.

    Args:
        epochs: passes over the forget set, ≥ 1. Paper: 10.
        lr: smallest SGD step per mini-batch of mean loss, > 0. Authors' code: 1e-5, for 790 steps.
        batch_size: samples in a step, ≥ 1. Authors' code: 64.
        weight_decay: on all parameters, ≥ 0. Authors' code: 0.
        eps: L∞ step of the attack as a share of the range of pixels, in (0, 1]. Paper: 0.1. In the authors' code two normalisations differ, so that its 0.1 is a
            step of 0.25: pass 0.25 to repeat their experiments.
        batchnorm: "frozen_statistics", "train" (the authors': running statistics drift to the forget class's, which costs half of the retain accuracy on small
            sets) or "frozen", as in `sgd`.
        schedule: learning rate over time.
        until: where whole classes leave, the step doubles, from `lr` on and from the original anew, until at most this share of their training images is still answered
            with their class (see `sgd_until_gone`); in [0, 1), None = `lr` as it is, whatever comes of it.

    Raises:
        DataError: no class is left.

    Paper: Chen et al., "Boundary Unlearning", CVPR 2023, arXiv:2303.11570.
    Departures: BatchNorm keeps its statistics; `until`; where the attack fails, or ends in another forgotten class, ŷ is the best of the other classes at x' (the authors' code takes the answer
    itself, and so teaches the true class again); the attacked image is not rounded to 8 bits; ŷ is found once, on un-augmented images.
    Example:
        >>> BoundaryShrink.as_published("cifar10_allcnn_class").eps  # as the authors' code runs
        0.25
    """

    name: ClassVar[str] = "boundary_shrink"
    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2303.11570"
    retain: ClassVar[str] = "none"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10_allcnn_class": {
            "epochs": 10, "lr": 1e-5, "batch_size": 64, "weight_decay": 0.0, "eps": 0.25, "batchnorm": "train", "until": None,
        },
    }  # fmt: skip

    epochs: int = setting(10, ge=1)
    lr: float = setting(1e-5, gt=0)
    batch_size: int = setting(64, ge=1)
    weight_decay: float = setting(0.0, ge=0)
    eps: float = setting(0.1, gt=0, le=1)
    batchnorm: str = setting("frozen_statistics", choices=BATCHNORM)
    schedule: Schedule = setting(factory=Constant)
    until: float | None = setting(0.05, ge=0, lt=1)

    def cost(self, forget: float) -> float:
        return (self.epochs + 1) * forget

    def step_search(self, split: Split) -> float | None:
        return self.until if split.forget_classes else None

    def run(self, model: nn.Module, split: Split) -> None:
        outside = logits_after_fgsm(model, split.forget, self.eps)
        others = other_classes(split.forget.labels, split.forget_classes, outside.shape[1])
        neighbours = outside.masked_fill(~others, -torch.inf).argmax(1)
        sgd_until_gone(
            model, relabel(split.forget, neighbours), cross_entropy,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule,
            batchnorm=self.batchnorm, until=self.step_search(split), forget=split.forget,
        )  # fmt: skip
