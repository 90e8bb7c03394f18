"""One step of training: a batch goes through the model and the optimiser moves the weights. The loop (loop.py) says which batch, and at which learning rate."""

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from ..data.mixture import Batch, Drawn, Mixture
from ..errors import ModelError
from .objectives import Objective

Mask = Mapping[str, Tensor]


class Stepper(Protocol):
    """What the loop calls: `EagerStep`, or the same recorded once and replayed (captured.py)."""

    model: nn.Module
    parameters: list[nn.Parameter]
    replaying: bool  # whether the last step was a recording, in which no line of Python runs

    @property
    def mixture(self) -> Mixture: ...
    def __call__(self, drawn: Drawn | Batch, epoch: int) -> None: ...
    def set_lr(self, lr: float) -> None: ...
    def take_loss(self) -> float: ...
    def restart(self, weights: nn.Module, mixture: Mixture) -> None: ...
    def register_step_post_hook(self, hook: Callable[..., None]) -> RemovableHandle: ...


@final
class EagerStep:
    """A step computed operation by operation, with everything that it needs but the batch.

    Args:
        model: in the mode that it is trained in.
        parameters: of the model, those that may change.
        optimizer: of these parameters; its lr is a number, or a tensor on their device.
        objective: (model, batch) → scalar to minimise.
        mixture: where batches come from.
        layout: memory format of the images.
        dtype: of matrix products.
        mask: for each parameter name which weights may change; None = all.
    """

    def __init__(
        self, model: nn.Module, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, objective: Objective, mixture: Mixture, *,
        layout: torch.memory_format, dtype: torch.dtype, mask: Mask | None,
    ) -> None:  # fmt: skip
        self.model, self.parameters, self.optimizer, self.objective, self.mixture = model, parameters, optimizer, objective, mixture
        self.layout, self.dtype, self.restore = layout, dtype, _Restore(model, mask)
        self.loss = torch.zeros((), device=mixture.device)
        self.lr: float | None = None
        self.replaying = False
        self.hooks: OrderedDict[int, Callable[..., None]] = OrderedDict()

    def __call__(self, drawn: Drawn | Batch, epoch: int) -> None:
        self.compute(self.mixture.batch(drawn), epoch)
        self.after()

    def compute(self, batch: Batch, epoch: int) -> None:
        """Forward, backward, the optimiser's step, and the loss added up: nothing but operations on the device."""
        batch = dataclasses.replace(batch, images=batch.images.contiguous(memory_format=self.layout), epoch=epoch)
        torch.clear_autocast_cache()  # a caller's autocast keeps copies of weights until its end: some without gradients, and below those from before the step
        with (
            single_sample_batchnorm(self.model, len(batch.images)),
            torch.autocast(batch.images.device.type, self.dtype, enabled=self.dtype != torch.float32),
        ):
            loss = self.objective(self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.restore()
        torch.clear_autocast_cache()
        self.loss += loss.detach()

    def after(self) -> None:
        """What others do after a step, such as a spectral control."""
        for hook in list(self.hooks.values()):
            hook(self.optimizer, (), {})

    def set_lr(self, lr: float) -> None:
        group = self.optimizer.param_groups[0]
        if not isinstance(group["lr"], Tensor):
            group["lr"] = lr
        elif lr != self.lr:
            group["lr"].fill_(lr)
        self.lr = lr

    def take_loss(self) -> float:
        """The sum of the losses since the last call; waits for the device."""
        loss = self.loss.item()
        self.loss.zero_()
        return loss

    def register_step_post_hook(self, hook: Callable[..., None]) -> RemovableHandle:
        """As optimisers have it: the hook is called after every step."""
        handle = RemovableHandle(self.hooks)
        self.hooks[handle.id] = hook
        return handle

    def restart(self, weights: nn.Module, mixture: Mixture) -> None:
        """Begins the training of another model, which `weights` is like: its numbers are copied, so that everything stays where it is in memory."""
        copy_weights(weights, self.model)
        for value in (v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)):
            value.zero_()  # a momentum of zero is that of a first step
        self.loss.zero_()
        self.mixture = mixture


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copies parameters and buffers, also those that no state dict has, to where the target's are."""
    with torch.no_grad():
        for tensors in (nn.Module.named_parameters, nn.Module.named_buffers):
            theirs = dict(tensors(source))
            for name, mine in tensors(target):
                mine.copy_(theirs[name])


class _Restore:
    """Puts masked-out weights back to their first values after a step; zeroing gradients alone would let weight decay and momentum move them."""

    def __init__(self, model: nn.Module, mask: Mask | None) -> None:
        self.frozen: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        for name, parameter in model.named_parameters():
            part = None if mask is None else mask.get(name)
            if part is not None:
                if part.shape != parameter.shape:
                    raise ModelError(
                        f"the mask of {name} must have shape {tuple(parameter.shape)}; got {tuple(part.shape)}. Make it with this architecture."
                    )
                self.frozen.append((parameter, ~part.to(parameter.device), parameter.detach().clone()))

    @torch.no_grad()
    def __call__(self) -> None:
        for parameter, fixed, first in self.frozen:
            parameter.copy_(torch.where(fixed, first, parameter))


@contextlib.contextmanager
def single_sample_batchnorm(model: nn.Module, n: int) -> Iterator[None]:
    """A batch of one has no variance to normalise by: BatchNorm uses its running statistics for it. `sgd` does this for whole batches, objectives for parts of them."""
    active = [norm for norm in batchnorms(model) if norm.training] if n == 1 else []
    for norm in active:
        norm.eval()
    try:
        yield
    finally:
        for norm in active:
            norm.train()


def batchnorms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
