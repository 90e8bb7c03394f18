"""AMUN: forgetting by fine-tuning on the forget samples' nearest adversarial examples."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import nn

from ..attacks import AdversarialSet, NearestAttack, NearestL2PGD
from ..checks import setting
from ..data.images import Samples
from ..data.split import Split
from ..errors import ConfigError
from ..spectral.control import SpectralControl
from ..training.loop import sgd
from ..training.objectives import cross_entropy
from ..training.saliency import saliency_mask
from ..training.schedules import Schedule, Step
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class AMUN(Method):
    """Fine-tunes on each forget sample together with its nearest adversarial example, which keeps the wrong label that the model itself gives it:

        D_A = {(x + δ_x, argmax f_{θ_O}(x + δ_x)) : x ∈ D_F},  δ_x the shortest change of the image that changes the answer
        min_θ  E_{(x, y) ∈ D_R ∪ D_F ∪ D_A} CE(f_θ(x), y)

    Two neighbouring images with different labels cannot both be answered with confidence, so confidence on D_F falls to that on unseen images; and as
    the adversarial label is one that the model already gives, its decisions elsewhere hardly move.

    Use when: single samples must leave, with retain data or without. Cost: some 75-150 forward and backward passes over D_F for D_A, then `epochs` passes over
    D ∪ D_A (over D_F ∪ D_A without retain data).

    Args:
        epochs: passes over the fine-tuning set, ≥ 1. Paper: 10.
        lr: first SGD step per mini-batch of mean loss, > 0. Paper: searched in [1e-6, 1e-1]; authors' example: 0.01.
        batch_size: samples in a step, ≥ 1. Paper: 128.
        weight_decay: on all parameters that may change, ≥ 0.
        schedule: learning rate over time. Authors: × 0.1 after every 1, 5 or 10 epochs, chosen by search; 1 leaves small sets too few steps.
        use_retain: whether D_R is in the fine-tuning set; False = no retain sample is read.
        use_forget: whether D_F itself is. The paper leaves it out when D_F is half of the data ("D_R + D_A" and "D_A only").
        attack: how D_A is found. The theory asks for the shortest distance.
        adversarial: a D_A made before, for these samples or more of them; None = made here. It must be of this model, unless `transferred`.
        transferred: accept a D_A of another model: the paper's transfer experiment, and sequential requests with D_A of the first model.
        mask_ratio: share of the weights that may change, those with the largest gradients of the forget loss (AMUN + SalUn), in (0, 1]. 1 = all.
        augment_adversarial: give adversarial examples the random crop and flip of the sample that they come from; authors: False.
        clip: keeps the bound of a model that was trained with one (`Recipe.clip`) while it forgets; None = the layers' norms may grow again.

    Raises:
        ConfigError: a hyperparameter is outside its range.
        DataError: `adversarial` belongs to another model, lacks a forget sample, or was made from other images under the same ids.

    Flags: AdversarialSearchFailed (such samples are left out of D_A and of D_F).

    Paper: Ebrahimpour-Boroojeny et al., "Not All Wrong is Bad: Using Adversarial Examples for Unlearning", ICML 2025, arXiv:2503.00917.
    Departures: with `mask_ratio` < 1, masked weights are put back after every step (in the authors' code weight decay moves them), and the gradient for the
    mask is taken on un-augmented images.
    Example:
        >>> AMUN(use_retain=False).reads_retain
        False
        >>> AMUN.as_published("cifar10_resnet18_random10").schedule
        Step(every=1, gamma=0.1, first=None)
    """

    name: ClassVar[str] = "amun"
    paper: ClassVar[str] = "Ebrahimpour-Boroojeny et al. 2025, arXiv:2503.00917"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # the example for 5000 samples in the authors' README; the steps of the tables are not known
        "cifar10_resnet18_random10": {"epochs": 10, "lr": 0.01, "batch_size": 128, "weight_decay": 5e-4, "schedule": Step(every=1)},
        "cifar10_resnet18_ablation": {"epochs": 20, "lr": 0.01, "batch_size": 128, "weight_decay": 5e-4, "schedule": Step(every=5)},
    }

    epochs: int = setting(10, ge=1)
    lr: float = setting(0.01, gt=0)
    batch_size: int = setting(128, ge=1)
    weight_decay: float = setting(5e-4, ge=0)
    schedule: Schedule = setting(factory=lambda: Step(every=5, gamma=0.1))
    use_retain: bool = setting(True)
    use_forget: bool = setting(True)
    attack: NearestAttack = setting(factory=NearestL2PGD)
    adversarial: AdversarialSet | None = setting(None)
    transferred: bool = setting(False)
    mask_ratio: float = setting(1.0, gt=0, le=1)
    augment_adversarial: bool = setting(False)
    clip: SpectralControl | None = setting(None, later=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transferred and self.adversarial is None:
            raise ConfigError(
                "AMUN: transferred=True needs the set that is transferred; got adversarial=None. Pass adversarial=attack(other_model, forget)."
            )

        if self.clip is not None and self.mask_ratio < 1:
            raise ConfigError(
                f"AMUN: clip changes the weights that a mask keeps as they are; got mask_ratio={self.mask_ratio:g} with clip. Pass one of them."
            )

    @property
    def retain(self) -> str:
        return "full" if self.use_retain else "none"

    def cost(self, forget: float) -> float:
        trained_on = (1 - forget) * self.use_retain + forget * self.use_forget + forget
        return self.epochs * trained_on + forget * ((self.adversarial is None) * self.attack.passes + (self.mask_ratio < 1))

    def run(self, model: nn.Module, split: Split) -> None:
        adversarial = self._adversarial(model, split.forget)
        known = self._known(split, adversarial)
        mask = saliency_mask(model, split.forget, self.mask_ratio) if self.mask_ratio < 1 else None
        sgd(
            model, [*known, adversarial], cross_entropy,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule, mask=mask,
            clip=self.clip,
        )  # fmt: skip

    def _known(self, split: Split, adversarial: AdversarialSet) -> list[Samples]:
        """The part of the training set that is trained on with its true labels: D, D_F, D_R or nothing.

        A forget sample without an adversarial example stays out: alone, with its true label, it would be learnt still better.
        """
        retain: list[Samples] = [split.retain] if self.use_retain else []
        paired = torch.isin(split.forget.ids, adversarial.ids).nonzero().flatten()
        return [*retain, split.forget.subset(paired)] if self.use_forget else retain

    def _adversarial(self, model: nn.Module, forget: Samples) -> AdversarialSet:
        if self.adversarial is None:
            found = self.attack(model, forget)
        else:
            if not self.transferred:
                self.adversarial.check(model)
            found = self.adversarial.for_samples(forget)
        found = found.succeeded()
        return replace(found, augment=forget.augment) if self.augment_adversarial else found
