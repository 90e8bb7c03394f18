"""Fresh teacher: forget samples are answered as by a network that never saw them."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

from torch import nn

from ..checks import setting
from ..data.images import relabel
from ..data.split import Split
from ..training.inference import logits_of
from ..training.loop import sgd
from ..training.recipe import Build
from ..training.reinitialise import fresh_network
from ..training.schedules import Cosine, Schedule
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class FreshTeacher(Method):
    """Trains a fresh network on the retain set for a few epochs, and fine-tunes the model with that network's answers as the labels of the forget samples:

        min_θ  E_{x ∈ D_F} CE(f_θ(x), q(x)) + E_{(x, y) ∈ D_R} CE(f_θ(x), y),    q(x) = softmax(f_fresh(x) / T)

    A retrained model answers a forget sample with what training on D_R alone says of it. A short training says it roughly; the model keeps what else the long one taught. No label of a forget
    sample is read; the teacher answers each once, as it is, while the model sees it augmented.

    Use when: D_R is at hand, and so are some ten passes over it. Cost: `teacher_epochs` passes over D_R, a forward pass over D_F, and `epochs` passes over D.

    Args:
        epochs: passes over forget and retain set, ≥ 1.
        lr: SGD step per mini-batch of mean loss, > 0.
        teacher_epochs: passes of the fresh network over the retain set, ≥ 1. They decide how much is forgotten: after a shorter training the teacher, and the model
            with it, answers fewer forget samples rightly.
        teacher_lr: its SGD step, > 0: as one trains this architecture.
        temperature: T, > 0. Below 1 the answers become surer, as those of a network that is trained for longer are.
        batch_size: samples in a step, ≥ 1.
        weight_decay: on all parameters, ≥ 0.
        schedule: learning rate over time, of both trainings.
        build: returns the fresh network; None = the model's own layers with weights drawn anew. For a model whose training began from pre-trained weights, pass a function that loads these.

    Raises:
        DataError: the split has no retain samples.
        ModelError: no `build`, and a parameter belongs to a module without `reset_parameters`; or `build` makes a network with another number of outputs, or the very model.

    Paper: ours. The defaults were chosen with the help of retrained models (10 % of 10,000 images of CIFAR-10, `resnet_tiny`, 20 epochs); `tune` chooses `lr` without. What it comes to
    on other samples, and what of it matters, is in the results (docs/results).
    Nearest in print: Dolgova and Stich 2026, arXiv:2605.31317, whose small teacher is trained on the forget samples' neighbours among the retain samples; Bad Teacher (arXiv:2205.08096) has a fresh network that is not trained.
    Departures: none.
    Example:
        >>> round(FreshTeacher().cost(0.1), 2)  # 4 · 0.9 + 0.1 / 3 + 6
        9.63
    """

    name: ClassVar[str] = "fresh_teacher"
    paper: ClassVar[str] = "ours"
    retain: ClassVar[str] = "full"

    epochs: int = setting(6, ge=1)
    lr: float = setting(0.05, gt=0)
    teacher_epochs: int = setting(4, ge=1)
    teacher_lr: float = setting(0.1, gt=0)
    temperature: float = setting(0.5, gt=0)
    batch_size: int = setting(128, ge=1)
    weight_decay: float = setting(5e-4, ge=0)
    schedule: Schedule = setting(factory=Cosine)
    build: Build | None = setting(None)

    def cost(self, forget: float) -> float:
        return self.teacher_epochs * (1 - forget) + forget / 3 + self.epochs

    def run(self, model: nn.Module, split: Split) -> None:
        train = partial(sgd, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule)
        teacher = fresh_network(model, self.build, split.retain)
        train(teacher, split.retain, epochs=self.teacher_epochs, lr=self.teacher_lr, stage="training the teacher")
        answers = (logits_of(teacher, split.forget) / self.temperature).softmax(1)
        train(model, [relabel(split.forget, answers), split.retain], epochs=self.epochs, lr=self.lr)
