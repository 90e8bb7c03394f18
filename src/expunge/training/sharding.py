"""Models whose weights are shared out over the ranks while they train or answer: torch's FSDP2.

Outside of `sgd` and `logits_of` a model is an ordinary module in the memory of the host, so that it can be copied, stored and hashed as ever. Inside, a twin of it is at work, of which each
rank holds a part; layers are put together on each rank when their turn comes.
"""

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..ranks import Ranks

UNITS = 16  # parts of a model that are put together one at a time, at most: fewer need more memory, more need more messages


@contextlib.contextmanager
def sharded(model: nn.Module, ranks: Ranks) -> Iterator[nn.Module]:
    """A twin of the model on the ranks' devices, each with a part of the weights. What happens to the twin does not happen to the model (see `write_back`)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device, (ranks.size,))
    twin = copy.deepcopy(model)
    for unit in _units(twin):
        fully_shard(unit, mesh=mesh)
    yield twin


def _units(model: nn.Module) -> list[nn.Module]:
    """From the inside out, modules with at least a sixteenth of all weights that no unit before has; at last the model itself."""
    least = sum(p.numel() for p in model.parameters()) / UNITS
    units, taken = [], set()

    def visit(module: nn.Module) -> None:
        for child in (
            () if isinstance(module, nn.MultiheadAttention) else module.children()
        ):  # which uses its child's weights without calling it
            visit(child)
        mine = {p for p in module.parameters() if p not in taken}
        if module is model or (sum(p.numel() for p in mine) >= least and not isinstance(module, nn.ModuleList | nn.ModuleDict)):
            units.append(module)
            taken.update(mine)

    visit(model)
    return units


@torch.no_grad()
def write_back(twin: nn.Module, model: nn.Module) -> None:
    """Puts the twin's weights together, one after the other, and copies them and its buffers to the model."""
    for theirs, mine in zip((*twin.parameters(), *twin.buffers()), (*model.parameters(), *model.buffers()), strict=True):
        mine.copy_(whole(theirs))


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or what the ranks' parts of it are together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def digest(model: nn.Module) -> str:
    """SHA-256 (hex) over the bytes of all weights and buffers, also those that no state dict has."""
    found = hashlib.sha256()
    for tensor in (*model.parameters(), *model.buffers()):
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def options_for(twin: nn.Module, model: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """The options of `sgd` that name parts of the model, for its twin.

    Raises:
        ConfigError: a spectral control, which needs whole layers.
    """
    from torch.distributed.tensor import distribute_tensor

    if options.get("clip") is not None:
        raise ConfigError(
            f"a spectral control needs whole layers, and distributed(shard=True) leaves each rank a part of them; got clip={options['clip']!r}. "
            "Train without it, or with distributed() where the model fits on one GPU."
        )
    options = dict(options)
    if options.get("frozen"):
        names = {module: name for name, module in model.named_modules()}
        options["frozen"] = [twin.get_submodule(names[module]) for module in options["frozen"]]
    if options.get("mask") is not None:
        parameters: dict[str, Any] = dict(twin.named_parameters())  # DTensors, which know where their parts are
        options["mask"] = {
            name: distribute_tensor(part.to(parameters[name].device), parameters[name].device_mesh, parameters[name].placements)
            for name, part in options["mask"].items()
            if name in parameters
        }
    if options.get("after_epoch") is not None:
        options["after_epoch"] = _after_epoch(options["after_epoch"], twin, model)
    return options


def _after_epoch(callback: Callable[[int], bool | None], twin: nn.Module, model: nn.Module) -> Callable[[int], bool | None]:
    """The callback knows the model, and so finds it there as the twin is now."""

    def call(epoch: int) -> bool | None:
        write_back(twin, model)
        before = digest(model)
        ended = callback(epoch)
        if ended is not True and digest(model) != before:
            raise ModelError(
                "after_epoch must leave the model as it is where weights are shared out and training goes on; it changed them. Use distributed() without shard."
            )
        return ended

    return call


def check_unused(model: nn.Module) -> None:
    """Raises ModelError if an objective trains weights of the model itself, which it remembers, instead of the twin that it is given."""
    if any(parameter.grad is not None for parameter in model.parameters()):
        raise ModelError(
            "an objective must use the model that it is called with where weights are shared out; this one uses weights that it remembers. Use "
            "distributed() without shard."
        )
