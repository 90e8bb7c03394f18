"""Recipes by name: those of published experiments, and fast ones.

A recipe decides what a model remembers of its training images, so that shadow and retrained models follow the recipe of the model that is audited,
whichever it is. No recipe here chooses training samples by what the model thinks of them: that would itself depend on membership.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from ..checks import choose
from .recipe import Recipe
from .schedules import Constant, MultiStep, Step, Triangular


def recipe(name: str, **changes: Any) -> Recipe:
    """The recipe of this name, with other values for some of its fields.

    Args:
        name: one of `RECIPES`; `expunge list recipes` shows them.
        changes: fields of `Recipe`.

    Raises:
        MissingError: no recipe of that name, or no such field. ConfigError: a value outside its range.

    Example:
        >>> recipe("salun").schedule
        MultiStep(milestones=(91, 136), gamma=0.1)
        >>> recipe("amun", epochs=161).epochs  # as the paper's reference models
        161
    """
    made = RECIPES[choose("recipe", name, RECIPES, "`expunge list recipes` shows all.")]()
    for field in changes:
        choose("setting of Recipe", field, (f.name for f in dataclasses.fields(Recipe)))
    return dataclasses.replace(made, **changes)


def amun() -> Recipe:
    """200 epochs in steps of 40, batches of 128: originals and retrained models of the AMUN paper (ResNet-18, CIFAR-10).

    The paper's VGG-19 on Tiny-ImageNet has batch_size=256; its reference models for RMIA have epochs=161, and so are not of the target's recipe.

    Paper: Ebrahimpour-Boroojeny et al., "Not All Wrong is Bad: Using Adversarial Examples for Unlearning", ICML 2025, arXiv:2503.00917.
    Departures: the authors' code runs one more epoch than the paper says.
    """
    return Recipe(epochs=200, lr=0.1, batch_size=128, momentum=0.9, weight_decay=5e-4, schedule=Step(every=40))


def salun() -> Recipe:
    """182 epochs, a tenth of the step size after 91 and after 136, batches of 256: SalUn and ℓ1-sparse (ResNet-18, CIFAR-10).

    Paper: Fan et al., "SalUn", ICLR 2024, arXiv:2310.12508, and Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, arXiv:2304.04934; from the
    authors' code.
    Departures: none known. The authors hold out a tenth of each class for validation.
    """
    return Recipe(epochs=182, lr=0.1, batch_size=256, momentum=0.9, weight_decay=5e-4, schedule=MultiStep(milestones=(91, 136)))


def boundary() -> Recipe:
    """50 epochs at a constant 0.01, batches of 64, no weight decay and no augmentation: Boundary Unlearning (All-CNN, CIFAR-10).

    Paper: Chen et al., "Boundary Unlearning", CVPR 2023, arXiv:2303.11570; from the authors' code.
    Departures: none known.
    """
    return Recipe(epochs=50, lr=0.01, batch_size=64, momentum=0.9, weight_decay=0.0, schedule=Constant(), augment=False)


def cifar10_fast() -> Recipe:
    """24 epochs, batches of 512, Nesterov's momentum, up in 5 epochs and down to 0: David Page's fast ResNet-9 for CIFAR-10.

    Its step size is 0.4 for the mean loss of a batch, as everywhere here; Page sums the losses of a batch and divides the step size by 512.

    Paper: Page, "How to train your ResNet", 2018; davidcpage/cifar10-fast, dawn.py.
    Departures: no cutout, zeros beyond the border of a shifted image (Page: its reflection), and a last batch that is not full is used. Page's network multiplies its
    logits by 1/8.
    """
    return Recipe(epochs=24, lr=0.4, batch_size=512, momentum=0.9, nesterov=True, weight_decay=5e-4, schedule=Triangular(peak=5 / 24))


def airbench() -> Recipe:
    """10 epochs, batches of 1024, Nesterov's momentum, smoothed labels: what airbench94 does on CIFAR-10, without what belongs to its network.

    Ten epochs with smoothed labels leave little to remember: membership attacks find less than after a paper's recipe. Step size and weight decay are airbench's
    11.5 and 0.0153 "per 1024 examples" as torch's SGD understands them on the mean loss: with momentum m they are divided by 1 + 1 / (1 − m), and the decay by
    the step size.

    Paper: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, arXiv:2404.00498; KellerJordan/cifar10-airbench, airbench94.py.
    Departures: no whitening layer, no Lookahead, the same step size for the biases of BatchNorm (airbench: 64 times), independent flips (airbench: every other epoch),
    shifts as the data set says, 10 epochs for 9.9. The accuracy that airbench reports holds for its own network, not for others.
    """
    lr, decay = 11.5 / (1 + 1 / 0.15), 0.0153 / (1 + 1 / 0.15)
    return Recipe(
        epochs=10, lr=round(lr, 4), batch_size=1024, momentum=0.85, nesterov=True, weight_decay=round(decay / lr, 6), label_smoothing=0.2,
        schedule=Triangular(peak=0.23, start=0.2, end=0.07),
    )  # fmt: skip


RECIPES: dict[str, Callable[[], Recipe]] = {
    "airbench": airbench, "amun": amun, "boundary": boundary, "cifar10_fast": cifar10_fast, "salun": salun,
}  # fmt: skip
