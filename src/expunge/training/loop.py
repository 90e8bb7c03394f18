"""The one training loop. Originals, retrained models, shadow models and every method that takes gradient steps go through `sgd`."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import progress
from ..checks import choose
from ..costs import count
from ..data.images import Samples
from ..data.mixture import Batch, Mixture
from ..device import device_of, exact_float32, fast_layout, resolve_precision
from ..errors import ConfigError, ModelError, NotFinite
from ..rng import draw_seed
from ..spectral.control import SpectralControl
from .objectives import Objective, cross_entropy
from .orders import Order, shuffled
from .schedules import Constant, Schedule

Mask = Mapping[str, Tensor]
BATCHNORM = ("train", "frozen_statistics", "frozen")
OPTIMIZERS = ("sgd", "adam")


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
        objective: (model, batch) → scalar to minimise.
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
    """
    _check_options(epochs, lr, batch_size, batchnorm, clip, mask, optimizer)
    sources = [data] if isinstance(data, Samples) else list(data)
    device, schedule = device_of(model), schedule or Constant()
    mixture = Mixture(sources, device, augment=augment, seed=draw_seed() if seed is None else seed)
    first = next(mixture.epoch([torch.arange(min(2, len(mixture)))], 0)).images
    ids, sizes = torch.cat([source.ids for source in sources]), [len(source) for source in sources]
    dtype = resolve_precision(precision, device)
    exact = exact_float32() if precision == "float32" else contextlib.nullcontext()
    with exact, fast_layout(model, first) as layout, _trainable(model, mask, batchnorm, frozen) as parameters:
        if optimizer == "adam":
            stepper = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
        else:
            stepper = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True)
        restore = _Restore(model, mask)
        with clip.attach(model, stepper, tuple(first.shape[1:])) if clip else contextlib.nullcontext():
            for epoch in range(epochs):
                visits = order(sizes, batch_size, mixture.seed, epoch)
                total = torch.zeros((), device=device)
                for step, batch in enumerate(mixture.epoch([v.positions for v in visits], [v.number for v in visits])):
                    stepper.param_groups[0]["lr"] = lr * schedule(epoch + step / len(visits), epochs)
                    total += _step(model, _ready(batch, layout, epoch), objective, stepper, dtype)
                    restore()
                    count(ids[visits[step].positions], forward=1, backward=1)
                    progress.report(stage, epoch * len(visits) + step + 1, epochs * len(visits))
                _check_loss(total.item() / len(visits), epoch, lr)
                if after_epoch is not None and after_epoch(epoch + 1) is True:
                    break
        _check_weights(parameters, lr)


def _step(model: nn.Module, batch: Batch, objective: Objective, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> Tensor:
    with (
        single_sample_batchnorm(model, len(batch.images)),
        torch.autocast(batch.images.device.type, dtype, enabled=dtype != torch.float32),
    ):
        loss = objective(model, batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _ready(batch: Batch, layout: torch.memory_format, epoch: int) -> Batch:
    return dataclasses.replace(batch, images=batch.images.contiguous(memory_format=layout), epoch=epoch)


@contextlib.contextmanager
def _trainable(model: nn.Module, mask: Mask | None, batchnorm: str, frozen: Sequence[nn.Module]) -> Iterator[list[nn.Parameter]]:
    """Puts the model in training mode; yields the parameters that may change; restores modes and flags."""
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.train()
        for norm in _batchnorms(model) if batchnorm != "train" else ():
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


class _Restore:
    """Puts masked-out weights back to their first values after a step; zeroing gradients alone would let weight decay and momentum move them."""

    def __init__(self, model: nn.Module, mask: Mask | None) -> None:
        self.frozen = []
        for name, parameter in model.named_parameters() if mask is not None else ():
            if name in mask:
                if mask[name].shape != parameter.shape:
                    raise ModelError(f"the mask of {name} must have shape {tuple(parameter.shape)}; got {tuple(mask[name].shape)}.")
                self.frozen.append((parameter, ~mask[name].to(parameter.device), parameter.detach().clone()))

    @torch.no_grad()
    def __call__(self) -> None:
        for parameter, fixed, first in self.frozen:
            parameter.copy_(torch.where(fixed, first, parameter))


@contextlib.contextmanager
def single_sample_batchnorm(model: nn.Module, n: int) -> Iterator[None]:
    """A batch of one has no variance to normalise by: BatchNorm uses its running statistics for it. `sgd` does this for whole batches, objectives for parts of them."""
    active = [norm for norm in _batchnorms(model) if norm.training] if n == 1 else []
    for norm in active:
        norm.eval()
    try:
        yield
    finally:
        for norm in active:
            norm.train()


def _batchnorms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _check_options(
    epochs: int, lr: float, batch_size: int, batchnorm: str, clip: SpectralControl | None, mask: Mask | None, optimizer: str
) -> None:
    if not isinstance(epochs, int) or epochs < 0 or batch_size < 1 or not lr >= 0:
        raise ConfigError(f"sgd needs epochs ≥ 0, batch_size ≥ 1 and lr ≥ 0; got epochs={epochs!r}, batch_size={batch_size!r}, lr={lr!r}.")
    choose("batchnorm mode", batchnorm, BATCHNORM, "")
    choose("optimizer", optimizer, OPTIMIZERS, "")
    if clip is not None and mask is not None:
        raise ConfigError("a mask keeps weights as they are, and a spectral control changes them; got both. Pass one of them.")


def _check_loss(loss: float, epoch: int, lr: float) -> None:
    if not abs(loss) < float("inf"):
        raise NotFinite(f"training diverged: the mean loss of epoch {epoch + 1} is {loss} at lr={lr:g}. Lower lr, or check the data.")


def _check_weights(parameters: list[nn.Parameter], lr: float) -> None:
    """No loss is computed after the last step, so that it would not show there."""
    if not all(parameter.isfinite().all() for parameter in parameters):
        raise NotFinite(f"training diverged: weights are NaN or infinite after the last step at lr={lr:g}. Lower lr, or check the data.")
