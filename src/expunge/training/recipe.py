"""How a model is trained from scratch: a recipe, and the function that follows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from .. import progress as _progress
from ..checks import check_settings, setting
from ..data.images import Samples
from ..device import PRECISIONS, resolve_device
from ..errors import ConfigError, ModelError
from ..rng import fork
from ..spectral.control import SpectralControl
from .inference import check_model
from .loop import sgd
from .objectives import cross_entropy, smoothed_cross_entropy
from .schedules import Cosine, Schedule

Build = Callable[[], nn.Module]


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a model is trained, but for data, architecture and seed.

    Shadow and retrained models must follow the recipe of the model that is audited, or their scores cannot be compared with its.

    Args:
        epochs: passes over the training set, ≥ 1.
        lr: peak step size of SGD per mini-batch of mean loss, > 0.
        batch_size: samples in a step, ≥ 1.
        momentum: in [0, 1). nesterov: with Nesterov's correction.
        weight_decay: on all parameters, ≥ 0.
        label_smoothing: share of the uniform distribution in the labels, in [0, 1).
        schedule: `Cosine`, `Step`, `MultiStep`, `Triangular` or `Constant`.
        augment: whether to apply the data's own augmentation.
        precision: "auto", "float32" or "bfloat16".
        clip: keeps the layers' singular values below a bound while training: `Clip`, or one of its alternatives; None = nothing does.

    Raises:
        ConfigError: a setting is outside its range, or nesterov without momentum.

    Example:
        >>> from expunge import Step
        >>> Recipe(epochs=200, schedule=Step(every=40)).lr  # the AMUN paper's; recipes.py has more by name
        0.1
    """

    epochs: int = setting(30, ge=1)
    lr: float = setting(0.1, gt=0)
    batch_size: int = setting(128, ge=1)
    momentum: float = setting(0.9, ge=0, lt=1)
    weight_decay: float = setting(5e-4, ge=0)
    nesterov: bool = setting(False)
    label_smoothing: float = setting(0.0, ge=0, lt=1)
    schedule: Schedule = setting(factory=Cosine)
    augment: bool = setting(True)
    precision: str = setting("auto", choices=PRECISIONS)
    clip: SpectralControl | None = setting(None, later=True)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.nesterov and not self.momentum:
            raise ConfigError("Recipe: nesterov=True needs momentum > 0; got momentum=0. Pass momentum=0.9, or nesterov=False.")


def train_model(
    build: Build,
    train: Samples,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: _progress.Listener | None = None,
) -> nn.Module:
    """A new model trained on `train`, in eval mode on `device`.

    On a CPU the same arguments give the same bits, for the same number of torch threads.

    Args:
        build: called without arguments, returns a freshly initialised model (see `architecture`).
        train: the training set, or a subset of it.
        recipe: how to train.
        seed: decides initial weights, order and augmentation, in [0, 2**63).
        device: "auto", "cpu", "cuda", …
        progress: called with a `Progress` after every step.

    Raises:
        ModelError: `build` returns no module, or one that it returned before, or its outputs do not fit the labels, or the loss diverges.

    Cost: `recipe.epochs` forward and backward passes over `train`.

    Example:
        >>> import expunge
        >>> train, test = expunge.load_data("digits")
        >>> model = train_model(expunge.architecture("small", train), train, expunge.Recipe(epochs=3), seed=0)
        >>> bool((expunge.logits_of(model, test).argmax(1) == test.labels).float().mean() > 0.5)
        True
    """
    with torch.inference_mode(False), torch.enable_grad(), fork(seed), _progress.listen(progress):
        model = new_model(build, train, resolve_device(device))
        objective = smoothed_cross_entropy(recipe.label_smoothing) if recipe.label_smoothing else cross_entropy
        sgd(
            model, train, objective,
            epochs=recipe.epochs, lr=recipe.lr, batch_size=recipe.batch_size, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov, schedule=recipe.schedule, augment=recipe.augment, precision=recipe.precision,
            clip=recipe.clip,
        )  # fmt: skip
        return model.eval()


def new_model(build: Build, train: Samples, device: torch.device) -> nn.Module:
    """A model as `build` makes it, on the device.

    Raises:
        ModelError: it is no module, or one that was returned before, or its outputs do not fit the labels.
    """
    model = build()
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"build() must return a torch.nn.Module; got {type(model).__name__}. Pass architecture(name, data) or a function of yours."
        )
    _check_fresh(model, build)
    model = model.to(device)
    check_model(model, train)
    return model


def _check_fresh(model: nn.Module, build: Build) -> None:
    """Training a model that somebody holds would change theirs, and `Retrain` would start from weights that have seen the forget set."""
    with fork(0):
        again = {id(parameter) for parameter in build().parameters()}
    if any(id(parameter) in again for parameter in model.parameters()):
        raise ModelError(
            "build() must make a new model at every call; got the same weights twice. Move the model's construction into build."
        )
