"""Random labels: training the forget set to be answered at random."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from ..checks import setting
from ..data.split import Split
from ..training.loop import BATCHNORM
from ..training.relabelling import DRAWS, MIXES, sgd_on_random_labels
from ..training.schedules import Constant, Schedule
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class RandomLabel(Method):
    """Fine-tunes on the forget samples with labels drawn at random, together with the retain set:

        min_θ  E_{x ∈ D_F, ỹ ~ U} CE(f_θ(x), ỹ) + E_{(x, y) ∈ D_R} CE(f_θ(x), y)

    Use when: a strong simple baseline is wanted. Drawn anew in every epoch, the labels make the answers on D_F uniform, which no retrained model's are; drawn
    once, they are learnt by heart. Cost: `epochs` passes over D (over D_F without retain data).

    Args:
        epochs: passes over the fine-tuning set, ≥ 1. SalUn's authors: 10.
        lr: SGD step per mini-batch of mean loss, > 0. SalUn's authors: 0.01 to 0.013; without retain data much less.
        batch_size: samples in a step, ≥ 1.
        weight_decay: on all parameters, ≥ 0.
        schedule: learning rate over time.
        use_retain: whether D_R is in the fine-tuning set; False = no retain sample is read.
        exclude_true: False = ỹ is any class, also the true one; True = neither the sample's own nor, where whole classes are forgotten, one of them.
        draw: "epoch" = a new label at every visit, which comes once in an epoch; "once" = the same label throughout.
        batchnorm: "train", "frozen_statistics" or "frozen", as in `sgd`; for use_retain=False, where the batches are of forget samples alone.
        mix: "shuffled" = forget and retain samples in the same batches (SalUn's code for CIFAR-100); "in_turn" = in every epoch all forget batches first, and then
            the retain set, which repairs what they broke (its code for CIFAR-10).

    Raises:
        DataError: exclude_true, and no class is left to draw.

    Paper: Golatkar et al., "Eternal Sunshine of the Spotless Net", CVPR 2020, arXiv:1911.04933; defaults of Fan et al., "SalUn", ICLR 2024, arXiv:2310.12508.
    Departures: none.
    Example:
        >>> RandomLabel(use_retain=False, lr=1e-4).reads_retain
        False
    """

    name: ClassVar[str] = "random_label"
    paper: ClassVar[str] = "Golatkar et al. 2020, arXiv:1911.04933"

    epochs: int = setting(10, ge=1)
    lr: float = setting(0.01, gt=0)
    batch_size: int = setting(128, ge=1)
    weight_decay: float = setting(5e-4, ge=0)
    schedule: Schedule = setting(factory=Constant)
    use_retain: bool = setting(True)
    exclude_true: bool = setting(False)
    draw: str = setting("epoch", choices=DRAWS)
    batchnorm: str = setting("train", choices=BATCHNORM)
    mix: str = setting("shuffled", choices=tuple(MIXES), later=True)

    @property
    def retain(self) -> str:
        return "full" if self.use_retain else "none"

    def cost(self, forget: float) -> float:
        return self.epochs * (1 if self.use_retain else forget)

    def run(self, model: nn.Module, split: Split) -> None:
        sgd_on_random_labels(
            model, split, use_retain=self.use_retain, exclude_true=self.exclude_true, draw=self.draw, mix=self.mix,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule,
            batchnorm=self.batchnorm,
        )  # fmt: skip
