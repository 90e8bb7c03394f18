"""NegGrad+: descending on the retain set and climbing on the forget set in the same step."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor, nn

from ..checks import setting
from ..data.mixture import Batch
from ..data.split import Split
from ..training.loop import BATCHNORM, sgd
from ..training.objectives import cross_entropy
from ..training.orders import paired
from ..training.schedules import Constant, Schedule
from ..training.step import single_sample_batchnorm
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class NegGradPlus(Method):
    """Goes on training with the retain set, and in each step climbs the loss of as many forget samples, with a small weight:

        min_θ  α · E_{(x, y) ∈ D_R} CE(f_θ(x), y) − (1 − α) · E_{(x, y) ∈ D_F} CE(f_θ(x), y),    starting at θ_O

    Use when: a baseline between fine-tuning and gradient ascent is wanted. The loss of the forget set has no upper bound, so that α must be close to 1: search it
    in 1 − α = 1e-5 … 1e-1; on samples that are fitted perfectly the authors' 0.9999 hardly differs from fine-tuning. Cost: `epochs`
    passes over D_R, and over as many forget samples, each of which comes |D_R| / |D_F| times in an epoch.

    Args:
        epochs: passes over the retain set, ≥ 1. Authors: 5.
        alpha: α, weight of the retain set, in (0, 1]; 1 = fine-tuning, which reads no forget sample. Authors: 0.9999.
        lr: SGD step per mini-batch of mean loss, > 0. Authors: 0.01.
        batch_size: retain samples in a step, ≥ 1, and as many forget samples.
        momentum: in [0, 1). Authors: 0.
        weight_decay: on all parameters, ≥ 0. Authors: 0 in the code, 5e-4 in the paper.
        schedule: learning rate over time.
        batchnorm: "train" (authors), "frozen_statistics" or "frozen", as in `sgd`. Retain and forget samples go through the model one after the other: neither is
            normalised by the other's statistics, but with "train" both move the running ones.

    Raises:
        DataError: the split has no retain samples. ModelError: the loss became infinite.

    Paper: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv:2302.09880 ("NegGrad+"); defaults of its authors' code.
    Departures: `tune` chooses lr; where the original is fitted perfectly 1 − alpha matters as much. The forget set is shuffled and augmented anew each time that it has been gone through (common code repeats the batches of the first time, by
    itertools.cycle).
    Example:
        >>> NegGradPlus(alpha=0.999).cost(0.1)  # five epochs over nine tenths of the data, and over as many forget samples
        9.0
    """

    name: ClassVar[str] = "neg_grad_plus"
    paper: ClassVar[str] = "Kurmanji et al. 2023, arXiv:2302.09880"
    retain: ClassVar[str] = "full"
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "scrub_cifar10_resnet18": {"alpha": 0.9999, "lr": 0.01, "epochs": 5, "momentum": 0.0, "weight_decay": 0.0}
    }

    epochs: int = setting(5, ge=1)
    alpha: float = setting(0.9999, gt=0, le=1)
    lr: float = setting(0.01, gt=0)
    batch_size: int = setting(128, ge=1)
    momentum: float = setting(0.0, ge=0, lt=1)
    weight_decay: float = setting(0.0, ge=0)
    schedule: Schedule = setting(factory=Constant)
    batchnorm: str = setting("train", choices=BATCHNORM)

    def cost(self, forget: float) -> float:
        return self.epochs * (1 - forget) * (2 if self.alpha < 1 else 1)

    def run(self, model: nn.Module, split: Split) -> None:
        options = {
            "epochs": self.epochs, "lr": self.lr, "batch_size": self.batch_size, "momentum": self.momentum, "weight_decay": self.weight_decay,
            "schedule": self.schedule, "batchnorm": self.batchnorm,
        }  # fmt: skip
        if self.alpha == 1:
            sgd(model, split.retain, cross_entropy, **options)
        else:
            sgd(model, [split.retain, split.forget], self._down_and_up, order=paired, **options)

    def _down_and_up(self, model: nn.Module, batch: Batch) -> Tensor:
        retain, forget = (_apart(model, batch.where(batch.source == k)) for k in (0, 1))
        return self.alpha * retain - (1 - self.alpha) * forget


def _apart(model: nn.Module, batch: Batch) -> Tensor:
    """The cross-entropy of a part of a batch, in a forward pass of its own."""
    with single_sample_batchnorm(model, len(batch.images)):
        return cross_entropy(model, batch)
