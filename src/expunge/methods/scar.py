"""SCAR: moving forget samples to the nearest wrong class, while images from elsewhere hold the model in place."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checks import setting
from ..data.few import passes_over
from ..data.images import ImageData, Samples, outside, relabel
from ..data.mixture import Batch
from ..data.split import Split
from ..device import device_of
from ..errors import DataError
from ..rng import derive, draw_seed, permutation, uniform
from ..training.head import WithFeatures, features_of, last_linear
from ..training.inference import logits_of
from ..training.loop import BATCHNORM, sgd
from ..training.objectives import Enough, Objective
from ..training.orders import Order, Visit, shuffled
from ..training.teacher import Teacher
from .base import Method

FLOOR = 1e-8  # below which a feature counts as zero: the slope of its root is infinite there
MOST_CUT_UP = 1000  # forget images of which puzzles are made: all of them may not fit in memory


@final
@dataclass(frozen=True, kw_only=True)
class SCAR(Method):
    """Moves the features of forget samples to those of the nearest wrong class, while surrogate images, which are of no class, are answered as before:

        h = φ(x)^δ,   u_k = h/‖h‖ − μ_k/‖μ_k‖,   d_k(x) = u_kᵀ S_k⁻¹ u_k,   k*(x) = the remaining class of smallest d_k(x) at θ_O
        S_k = corr(shrink(shrink(cov_k h))),   shrink(Σ) = Σ + γ₁ V₁ I + γ₂ V₂ (1 − I),   V₁, V₂ the means of Σ on and off the diagonal
        min_θ  λ₁ E_{x ∈ D_F} d_{k*(x)}(x) + λ₂ E_{x̃ ∈ surrogates} KL(softmax(z_{θ_O}(x̃) / T) ‖ softmax(z_θ(x̃)))

    φ(x) are the features in front of the last linear layer, μ_k and cov_k mean and covariance of h over the retain samples of class k. z_{θ_O} has its logits of forgotten classes
    lowered to the smallest of the batch, and surrogates that θ_O answers with a forgotten class are left out.

    Use when: whole classes must leave, and retain images can be read once but not trained on; the result leans on how well the surrogates stand for them. Cost: one forward
    pass over D, then in each epoch `surrogate_batches` steps for every batch of D_F, each with a batch of surrogates (for the teacher too) and, from the second
    epoch on, a look at the accuracy on D_F.

    Args:
        surrogate: images of the training set's shape that are not of it; labels do not matter. Authors: 10 000 crops of ImageNet. None = made here: puzzles of four pieces
            of forget images.
        n_made: how many are made, ≥ 1, where surrogate is None.
        epochs: passes over D_F, at most, ≥ 1. Authors: 30, and 10 for ResNet-18 on CIFAR-10.
        lr: Adam's step, > 0.
        batch_size: forget samples, and as many surrogates, in a step, ≥ 1. Authors: 1024. Small sets need less.
        surrogate_batches: steps that a batch of D_F is in, each with other surrogates, ≥ 1. Authors: 6.
        forget_weight: λ₁, ≥ 0.
        surrogate_weight: λ₂, ≥ 0. Authors: 5, and 0.1 for ResNet-18 on CIFAR-10.
        temperature: T of the original's answers, > 0; the authors' code leaves the student's as they are, and so does this.
        power: δ, > 0. Features below 0 count as 0.
        shrink_diagonal: γ₁, > 0.
        shrink_others: γ₂, ≥ 0.
        until: training ends when a smaller share of D_F is answered with its class; in (0, 1], None = after all epochs.
        batchnorm: "frozen_statistics", "train" (the authors': statistics become those of forget and surrogate images) or "frozen", as in `sgd`.

    Raises:
        DataError: the split is of a part of a class, or no class has two retain samples, or surrogates have another shape.
        ModelError: the logits do not come from an nn.Linear layer.

    Paper: Bonato, Cotogni, Sabetta, "Is Retain Set All You Need in Machine Unlearning?", ECCV 2024, arXiv:2404.12922.
    Departures: the paper's "no retain data" supposes that μ_k and cov_k were saved when the model was trained; they are made from D_R here, as in the authors' code. k* is found
    once, on un-augmented images, and belongs to the sample (in the authors' code to a position in a shuffled epoch, so that it is another sample's from the second
    epoch on) and is a class number (there an index into the classes that remain). BatchNorm keeps its statistics. The accuracy is not looked at in the first epoch, in which the
    authors look without stopping. Puzzles are ours; on digits they held the other classes as well as rotated digits did. No small numbers are added to logits. Left out: random
    samples of all classes, where the authors stop at the accuracy on test images, which a method does not see; and SCAR-self.
    Example:
        >>> SCAR.as_published("cifar10_resnet18_class").surrogate_weight
        0.1
    """

    name: ClassVar[str] = "scar"
    paper: ClassVar[str] = "Bonato et al. 2024, arXiv:2404.12922"
    retain: ClassVar[str] = "full"
    scenario: ClassVar[str] = "classes"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10_resnet18_class": {
            "epochs": 10,
            "lr": 1e-3,
            "batch_size": 1024,
            "temperature": 2.0,
            "forget_weight": 1.0,
            "surrogate_weight": 0.1,
        },
    }

    surrogate: Samples | None = setting(None)
    n_made: int = setting(10_000, ge=1)
    epochs: int = setting(30, ge=1)
    lr: float = setting(5e-4, gt=0)
    batch_size: int = setting(1024, ge=1)
    surrogate_batches: int = setting(6, ge=1)
    forget_weight: float = setting(1.0, ge=0)
    surrogate_weight: float = setting(5.0, ge=0)
    temperature: float = setting(1.0, gt=0)
    power: float = setting(0.5, gt=0)
    shrink_diagonal: float = setting(3.0, gt=0)
    shrink_others: float = setting(3.0, ge=0)
    until: float | None = setting(0.01, gt=0, le=1)
    batchnorm: str = setting("frozen_statistics", choices=BATCHNORM)

    def cost(self, forget: float) -> float:
        epochs = self.epochs if self.until is None else min(self.epochs, 2)  # where training usually ends, with the authors
        n_surrogates = self.n_made if self.surrogate is None else len(self.surrogate)
        steps = math.ceil(forget / passes_over(1) / self.batch_size) * self.surrogate_batches  # of an epoch
        trained = (
            self.surrogate_batches * forget + steps * passes_over(min(self.batch_size, n_surrogates)) * 4 / 3
        )  # a third for the teacher
        looks = (epochs - 1) * steps * forget / 3 if self.until is not None else 0
        return 1 / 3 + epochs * trained + looks

    def run(self, model: nn.Module, split: Split) -> None:
        head = last_linear(model, split.forget)
        statistics = self._statistics(features_of(model, head, split.retain), split.retain.labels, device_of(model))
        nearest = statistics.nearest(features_of(model, head, split.forget))
        forget = relabel(split.forget, nearest)  # a sample carries its class with it, wherever a shuffled loader puts it
        surrogates = self._surrogates(split)
        sgd(
            WithFeatures(model, head), [forget, surrogates], self._objective(Teacher(model, [surrogates]), head.in_features, statistics, split),
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=0.0, optimizer="adam", batchnorm=self.batchnorm,
            order=with_surrogates(self.surrogate_batches),
        )  # fmt: skip

    def _objective(self, teacher: Teacher, n_features: int, statistics: "ClassStatistics", split: Split) -> Objective:
        """What a step minimises, for a model `WithFeatures`; from the second epoch on it looks before each step what the step before it has left of the class."""
        late = False

        def objective(student: nn.Module, batch: Batch) -> Tensor:
            nonlocal late
            if late and self.until is not None and _accuracy(logits_of(student, split.forget)[:, n_features:], split.forget) < self.until:
                raise Enough
            late = batch.epoch >= 1
            forget = batch.source == 0
            features, logits = student(batch.images).tensor_split([n_features], 1)
            target = teacher(batch.where(~forget))
            with torch.autocast(features.device.type, enabled=False):
                moved = statistics.distances(features[forget].float(), batch.labels[forget]).mean()
                kept = surrogate_distillation(logits[~forget].float(), target, split.forget_classes, self.temperature)
                return self.forget_weight * moved + self.surrogate_weight * kept

        return objective

    def _surrogates(self, split: Split) -> Samples:
        surrogate = puzzles(split.forget, self.n_made, draw_seed()) if self.surrogate is None else self.surrogate
        return relabel(
            outside(surrogate), torch.zeros(len(surrogate), dtype=torch.int64)
        )  # their labels, if they have any, say nothing here

    def _statistics(self, features: Tensor, labels: Tensor, device: torch.device) -> "ClassStatistics":
        classes, counts = labels.unique(return_counts=True)
        classes = classes[counts > 1]
        if not len(classes):
            raise DataError(
                "SCAR measures how the features of a class vary: a class needs at least two retain samples; got none that has. Keep more of them."
            )
        means, inverses = [], []
        for k in classes:
            rows = tukey(features[labels == k].to(device).double(), self.power)
            means.append(functional.normalize(rows.mean(0), dim=0).float())
            inverses.append(inverse_covariance(torch.cov(rows.T), self.shrink_diagonal, self.shrink_others).float())
        return ClassStatistics(classes.to(device), torch.stack(means), torch.stack(inverses), self.power)


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Where the features of K classes are, and how they vary.

    Attributes:
        classes: their numbers, int64 (K,).
        means: μ_k/‖μ_k‖, float32 (K, d).
        inverses: S_k⁻¹, float32 (K, d, d).
        power: δ.
    """

    classes: Tensor
    means: Tensor
    inverses: Tensor
    power: float

    def distances(self, features: Tensor, wanted: Tensor) -> Tensor:
        """d_k of each sample, (B,), for the class number k that is wanted of it; features (B, d), float32."""
        directions = functional.normalize(tukey(features, self.power), dim=1)
        found = torch.zeros_like(directions[:, 0])
        for number, mean, inverse in zip(self.classes, self.means, self.inverses, strict=True):
            members = (wanted == number).nonzero().flatten()
            if len(members):
                found = found.index_put((members,), _squared(directions[members] - mean, inverse))
        return found

    def nearest(self, features: Tensor) -> Tensor:
        """The class number k of smallest d_k for each sample, int64 (B,), on the CPU."""
        directions = functional.normalize(tukey(features.to(self.means), self.power), dim=1)
        distances = [_squared(directions - mean, inverse) for mean, inverse in zip(self.means, self.inverses, strict=True)]
        return self.classes[torch.stack(distances).argmin(0)].cpu()


def _squared(rows: Tensor, inverse: Tensor) -> Tensor:
    return ((rows @ inverse) * rows).sum(1)


def tukey(features: Tensor, power: float) -> Tensor:
    """h = φ^δ, without the infinite slope at 0."""
    return features.clamp(min=FLOOR).pow(power)


def inverse_covariance(covariance: Tensor, diagonal: float, others: float) -> Tensor:
    """S⁻¹, the pseudo-inverse of a covariance (d, d) that was shrunk twice and divided by the standard deviations."""
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    for _ in range(2):
        off = (covariance * (1 - eye)).sum() / max(1, len(eye) * (len(eye) - 1))
        covariance = covariance + diagonal * covariance.diagonal().mean() * eye + others * off * (1 - eye)
    deviations = covariance.diagonal().clamp(min=torch.finfo(covariance.dtype).tiny).sqrt()  # 0 where the class is always the same
    correlation = (covariance / deviations.outer(deviations)).fill_diagonal_(1)
    return torch.linalg.pinv(correlation, hermitian=True)


def surrogate_distillation(logits: Tensor, target: Tensor, forget_classes: Sequence[int], temperature: float) -> Tensor:
    """Mean KL(softmax(target / T) ‖ softmax(logits)) over surrogates that `target`, the original's logits, does not give to a forgotten class; 0 if there is none."""
    gone = list(forget_classes)
    kept = ~torch.isin(target.argmax(1), torch.tensor(gone, device=target.device))
    logits, target = logits[kept], target[kept]
    if not len(target):
        return logits.sum()  # 0, of which gradients can be taken
    target = target.index_fill(1, torch.tensor(gone, device=target.device), float(target.min()))
    log_p = (target / temperature).log_softmax(1)
    return (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1).mean()


def with_surrogates(n_batches: int) -> Order:
    """For each batch of the first set so many steps, each with as many samples of the second as a batch has, drawn anew."""

    def order(sizes: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[Visit]:
        (n, m), visits = sizes, []
        batches = shuffled(sizes[:1], batch_size, seed, epoch)
        for k in range(len(batches) * n_batches):
            number = epoch * len(batches) * n_batches + k
            others = n + permutation(m, derive(seed, 1), number)[:batch_size]
            visits.append(Visit(torch.cat([batches[k // n_batches].positions, others]), number))
        return visits

    return order


def puzzles(samples: Samples, n: int, seed: int) -> ImageData:
    """n images of four pieces, one for each quarter, each cut out of a random one of the samples (at most a thousand of them) at a random place: their strokes and colours
    without their objects; 8-bit.

    Example:
        >>> from expunge import load_data
        >>> puzzles(load_data("digits")[0], 5, seed=0)
        ImageData(5 images, 1×8×8, 10 classes, Augment(pad=0, flip=False))
    """
    chosen = samples.subset(permutation(len(samples), seed)[:MOST_CUT_UP])
    pixels = torch.cat([(images * 255).round().to(torch.uint8) for images, _ in chosen.batches()])
    sides = pixels.shape[2:]
    half = [-(-side // 2) for side in sides]
    made = torch.empty(n, *pixels.shape[1:], dtype=torch.uint8)
    for number, (top, left) in enumerate(itertools.product((0, sides[0] - half[0]), (0, sides[1] - half[1]))):
        ids = torch.arange(n)
        which = uniform(seed, number, 0, ids=ids, high=len(pixels))
        y, x = (
            uniform(seed, number, 1 + k, ids=ids, high=side - part + 1)[:, None] + torch.arange(part)
            for k, (side, part) in enumerate(zip(sides, half, strict=True))
        )
        pieces = pixels.permute(0, 2, 3, 1)[which[:, None, None], y[:, :, None], x[:, None, :]]
        made[:, :, top : top + half[0], left : left + half[1]] = pieces.permute(0, 3, 1, 2)
    return ImageData(made, torch.zeros(n, dtype=torch.int64), samples.classes)


def _accuracy(logits: Tensor, samples: Samples) -> float:
    return float((logits.argmax(1) == samples.labels).double().mean())
