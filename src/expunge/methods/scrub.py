"""SCRUB: a student that departs from its teacher on the forget set and obeys it on the retain set."""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checks import setting
from ..costs import sources
from ..data.images import Samples
from ..data.mixture import Batch
from ..data.split import Split, samples_of, share_of
from ..errors import ConfigError, DataError
from ..rng import derive, draw_seed
from ..training.inference import logits_of
from ..training.loop import BATCHNORM, OPTIMIZERS, sgd
from ..training.objectives import Objective, distillation
from ..training.orders import Visit, shuffled
from ..training.schedules import Schedule, Step
from ..training.teacher import Teacher
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class SCRUB(Method):
    """Moves a copy of the original away from the original's answers on D_F, and keeps it at them and at the labels on D_R, in turn:

        d(x; θ) = T² KL(softmax(f_{θ_O}(x) / T) ‖ softmax(f_θ(x) / T))
        in the first `max_epochs` epochs:    max_θ  E_{x ∈ D_F} d(x; θ)                                      a pass over D_F, then
        in every epoch:                      min_θ  E_{(x, y) ∈ D_R} [α d(x; θ) + γ CE(f_θ(x), y)]           a pass over D_R

    Use when: retain data are available, and forgetting matters more than looking like a retrained model; with `rewind`, where too much forgetting would give
    members away as well. Cost: 4/3 of a pass over D_R in every epoch, and over D_F in the first `max_epochs`, because the teacher answers too (images that are not augmented it answers once).

    Args:
        epochs: passes over the retain set, ≥ 1. Authors: 3 on CIFAR-10, 5 for membership attacks, 10 on small sets.
        max_epochs: how many of them begin with a pass over the forget set, from 0 to `epochs`. Authors: 2 or 3.
        alpha: α, weight of the teacher on D_R, ≥ 0. Authors: 0.001 on CIFAR-10, else 0.5.
        gamma: γ, weight of the labels on D_R, ≥ 0. Authors: 0.99 or 1.
        temperature: T, > 0. Authors: 4, on small sets 2 to 4. d has no upper bound where the student is driven, and with a small T the steps explode.
        optimizer: "sgd" with momentum 0.9, or "adam" (authors, on small sets); one and the same for both kinds of steps.
        lr: step per mini-batch of mean loss, > 0. Authors: 5e-4.
        batch_size: retain samples in a step, ≥ 1.
        forget_batch_size: forget samples in a step, ≥ 1: it decides how many steps up an epoch has, and so how much is forgotten. Authors: 512 in the code that runs,
            32 to 64 elsewhere.
        weight_decay: on all parameters, ≥ 0.
        schedule: learning rate over time. Authors: × 0.1 after 3, 5 and 9 epochs; the default does so up to the seventh, and is ten times too small from the eighth on ("small_scale").
        batchnorm: of the student: "train" (authors), "frozen_statistics" or "frozen", as in `sgd`. The teacher's statistics stay.
        rewind: SCRUB+R: of the students after each epoch, return the one whose error on D_F is nearest to the last student's error on validation samples, which are
            weighted to have the classes of D_F; of equally near ones the last. Where the last forgets more than unseen samples are mistaken, that gives members away.
        validation: samples that the original never saw, of all classes of D_F; None = retain samples are held out.
        held_out: share of the retain samples of those classes that are, where `rewind` has no `validation`, in (0, 1): of each class the same share, never trained on
            here. The original has learnt them, so that the reference is too low, and less is forgotten than with `validation`.

    Raises:
        ConfigError: a hyperparameter is outside its range, or max_epochs > epochs.
        DataError: the split has no retain samples, or `rewind` finds no validation samples of a class of D_F, as where whole classes leave.
        ModelError: training diverged.

    Paper: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv:2302.09880; defaults of its authors' code for CIFAR-10.
    Departures: the authors have a validation set; holding out is ours, as are the weights by class. Of public versions, one hands the teacher's weights to the
    optimiser, so that nothing is learnt, and one climbs for one epoch more than it is told to.
    Example:
        >>> SCRUB(epochs=5, max_epochs=3, alpha=0.5, gamma=1.0).reads_retain
        True
    """

    name: ClassVar[str] = "scrub"
    paper: ClassVar[str] = "Kurmanji et al. 2023, arXiv:2302.09880"
    retain: ClassVar[str] = "full"
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar10_large_scale": {
            "epochs": 3, "max_epochs": 2, "alpha": 0.001, "gamma": 0.99, "temperature": 4.0, "lr": 5e-4, "batch_size": 256, "forget_batch_size": 512,
        },
        "cifar10_membership": {"epochs": 5, "max_epochs": 3, "alpha": 0.5, "gamma": 1.0, "temperature": 4.0, "lr": 5e-4},
        "small_scale": {
            "epochs": 10, "max_epochs": 3, "alpha": 0.5, "gamma": 1.0, "optimizer": "adam", "lr": 5e-4, "batch_size": 32, "forget_batch_size": 64,
        },
    }  # fmt: skip

    epochs: int = setting(3, ge=1)
    max_epochs: int = setting(2, ge=0)
    alpha: float = setting(0.001, ge=0)
    gamma: float = setting(0.99, ge=0)
    temperature: float = setting(4.0, gt=0)
    optimizer: str = setting("sgd", choices=OPTIMIZERS)
    lr: float = setting(5e-4, gt=0)
    batch_size: int = setting(256, ge=1)
    forget_batch_size: int = setting(512, ge=1)
    weight_decay: float = setting(5e-4, ge=0)
    schedule: Schedule = setting(factory=lambda: Step(first=3, every=2))
    batchnorm: str = setting("train", choices=BATCHNORM)
    rewind: bool = setting(False)
    validation: Samples | None = setting(None)
    held_out: float = setting(0.1, gt=0, lt=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_epochs > self.epochs:
            raise ConfigError(f"SCRUB: max_epochs must be at most epochs, {self.epochs}; got {self.max_epochs}. Allow more epochs.")

    def cost(self, forget: float) -> float:
        held_out = (1 - forget) * self.held_out * (self.rewind and self.validation is None)
        trained = self.epochs * (1 - forget - held_out) + self.max_epochs * forget
        return trained * 4 / 3 + (self.epochs * forget + held_out) / 3 * self.rewind

    def run(self, model: nn.Module, split: Split) -> None:
        validation = self._validation(split) if self.rewind else None
        retain = _without(split.retain, validation) if validation is not None and self.validation is None else split.retain
        saved: list[tuple[dict[str, Tensor], float]] = []

        def keep(_: int) -> None:
            saved.append((copy.deepcopy(model.state_dict()), error_like(split.forget, model, split.forget)))

        sgd(
            model, [split.forget, retain], self._up_or_down(Teacher(model, [split.forget, retain])), order=self._up_then_down, after_epoch=keep if self.rewind else None,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule,
            optimizer=self.optimizer, batchnorm=self.batchnorm,
        )  # fmt: skip
        if validation is not None:
            others = sources(forget=torch.empty(0, dtype=torch.int64))  # ids of another set mean nothing in the training set
            with contextlib.nullcontext() if self.validation is None else others:
                reference = error_like(split.forget, model, validation)
            model.load_state_dict(min(reversed(saved), key=lambda student: abs(student[1] - reference))[0])

    def _up_or_down(self, teacher: Teacher) -> Objective:
        def objective(student: nn.Module, batch: Batch) -> Tensor:
            logits = student(batch.images).float()
            departure = distillation(logits, teacher(batch), self.temperature)
            if batch.source[0] == 0:
                return -departure
            return self.alpha * departure + self.gamma * functional.cross_entropy(logits, batch.labels)

        return objective

    def _up_then_down(self, sizes: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[Visit]:
        """An epoch's batches: while there are steps up, all of D_F, then all of D_R."""
        n, m = sizes
        up = shuffled([n], self.forget_batch_size, derive(seed, 0), epoch) if epoch < self.max_epochs else []
        down = shuffled([m], batch_size, derive(seed, 1), epoch)
        return up + [Visit(n + visit.positions, visit.number) for visit in down]

    def _validation(self, split: Split) -> Samples:
        """Samples of the classes of D_F that are not trained on."""
        classes = split.forget.labels.unique()
        known = split.retain if self.validation is None else self.validation
        missing = [split.train.classes[k] for k in classes if k not in known.labels]
        if missing or known.classes != split.train.classes:
            where = "the retain set" if self.validation is None else "`validation`"
            raise DataError(
                f"SCRUB's rewind needs samples of every class of the forget set that are not trained on; got none of {missing[:3]} in {where}, whose classes are "
                f"{list(known.classes)[:3]} …. Pass validation=, unseen samples of the same classes as the training set, or rewind=False."
            )
        chosen = samples_of(known, classes)
        return share_of(chosen, self.held_out, draw_seed()) if self.validation is None else chosen


def error_like(pattern: Samples, model: nn.Module, samples: Samples) -> float:
    """The model's share of wrong answers on samples, weighted to have the classes of `pattern` as often as it has."""
    wrong = (logits_of(model, samples).argmax(1) != samples.labels).double()
    wanted, there = (s.labels.bincount(minlength=len(pattern.classes)).double() for s in (pattern, samples))
    return float((wrong * (wanted / len(pattern) / there)[samples.labels]).sum())


def _without(samples: Samples, others: Samples) -> Samples:
    return samples.subset((~torch.isin(samples.ids, others.ids)).nonzero().flatten())
