"""UNSIR: breaking a class with noise that the model cannot bear, and repairing the rest with a few retain images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import progress
from ..checks import setting
from ..costs import count
from ..data.few import classes_in, few_of_each, passes_over, share_of_few
from ..data.images import ImageData, Samples, Subset, outside
from ..data.split import Split
from ..device import device_of, exact
from ..rng import draw_seed
from ..training.loop import BATCHNORM, sgd
from ..training.objectives import cross_entropy
from .base import Method

SMALLEST_STD = 1 / 255  # of a channel that is the same in all images


@final
@dataclass(frozen=True, kw_only=True)
class UNSIR(Method):
    """Makes for each forgotten class c noise that the model is most wrong about as c, trains one epoch on it as c, and repairs the rest:

        noise:    min_N  −CE(f_{θ_O}(x(N)), c) + λ · mean_b ‖N_b‖²,    x(N) = clamp(mean + std · N, 0, 1),    N ~ N(0, 1) at first
        impair:   min_θ  CE on {(x(N_c), c)} ∪ D_R'
        repair:   min_θ  CE on D_R'

    D_R' are a few retain images of each class. No forget image is read: the class numbers are enough.

    Use when: the forget images are gone and a few retain images of every class are at hand. Impairing is destructive by design and results vary from seed to seed: look at
    several. Cost: `noise_steps` passes over the noise, `copies` over it while impairing, and two passes over D_R'.

    Args:
        noise_images: noise images of each forgotten class, ≥ 1. Authors: 256.
        noise_steps: steps of Adam on them, ≥ 1. Authors: 40.
        noise_lr: of these steps, > 0, in units of N. Authors: 0.1.
        noise_penalty: λ, ≥ 0. Authors: 0.1, with which the first steps mainly shrink N: at first ‖N‖² is as large as the number of pixels.
        copies: how often each noise image is in the impairing epoch, ≥ 1. Authors: 20. With few retain images fewer are enough: the authors' epoch has about twice as many
            retain images as noise.
        per_class: retain images of each class, drawn once at random, ≥ 1. Authors: 1000.
        impair_lr: Adam's step while impairing, > 0. Authors: 0.02.
        repair_lr: Adam's step while repairing, > 0. Authors: 0.01.
        batch_size: samples in a step, ≥ 1. Authors: 256. Small sets need less: four steps of repairing do not do, thirty did on 900 digits.
        rounds: how often to impair and repair, ≥ 1. Authors: 1; the paper allows more.
        batchnorm: "train", "frozen_statistics" or "frozen", as in `sgd`. Under "train" the noise moves the running statistics, and repairing moves them back.

    Raises:
        DataError: the split is of a part of a class, or has no retain samples.

    Paper: Tarun et al., "Fast Yet Effective Machine Unlearning", IEEE TNNLS 2023, arXiv:2111.08947.
    Departures: noise has the label of its own class (in the authors' notebook it is 0 for every class) and is made in eval mode (there BatchNorm's running statistics
    move along). The paper's N is in the space of normalised images. Models here take images in [0, 1], so that N counts standard deviations from the mean of D_R' for each
    channel, and x(N) is clamped; λ keeps N near 0, where the clamp does little. No weight decay.
    Example:
        >>> UNSIR(copies=2).reads_retain
        True
    """

    name: ClassVar[str] = "unsir"
    paper: ClassVar[str] = "Tarun et al. 2023, arXiv:2111.08947"
    retain: ClassVar[str] = "subset"
    scenario: ClassVar[str] = "classes"
    tunes: ClassVar[str | None] = "impair_lr"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10_resnet18_class": {
            "noise_images": 256, "noise_steps": 40, "noise_lr": 0.1, "noise_penalty": 0.1, "copies": 20, "per_class": 1000, "impair_lr": 0.02,
            "repair_lr": 0.01, "batch_size": 256, "rounds": 1,
        },
    }  # fmt: skip

    noise_images: int = setting(256, ge=1)
    noise_steps: int = setting(40, ge=1)
    noise_lr: float = setting(0.1, gt=0)
    noise_penalty: float = setting(0.1, ge=0)
    copies: int = setting(20, ge=1)
    per_class: int = setting(1000, ge=1)
    impair_lr: float = setting(0.02, gt=0)
    repair_lr: float = setting(0.01, gt=0)
    batch_size: int = setting(256, ge=1)
    rounds: int = setting(1, ge=1)
    batchnorm: str = setting("train", choices=BATCHNORM)

    def cost(self, forget: float) -> float:
        noise = passes_over(self.noise_images * classes_in(forget))
        return noise * (self.noise_steps * 2 / 3 + self.rounds * self.copies) + self.rounds * 2 * share_of_few(self.per_class, 1 - forget)

    def run(self, model: nn.Module, split: Split) -> None:
        retain = few_of_each(split.retain, self.per_class, draw_seed())
        noise = self._noise(model, split, retain)
        options = {"epochs": 1, "batch_size": self.batch_size, "weight_decay": 0.0, "optimizer": "adam", "batchnorm": self.batchnorm}
        for _ in range(self.rounds):
            sgd(model, [noise, retain], cross_entropy, lr=self.impair_lr, stage="impairing", **options)
            sgd(model, retain, cross_entropy, lr=self.repair_lr, stage="repairing", **options)

    def _noise(self, model: nn.Module, split: Split, retain: Samples) -> Subset:
        """The noise of all forgotten classes, each image `copies` times."""
        mean, std = (m.to(device_of(model)) for m in channel_moments(retain))
        images, labels = [], []
        for c in split.forget_classes:
            wrong_about = torch.full((self.noise_images,), c)
            images.append(self._wrong_noise(model, wrong_about, retain.shape, mean, std))
            labels.append(wrong_about)
        noise = outside(ImageData(torch.cat(images), torch.cat(labels), split.train.classes))
        return Subset(noise, torch.arange(len(noise)).repeat(self.copies))

    def _wrong_noise(self, model: nn.Module, labels: Tensor, shape: tuple[int, int, int], mean: Tensor, std: Tensor) -> Tensor:
        """x(N), float32 on the CPU, that the model, which stays as it is, does not take for `labels`."""
        labels, noise = labels.to(mean.device), torch.randn(len(labels), *shape).to(mean.device).requires_grad_()
        adam = torch.optim.Adam([noise], lr=self.noise_lr)
        with exact(model):
            for step in range(self.noise_steps):
                images = (mean + std * noise).clamp(0, 1)
                error = functional.cross_entropy(model(images).float(), labels)
                size = noise.square().flatten(1).sum(1).mean()
                (noise.grad,) = torch.autograd.grad(self.noise_penalty * size - error, [noise])
                adam.step()
                count(labels, forward=1, input_gradients=1, source="other")
                progress.report("making noise", step + 1, self.noise_steps, f"cross-entropy {error:.2f}, squared norm {size:.0f}")
        return (mean + std * noise).clamp(0, 1).detach().cpu()


def channel_moments(samples: Samples) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels of each channel, un-augmented: float32 (C, 1, 1) both."""
    sums = torch.zeros(2, samples.shape[0], dtype=torch.float64)
    for images, _ in samples.batches():
        sums += torch.stack([images.double().sum((0, 2, 3)), images.double().square().sum((0, 2, 3))])
    mean, square = sums / (len(samples) * samples.shape[1] * samples.shape[2])
    std = (square - mean.square()).clamp(min=SMALLEST_STD**2).sqrt()
    return mean.float()[:, None, None], std.float()[:, None, None]
