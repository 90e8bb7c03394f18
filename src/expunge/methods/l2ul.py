"""L2UL: a few images are misclassified on purpose, while adversarial examples and an anchor on the other weights hold the model in place."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attacks.active_set import margin, project, unit
from ..checks import setting
from ..costs import count
from ..data.images import Augment, Samples
from ..data.mixture import Batch
from ..data.split import Split
from ..device import device_of, exact
from ..errors import ModelError
from ..training.inference import logits_of
from ..training.loop import BATCHNORM, sgd
from ..training.orders import paired, shuffled
from ..training.per_sample import absolute_gradients, answer_length
from ..training.targets import other_classes, random_labels
from .base import Method

AT_ONCE = 256  # images under attack


@final
@dataclass(frozen=True, kw_only=True)
class L2UL(Method):
    """Climbs the loss of the forget samples until all are misclassified, from forget data alone:

        min_θ  −w_F E_{(x, y) ∈ D_F} CE(f_θ(x), y) + w_A E_{(x', ȳ) ∈ D_A} CE(f_θ(x'), ȳ) + λ/2 Σ_i (1 − Ī_i)(θ_i − θ_{O,i})²
        D_A: each forget image moved towards random other classes ȳ, at most ε away;   w_F, w_A: shares of the two in a batch
        Ī: I_i = E_{x ∈ D_F} |∂‖f(x)‖₂/∂θ_i|, brought to [0, 1] in each parameter

    Adversarial examples carry features of ȳ, and stand in for the retain data; weights that matter little for D_F stay where they were.

    Use when: some ten images must be answered wrongly, and the retain data are gone. A retrained model answers most of them right: this is not what forgetting by
    retraining looks like. On digits it takes retain accuracy along: 100 % to 80 % for 20 of 1000 at eps 0.5, in 258 epochs. Cost: some 1300 passes over D_F for D_A, then 2⅓ in each epoch.

    Args:
        epochs: passes over D_F at most, ≥ 1; it ends after the first that leaves no forget sample answered with its label.
        lr: SGD step per mini-batch of mean loss, > 0. Authors: 1e-3 to 1e-4.
        batch_size: forget samples in a step, ≥ 1, joined by as many adversarial examples, so that w_F = w_A = 1/2. Authors: 16, their whole D_F.
        weight_decay: on all parameters, ≥ 0. Authors: 1e-4.
        n_adversarial: targets drawn for each forget sample, ≥ 0; 0 = no D_A. Authors: 20 for CIFAR-10; 1 or 2 for thousands of images.
        eps: ε, L2 over the whole image in [0, 1], > 0. Authors: 4 in the script for CIFAR-10, 2 in the code, 1 to 5 advised; small images need less (8×8 digits: 0.5 to 1).
        attack_step: length of a step of the search, > 0. Authors: 0.1.
        attack_steps: steps of the search, ≥ 1. Authors: 100.
        anchor: λ, ≥ 0; 0 = weights are free. Authors: 1, elsewhere 10.
        stop_each: a forget sample that is misclassified climbs no further; False = all climb until the last one is, as in the paper: their loss has no bound, and
            on digits the model was ruined, or its weights infinite, before that.
        batchnorm: "frozen_statistics", "train" (adversarial and forget images then move the running statistics) or "frozen", as in `sgd`.

    Raises:
        DataError: no class is left for a target.
        ModelError: the loss became infinite.

    Paper: Cha et al., "Learning to Unlearn: Instance-wise Unlearning for Pre-trained Classifiers", AAAI 2024, arXiv:2301.11578.
    Departures: `stop_each`. "A matching adversarial batch" is read as one of equal size, so that each epoch sees a random |D_F| of D_A. It is checked after each pass over D_F, not each step, whether all are misclassified (the same where D_F is one batch). A target is drawn
    among the other classes that remain; the authors' code draws among all, and takes class K // 2 for a sample that drew its own, even where that is its own. I is of
    ‖f‖, as in the code; paper: ‖f‖². The search starts at the image and takes all its steps.
    Example:
        >>> L2UL(n_adversarial=2, attack_steps=20).reads_retain
        False
    """

    name: ClassVar[str] = "l2ul"
    paper: ClassVar[str] = "Cha et al. 2024, arXiv:2301.11578"
    retain: ClassVar[str] = "none"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10_script": {
            "lr": 1e-3, "batch_size": 16, "weight_decay": 1e-4, "n_adversarial": 20, "eps": 4.0, "attack_step": 0.1, "attack_steps": 100, "anchor": 1.0,
            "stop_each": False,
        },
    }  # fmt: skip

    epochs: int = setting(100, ge=1)
    lr: float = setting(1e-3, gt=0)
    batch_size: int = setting(16, ge=1)
    weight_decay: float = setting(1e-4, ge=0)
    n_adversarial: int = setting(20, ge=0)
    eps: float = setting(4.0, gt=0)
    attack_step: float = setting(0.1, gt=0)
    attack_steps: int = setting(100, ge=1)
    anchor: float = setting(1.0, ge=0)
    stop_each: bool = setting(True)
    batchnorm: str = setting("frozen_statistics", choices=BATCHNORM)

    def cost(self, forget: float) -> float:
        search, epoch = self.n_adversarial * self.attack_steps * 2 / 3, 1 + (self.n_adversarial > 0) + 1 / 3
        return (search + (self.anchor > 0) + self.epochs * epoch) * forget

    def run(self, model: nn.Module, split: Split) -> None:
        forget = split.forget
        anchors = self._anchors(model, forget) if self.anchor else {}

        def misclassify_and_stay(model: nn.Module, batch: Batch) -> Tensor:
            logits = model(batch.images).float()
            losses = functional.cross_entropy(logits, batch.labels, reduction="none")
            climbs = batch.source == 0
            done = climbs & (logits.argmax(1) != batch.labels) if self.stop_each else torch.zeros_like(climbs)
            away = torch.where(climbs, -losses, losses).masked_fill(done, 0).mean()
            parameters = dict(model.named_parameters()) if anchors else {}
            held = [(held * (parameters[name] - first).square()).sum() for name, (first, held) in anchors.items()]
            return away + self.anchor / 2 * sum(held)

        def gone(_: int) -> bool:
            try:
                return not (logits_of(model, forget).argmax(1) == forget.labels).any()
            except ModelError as error:
                raise ModelError(f"training diverged: {error} Lower lr ({self.lr:g}), or take more adversarial examples.") from error

        sgd(
            model, [forget, self._adversarial(model, split)] if self.n_adversarial else forget, misclassify_and_stay,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, batchnorm=self.batchnorm,
            order=paired if self.n_adversarial else shuffled, after_epoch=gone,
        )  # fmt: skip

    def _anchors(self, model: nn.Module, forget: Samples) -> dict[str, tuple[Tensor, Tensor]]:
        """For each trainable parameter θ_O and 1 − Ī."""
        importance = absolute_gradients(model, forget, answer_length)
        first = {name: p.detach().clone() for name, p in model.named_parameters()}
        return {name: (first[name], 1 - from_0_to_1(i)) for name, i in importance.items()}

    def _adversarial(self, model: nn.Module, split: Split) -> "_Towards":
        """D_A: n_adversarial images for each forget sample, one behind the other."""
        forget, n_classes = split.forget, logits_of(model, split.forget.subset([0])).shape[1]
        at = torch.arange(len(forget)).repeat_interleave(self.n_adversarial)
        targets = random_labels(other_classes(forget.labels, split.forget_classes, n_classes)[at])
        images = towards(model, forget, at, targets, eps=self.eps, step=self.attack_step, steps=self.attack_steps)
        return _Towards(images, targets, forget.ids[at], forget.classes)


def from_0_to_1(importance: Tensor) -> Tensor:
    """(I − min I) / (max I − min I); 0 where all are equal."""
    low, high = importance.aminmax()
    return (importance - low) / (high - low).clamp(min=1e-12)


def towards(model: nn.Module, samples: Samples, at: Tensor, targets: Tensor, *, eps: float, step: float, steps: int) -> Tensor:
    """Images (M, C, H, W) in [0, 1], at most eps from the samples at these positions, to which the model gives targets (M,) the most it can in so many steps.

        x' ← clamp(P_ε(x' − step · ∇CE(f(x'), ȳ) / ‖∇CE‖₂), 0, 1), from x on

    Cost: `steps` forward passes and gradients at the input for each image.
    """
    device, found = device_of(model), []
    with exact(model):
        for rows in torch.arange(len(at)).split(AT_ONCE):
            x, y, ids = samples.fetch(at[rows]).to(device), targets[rows].to(device), samples.ids[at[rows]]
            point, radius = x, torch.full((len(rows),), eps, device=device)
            for _ in range(steps):
                point = point.detach().requires_grad_()
                # The margin's gradient points where that of the cross-entropy does, but does not vanish.
                uphill = torch.autograd.grad(margin(model(point).float(), y).sum(), point)[0]
                count(ids, forward=1, input_gradients=1)
                point = project(point.detach() + step * unit(uphill), x, radius)
            found.append(point.cpu())
    return torch.cat(found)


@final
@dataclass(frozen=True, eq=False, repr=False)
class _Towards(Samples):
    """Images with the classes that they were moved towards, and the ids of the samples that they were made from."""

    resident: ClassVar[bool] = True

    images: Tensor
    labels: Tensor
    ids: Tensor
    classes: tuple[str, ...]
    augment: Augment = field(default_factory=Augment)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in (self.images, self.labels, self.ids))).hexdigest()

    def fetch(self, positions: Tensor) -> Tensor:
        return self.images[positions]
