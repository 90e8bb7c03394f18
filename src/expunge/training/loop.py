"""The one training loop. Originals, retrained models, shadow models and every method that takes gradient steps go through `sgd`."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import progress
from ..checks import choose
from ..costs import count
from ..data.images import Samples
from ..data.mixture import Mixture
from ..device import device_of, exact_float32, fast_layout, is_sharded, resolve_precision
from ..errors import ConfigError, ModelError, NotFinite
from ..rng import draw_seed
from ..spectral.control import SpectralControl
from .captured import CapturedStep, own_stream, recorder
from .distributed import across_ranks, drawn_across_ranks
from .objectives import Enough, Objective, cross_entropy
from .orders import Order, shuffled
from .schedules import Constant, Schedule
from .step import EagerStep, Mask, Stepper, batchnorms

BATCHNORM = ("train", "frozen_statistics", "frozen")
OPTIMIZERS = ("sgd", "adam")


@across_ranks
def sgd(
    model: nn.Module,
    data: Samples | Sequence[Samples],
    objective: Objective = cross_entropy,
    *,
    epochs: int,
    lr: float,
    batch_size: int = 128,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    nesterov: bool = False,
    schedule: Schedule | None = None,
    mask: Mask | None = None,
    batchnorm: str = "train",
    frozen: Sequence[nn.Module] = (),
    clip: SpectralControl | None = None,
    optimizer: str = "sgd",
    order: Order = shuffled,
    after_epoch: Callable[[int], bool | None] | None = None,
    augment: bool = True,
    precision: str = "auto",
    seed: int | None = None,
    stage: str = "training",
) -> None:
    """Trains the model in place, on the device that it is on, by SGD with momentum (or Adam) over epochs of all the data.

    Several sets are shuffled into one another, unless another order is asked for; each keeps its own augmentation.

    Args:
        model: any module that maps images in [0, 1] to logits.
        data: one set of samples or several.
        objective: (model, batch) → scalar to minimise; it may raise `Enough` to end the training.
        epochs: passes over the data, ≥ 0.
        lr: peak step size per mini-batch of mean loss, ≥ 0.
        batch_size: ≥ 1. momentum, weight_decay, nesterov: as in torch.optim.SGD.
        schedule: factor on lr as a function of epochs done; None = constant.
        mask: for each parameter name a bool tensor of its shape, True = may change. The others are put back after every step, so that neither weight
            decay nor momentum moves them. Parameters that the mask does not name stay as they are.
        batchnorm: "train" (batch statistics, running ones move), "frozen_statistics" (running statistics are used and stay; scale and shift learn) or
            "frozen" (nothing of BatchNorm changes).
        frozen: modules, each without its children, that stay as they are: their weights, and as BatchNorm their statistics too, which they then use.
        clip: keeps spectral norms small while training and at its end, such as `Clip`; None = nothing does. Not together with a mask.
        optimizer: "sgd", or "adam", which ignores momentum and nesterov.
        order: `shuffled`, `in_turn`, `paired` or a function of your own (orders.py): which samples each step sees.
        after_epoch: called with the number of epochs that are done; True ends the training, and what it does to the model is the caller's business.
        augment: whether to apply the data's own augmentation.
        precision: "auto", "float32" (exactly, on a GPU without TF32) or "bfloat16" for matrix products; weights are always float32.
        seed: of order and augmentation; None draws one from torch's global generator.
        stage: name of this work in progress reports.

    Raises:
        ConfigError: an unknown option. DataError: no sample. ModelError: the loss or a weight became NaN or infinite.

    Cost: `epochs` forward and backward passes over the data.

    Example:
        >>> import torch, expunge
        >>> train, test = expunge.load_data("digits")
        >>> _ = torch.manual_seed(0)
        >>> model = expunge.architecture("small", train)()
        >>> sgd(model, train, epochs=3, lr=0.1, seed=0)
        >>> bool((expunge.logits_of(model, test).argmax(1) == test.labels).float().mean() > 0.5)
        True
    """
    _check_options(epochs, lr, batch_size, batchnorm, clip, mask, optimizer)
    device = device_of(model)
    mixture = Mixture([data] if isinstance(data, Samples) else data, device, augment=augment, seed=draw_seed() if seed is None else seed)
    settings: dict[str, Any] = dict(
        lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, optimizer=optimizer, precision=precision
    )
    with (
        own_stream(device),
        prepared(model, mixture, objective, mask=mask, batchnorm=batchnorm, frozen=frozen, **settings) as step,
        contextlib.suppress(Enough),
    ):
        for _ in steps(
            step, epochs=epochs, lr=lr, batch_size=batch_size, schedule=schedule, clip=clip, order=order, after_epoch=after_epoch, stage=stage,
        ):  # fmt: skip
            pass


@contextlib.contextmanager
def prepared(
    model: nn.Module, mixture: Mixture, objective: Objective, *,
    lr: float, momentum: float, weight_decay: float, nesterov: bool, precision: str, optimizer: str = "sgd",
    mask: Mask | None = None, batchnorm: str = "train", frozen: Sequence[nn.Module] = (),
) -> Iterator[Stepper]:  # fmt: skip
    """The model ready to be trained, with the arguments of `sgd`, and as it was again after the block: yields what makes one step."""
    device, first = mixture.device, next(mixture.epoch([torch.arange(min(2, len(mixture)))], 0)).images
    dtype, record = resolve_precision(precision, device), recorder(objective, device)
    exact = exact_float32() if precision == "float32" else contextlib.nullcontext()
    with exact, fast_layout(model, first) as layout, _trainable(model, mask, batchnorm, frozen) as parameters:
        whole = not is_sharded(model)  # FSDP has no fused step, and steps of a part of the weights know no lr on a device
        rate: float | Tensor = lr
        if whole and (record or device.type == "cuda"):  # a recording reads the learning rate where it lies; CUDA's kernels want float32
            rate = torch.tensor(lr, device=device, dtype=torch.float32 if device.type == "cuda" else torch.float64)
        moved_by: torch.optim.Optimizer
        if optimizer == "adam":
            moved_by = torch.optim.Adam(
                parameters, lr=rate, weight_decay=weight_decay, fused=whole, capturable=whole and device.type == "cuda"
            )
        else:
            moved_by = torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=whole)
        step = EagerStep(model, parameters, moved_by, objective, mixture, layout=layout, dtype=dtype, mask=mask)
        yield CapturedStep(step, record) if record else step


def steps(
    step: Stepper, *,
    epochs: int, lr: float, batch_size: int, schedule: Schedule | None = None, clip: SpectralControl | None = None, order: Order = shuffled,
    after_epoch: Callable[[int], bool | None] | None = None, stage: str = "training",
) -> Generator[None, None, None]:  # fmt: skip
    """The whole training of a `prepared` model, with the arguments of `sgd`: one step whenever the next item is asked for, so that several models can take turns."""
    mixture, schedule = step.mixture, schedule or Constant()
    ids, sizes = torch.cat([source.ids for source in mixture.sources]), [len(source) for source in mixture.sources]
    with clip.attach(step.model, step, next(s.shape for s in mixture.sources if len(s))) if clip else contextlib.nullcontext():
        for epoch in range(epochs):
            visits = order(sizes, batch_size, mixture.seed, epoch)
            for k, drawn in enumerate(drawn_across_ranks(mixture, [v.positions for v in visits], [v.number for v in visits])):
                step.set_lr(lr * schedule(epoch + k / len(visits), epochs))
                step(drawn, epoch)
                count(ids[visits[k].positions], forward=1, backward=1)
                progress.report(stage, epoch * len(visits) + k + 1, epochs * len(visits))
                yield
            _check_loss(step.take_loss() / len(visits), epoch, lr)
            if after_epoch is not None and after_epoch(epoch + 1) is True:
                break
    _check_weights(step.parameters, lr)


@contextlib.contextmanager
def _trainable(model: nn.Module, mask: Mask | None, batchnorm: str, frozen: Sequence[nn.Module]) -> Iterator[list[nn.Parameter]]:
    """Puts the model in training mode; yields the parameters that may change; restores modes and flags."""
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.train()
        for norm in batchnorms(model) if batchnorm != "train" else ():
            norm.eval()
            if batchnorm == "frozen":
                norm.requires_grad_(False)
        for module in frozen:
            module.training = False
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        if mask is not None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name in mask)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ModelError("the model has no parameter that may change: all are frozen or masked out. Set requires_grad=True on some.")
        yield parameters
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


def _check_options(
    epochs: int, lr: float, batch_size: int, batchnorm: str, clip: SpectralControl | None, mask: Mask | None, optimizer: str
) -> None:
    if not isinstance(epochs, int) or epochs < 0 or batch_size < 1 or not lr >= 0:
        raise ConfigError(
            f"sgd needs epochs ≥ 0, batch_size ≥ 1 and lr ≥ 0; got epochs={epochs!r}, batch_size={batch_size!r}, lr={lr!r}. "
            "Pass whole numbers, and lr=0.01, say."
        )
    choose("batchnorm mode", batchnorm, BATCHNORM)
    choose("optimizer", optimizer, OPTIMIZERS)
    if clip is not None and mask is not None:
        raise ConfigError("a mask keeps weights as they are, and a spectral control changes them; got both. Pass one of them.")


def _check_loss(loss: float, epoch: int, lr: float) -> None:
    if not abs(loss) < float("inf"):
        raise NotFinite(f"training diverged: the mean loss of epoch {epoch + 1} is {loss} at lr={lr:g}. Lower lr, or check the data.")


def _check_weights(parameters: list[nn.Parameter], lr: float) -> None:
    """No loss is computed after the last step, so that it would not show there."""
    if not torch.stack([parameter.isfinite().all() for parameter in parameters]).all():  # waits for a GPU once
        raise NotFinite(f"training diverged: weights are NaN or infinite after the last step at lr={lr:g}. Lower lr, or check the data.")
