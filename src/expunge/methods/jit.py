"""JiT: just in time unlearning, by flattening the model around each forget image."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from ..checks import setting
from ..costs import count
from ..data.mixture import Batch
from ..data.split import Split
from ..training.loop import BATCHNORM
from ..training.until import sgd_until_gone
from .base import Method

CLOSEST = 1e-12  # least distance of a copy from its image: 0 only where the noise points out of [0, 1] in every pixel


@final
@dataclass(frozen=True, kw_only=True)
class JiT(Method):
    """Makes the answers on each forget image and on noisy copies of it alike, relative to the distance of the images, once for each image:

        min_θ  E_{x ∈ D_F} 1/n Σ_j ‖f_θ(x) − sg[f_θ(x + ξ_j)]‖₂ / ‖ξ_j‖₂,    ξ_j ~ N(0, σ² I),  x + ξ_j clamped to [0, 1]

    sg[·] is not differentiated. Memory of an image is a bump around it; the idea is to flatten the bump. Nothing in the loss knows a label or a class.

    Use when: neither retain data nor labels are at hand, and a whole class must leave; DELETE, which needs the labels alone, costs others less. On digits a class left at
    the price of 2 to 50 % of the accuracy on the others, and random samples went no sooner than all others: a step that took half of the forget set's accuracy took
    half of the retain set's. Cost: `epochs` × (1 + n / 3) passes over D_F for each step that is tried.

    Args:
        sigma: σ of the noise in units of pixels in [0, 1], > 0, because our models normalise inside; where it is given for normalised images, multiply by their standard
            deviation. Authors, on CIFAR-10: 0.01 for random samples and 0.5 for a class with VGG, 0.5 and 0.8 with ViT, none for ResNets. With 0.1,
            fewer of the steps that we tried on digits removed the class and kept the others.
        n_copies: n, noisy copies of an image, ≥ 1. Authors: 25.
        epochs: passes over the forget set, ≥ 1. Authors: 1.
        lr: smallest SGD step per mini-batch of mean loss, > 0. Ours, from a try on digits, where 2e-3 to 4e-3 were needed; the authors' (VGG: 3e-4) are for sums over batches,
            without `zero_grad` between them.
        batch_size: samples in a step, ≥ 1. Ours; the authors' is not known to us.
        batchnorm: "frozen_statistics", "frozen" or "train" (copies then move the running statistics), as in `sgd`.
        until: where whole classes leave, the step doubles, from `lr` on and from the original anew, until at most this share of their training images is still answered
            with their class (see `sgd_until_gone`); in [0, 1), None = `lr` as it is, whatever comes of it.

    Raises:
        ModelError: the loss or a weight became infinite.

    Paper: Foster et al., "Zero-Shot Machine Unlearning at Scale via Lipschitz Regularization", arXiv:2402.01401 (later "An Information Theoretic Approach to
        Machine Unlearning").
    Departures: gradients are set to zero before every step (the authors' code does so once, so that each step repeats all gradients before it); the mean over
    a batch instead of the sum; copies are clamped to [0, 1] instead of the range of the batch, so that they do not depend on batch mates; BatchNorm keeps its statistics;
    matrix products in float32, because the loss is a small difference of answers; `until`.
    Example:
        >>> JiT(sigma=0.1, until=None).reads_retain
        False
    """

    name: ClassVar[str] = "jit"
    paper: ClassVar[str] = "Foster et al. 2024, arXiv:2402.01401"
    retain: ClassVar[str] = "none"

    sigma: float = setting(0.5, gt=0)
    n_copies: int = setting(25, ge=1)
    epochs: int = setting(1, ge=1)
    lr: float = setting(1e-4, gt=0)
    batch_size: int = setting(16, ge=1)
    batchnorm: str = setting("frozen_statistics", choices=BATCHNORM)
    until: float | None = setting(0.05, ge=0, lt=1)

    def cost(self, forget: float) -> float:
        return self.epochs * (1 + self.n_copies / 3) * forget

    def step_search(self, split: Split) -> float | None:
        return self.until if split.forget_classes else None

    def run(self, model: nn.Module, split: Split) -> None:
        sgd_until_gone(
            model, split.forget, self._steepness,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, momentum=0.0, weight_decay=0.0, batchnorm=self.batchnorm, precision="float32",
            until=self.step_search(split), forget=split.forget,
        )  # fmt: skip

    def _steepness(self, model: nn.Module, batch: Batch) -> Tensor:
        images, answers = batch.images, model(batch.images)
        total = torch.zeros((), device=images.device)
        for _ in range(self.n_copies):
            copies = (images + self.sigma * torch.randn_like(images)).clamp(0, 1)
            with torch.no_grad():
                count(batch.ids, forward=1)
                elsewhere = model(copies)
            distance = (copies - images).flatten(1).norm(dim=1).clamp(min=CLOSEST)
            total = total + ((answers - elsewhere).norm(dim=1) / distance).mean()
        return total / self.n_copies
