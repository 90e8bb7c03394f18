"""Bad Teacher: learning from one teacher who knows everything and, on the forget set, from one who knows nothing."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checks import setting
from ..data.mixture import Batch
from ..data.split import Split, share_of
from ..rng import draw_seed
from ..training.loop import BATCHNORM, sgd
from ..training.objectives import Objective
from ..training.recipe import Build
from ..training.reinitialise import fresh_network
from ..training.schedules import Constant, Schedule
from ..training.teacher import Teacher
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class BadTeacher(Method):
    """Copies on retain samples what the frozen original answers, and on forget samples what a fresh network does; no label is read:

        min_θ  E_{x ∈ D_F ∪ D_R'} KL(q(x) ‖ softmax(f_θ(x) / T)),    D_R' ⊂ D_R
        q(x) = softmax(f_bad(x) / T) on D_F,   softmax(f_{θ_O}(x) / T) on D_R'

    Use when: a quick baseline is wanted that needs no labels and only a part of D_R. It forgets too much: answers on D_F become those of a network that has seen nothing,
    which no retrained model's are, and which gives members away. Cost: 4/3 of a pass over D_F and D_R' in every epoch, because a teacher answers for each image (once, if it is not augmented).

    Args:
        epochs: passes over D_F and D_R', ≥ 1. Authors: 1.
        lr: Adam's step, > 0. Authors: 1e-4.
        batch_size: samples in a step, ≥ 1. Authors: 256.
        retain_ratio: |D_R'| / |D_R|, in (0, 1]: the same share of each class, at least one sample, drawn once. Authors: 0.3.
        temperature: T, > 0. Authors: 1; without a factor T².
        weight_decay: on all parameters, ≥ 0. Authors: 0.
        schedule: learning rate over time.
        batchnorm: of the student: "train", "frozen_statistics" or "frozen", as in `sgd`. The teachers' statistics stay: the original's, and 0 and 1.
        build: returns the fresh network; None = the model's own layers with weights drawn anew.

    Raises:
        DataError: the split has no retain samples.
        ModelError: no `build`, and a parameter belongs to a module without `reset_parameters`; or `build` makes a network with another number of outputs, or the very model.

    Paper: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023, arXiv:2205.08096.
    Departures: the loss is divided by the number of samples (the authors' code divides by that of classes too, of which Adam notices little), the student is in
    training mode, and each teacher answers only for its own samples. The incompetent teacher has the initialisation of its layers' `reset_parameters`, of all modules, not only of the
    outermost ones (as in public code that resets the last layer of a ResNet and leaves the rest); an initialisation done elsewhere is not repeated, unless it is done in `build`.
    Example:
        >>> round(BadTeacher().cost(0.1), 2)  # (0.1 + 0.3 · 0.9) · 4/3
        0.49
    """

    name: ClassVar[str] = "bad_teacher"
    paper: ClassVar[str] = "Chundawat et al. 2023, arXiv:2205.08096"
    retain: ClassVar[str] = "full"
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "notebooks": {"epochs": 1, "lr": 1e-4, "batch_size": 256, "retain_ratio": 0.3, "temperature": 1.0}
    }

    epochs: int = setting(1, ge=1)
    lr: float = setting(1e-4, gt=0)
    batch_size: int = setting(256, ge=1)
    retain_ratio: float = setting(0.3, gt=0, le=1)
    temperature: float = setting(1.0, gt=0)
    weight_decay: float = setting(0.0, ge=0)
    schedule: Schedule = setting(factory=Constant)
    batchnorm: str = setting("train", choices=BATCHNORM)
    build: Build | None = setting(None, later=True)

    def cost(self, forget: float) -> float:
        return self.epochs * (forget + self.retain_ratio * (1 - forget)) * 4 / 3

    def run(self, model: nn.Module, split: Split) -> None:
        bad = Teacher(fresh_network(model, self.build, split.forget), [split.forget])
        few = share_of(split.retain, self.retain_ratio, draw_seed())
        sgd(
            model, [split.forget, few], self._obey(bad, Teacher(model, [few])),
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule,
            optimizer="adam", batchnorm=self.batchnorm,
        )  # fmt: skip

    def _obey(self, bad: Teacher, good: Teacher) -> Objective:
        def objective(student: nn.Module, batch: Batch) -> Tensor:
            logits = student(batch.images).float()
            target, forget = torch.empty_like(logits), batch.source == 0
            for teacher, chosen in ((bad, forget), (good, ~forget)):
                if chosen.any():
                    target[chosen] = teacher(batch.where(chosen)) / self.temperature
            answers = (logits / self.temperature).log_softmax(1)
            return functional.kl_div(answers, target.log_softmax(1), reduction="sum", log_target=True) / len(logits)

        return objective
