"""DELETE: distilling the original's answers without the true class, from forget data alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from ..checks import setting
from ..data.images import relabel
from ..data.split import Split
from ..training.inference import logits_of
from ..training.loop import BATCHNORM
from ..training.objectives import cross_entropy
from ..training.schedules import Constant, Schedule
from ..training.targets import other_classes, renormalised
from ..training.until import sgd_until_gone
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class DELETE(Method):
    """Teaches each forget sample what the frozen original answers once the true class is taken away:

        min_θ  E_{x ∈ D_F} KL(q(·|x) ‖ p_θ(·|x)),    q = softmax(z_{θ_O}(x) with z_y = −∞)

    The first half of that loss empties the true class, the second keeps the order of the others, in which the original's decisions on D_R lie.

    Use when: whole classes must leave and the retain data are gone. On random samples it forgets too much: below the accuracy on unseen images. Cost: one forward
    pass and `epochs` passes over D_F.

    Args:
        epochs: passes over the forget set, ≥ 1. Paper: 20.
        lr: smallest SGD step per mini-batch of mean loss, > 0. Authors: 1e-4 for ResNet-18 on CIFAR-10, 5e-5 elsewhere. It decides everything: too much costs retain
            accuracy.
        batch_size: samples in a step, ≥ 1. Paper: 128.
        weight_decay: on all parameters, ≥ 0. Authors: 0.
        temperature: of the original's answers, > 0; 1 = the paper's. More spreads q over classes that memory has made invisible.
        batchnorm: "frozen_statistics", "train" (the authors' default; forget samples then move the running statistics) or "frozen", as in `sgd`.
        schedule: learning rate over time.
        until: where whole classes leave, the step doubles, from `lr` on and from the original anew, until at most this share of their training images is still answered
            with their class (see `sgd_until_gone`); in [0, 1), None = `lr` as it is, whatever comes of it.

    Raises:
        DataError: no class is left.

    Paper: Zhou et al., "Decoupled Distillation to Erase", CVPR 2025, arXiv:2503.23751.
    Departures: `until`; BatchNorm keeps its statistics, which is an option of the authors' code; q is found once, on un-augmented images; where several whole
    classes are forgotten, q is without all of them, not only without the sample's own.
    Example:
        >>> DELETE(lr=5e-5).reads_retain
        False
    """

    name: ClassVar[str] = "delete"
    paper: ClassVar[str] = "Zhou et al. 2025, arXiv:2503.23751"
    retain: ClassVar[str] = "none"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10_resnet18_class": {"epochs": 20, "lr": 1e-4, "batch_size": 128, "weight_decay": 0.0, "batchnorm": "train", "until": None},
        "cifar100_class": {"epochs": 20, "lr": 5e-5, "batch_size": 128, "weight_decay": 0.0, "batchnorm": "train", "until": None},
    }

    epochs: int = setting(20, ge=1)
    lr: float = setting(1e-5, gt=0)
    batch_size: int = setting(128, ge=1)
    weight_decay: float = setting(0.0, ge=0)
    temperature: float = setting(1.0, gt=0)
    batchnorm: str = setting("frozen_statistics", choices=BATCHNORM)
    schedule: Schedule = setting(factory=Constant)
    until: float | None = setting(0.05, ge=0, lt=1)

    def cost(self, forget: float) -> float:
        return (self.epochs + 1 / 3) * forget

    def step_search(self, split: Split) -> float | None:
        return self.until if split.forget_classes else None

    def run(self, model: nn.Module, split: Split) -> None:
        logits = logits_of(model, split.forget)
        others = other_classes(split.forget.labels, split.forget_classes, logits.shape[1])
        target = renormalised(logits / self.temperature, others)
        sgd_until_gone(
            model, relabel(split.forget, target), cross_entropy,  # its gradient is that of KL(q ‖ p)
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule,
            batchnorm=self.batchnorm, until=self.step_search(split), forget=split.forget,
        )  # fmt: skip
