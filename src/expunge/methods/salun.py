"""SalUn: random labels, learnt only by the weights that matter for the forget set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor, nn

from ..checks import setting
from ..data.split import Split
from ..training.loop import BATCHNORM
from ..training.masks import WeightMask, check_mask
from ..training.relabelling import DRAWS, MIXES, sgd_on_random_labels
from ..training.saliency import random_mask, saliency_mask
from ..training.schedules import Constant, Schedule
from ..training.step import Mask
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class SalUn(Method):
    """Fine-tunes the weights with the largest gradients of the forget loss, and no others, on random labels for D_F and true ones for D_R:

        m = 1[ |∇_θ E_{(x, y) ∈ D_F} CE(f_θ(x), y)| ≥ τ at θ_O ],    θ_U = m ⊙ θ + (1 − m) ⊙ θ_O
        min_θ  E_{x ∈ D_F, ỹ ~ U} CE(f_{θ_U}(x), ỹ) + E_{(x, y) ∈ D_R} CE(f_{θ_U}(x), y)

    Use when: random labels forget enough, and the model should otherwise stay as near to the original as can be. Where the original fits D_F perfectly, a few
    samples with a loss left decide the mask. Cost: one pass over D_F, then `epochs` passes over D (over D_F without retain data).

    Args:
        mask_ratio: share of all weights that may change, in (0, 1], exact; 1 = RandomLabel. Paper: 0.5.
        saliency: which they are: "gradient", or "random", an ablation: a mask of as many weights, drawn by lot.
        mask: a mask made before, in place of both: from parameter names to bool tensors, True = may change (`saliency_mask`, `load_mask`, or your own). Parameters that it
            does not name stay. It is kept as bits, a `WeightMask`.
        epochs: passes over the fine-tuning set, ≥ 1. Paper: 10.
        lr: SGD step per mini-batch of mean loss, > 0. Authors: 0.013, earlier 0.006; without retain data much less.
        batch_size: samples in a step, ≥ 1. Authors: 256.
        weight_decay: on all weights in the mask, ≥ 0.
        schedule: learning rate over time.
        use_retain: whether D_R is in the fine-tuning set; False = no retain sample is read.
        exclude_true: False = ỹ is any class (the authors' code); True = neither the sample's own nor, where whole classes are forgotten, one of them (paper).
        draw: "epoch" = a new label at every visit, which comes once in an epoch; "once" = the same label throughout.
        mix: "shuffled" = forget and retain samples in the same batches (authors, for CIFAR-100); "in_turn" = in every epoch all forget batches first, and then the retain
            set, which repairs what they broke (authors, for CIFAR-10).
        batchnorm: "train" (authors), "frozen_statistics" or "frozen", as in `sgd`. Running statistics are no weights: with "train" they move whatever the mask says.
            Without retain data "frozen_statistics" forgets as much with a smaller step.

    Raises:
        DataError: exclude_true, and no class is left to draw.
        ModelError: `mask` names what is no parameter of the model, or one of another shape, or is not of bools.

    Paper: Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", ICLR 2024, arXiv:2310.12508.
    Departures: the gradient for the mask is taken on un-augmented images. Weights outside the mask are put back after every step, as in the authors' code since 2026;
    before, and in other public code, only gradients were masked, and weight decay and momentum moved all weights. SalUn-soft is not offered.
    Example:
        >>> SalUn(mask_ratio=0.1, use_retain=False).reads_retain
        False
    """

    name: ClassVar[str] = "salun"
    paper: ClassVar[str] = "Fan et al. 2024, arXiv:2310.12508"
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar10_resnet18_random10": {"mask_ratio": 0.5, "epochs": 10, "lr": 0.013, "batch_size": 256, "mix": "in_turn"}
    }

    mask_ratio: float = setting(0.5, gt=0, le=1)
    saliency: str = setting("gradient", choices=("gradient", "random"))
    mask: Mapping[str, Tensor] | WeightMask | None = setting(None)
    epochs: int = setting(10, ge=1)
    lr: float = setting(0.01, gt=0)
    batch_size: int = setting(128, ge=1)
    weight_decay: float = setting(5e-4, ge=0)
    schedule: Schedule = setting(factory=Constant)
    use_retain: bool = setting(True)
    exclude_true: bool = setting(False)
    draw: str = setting("epoch", choices=DRAWS)
    mix: str = setting("shuffled", choices=tuple(MIXES))
    batchnorm: str = setting("train", choices=BATCHNORM)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is not None and not isinstance(self.mask, WeightMask):
            object.__setattr__(self, "mask", WeightMask(self.mask))

    @property
    def retain(self) -> str:
        return "full" if self.use_retain else "none"

    def cost(self, forget: float) -> float:
        found = self.mask is None and self.saliency == "gradient" and self.mask_ratio < 1
        return self.epochs * (1 if self.use_retain else forget) + found * forget

    def run(self, model: nn.Module, split: Split) -> None:
        sgd_on_random_labels(
            model, split, use_retain=self.use_retain, exclude_true=self.exclude_true, draw=self.draw, mix=self.mix,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule,
            batchnorm=self.batchnorm, mask=self._mask(model, split),
        )  # fmt: skip

    def _mask(self, model: nn.Module, split: Split) -> Mask | None:
        if self.mask is not None:
            check_mask(self.mask, model)
            return self.mask
        if self.mask_ratio == 1:
            return None
        return random_mask(model, self.mask_ratio) if self.saliency == "random" else saliency_mask(model, split.forget, self.mask_ratio)
