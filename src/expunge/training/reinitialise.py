"""Fresh weights: for some modules of a model, or for a copy of all of it."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..data.images import Samples
from ..device import device_of
from ..errors import ModelError
from ..models.checkpoint import model_hash
from .inference import logits_of
from .recipe import Build, new_model


def reset(modules: Sequence[nn.Module], remedy: str = "let fewer layers start anew") -> None:
    """Draws weights and statistics of these modules anew, in place, each by its own `reset_parameters`; weights that do not require gradients stay.

    Inner modules come first (they are listed behind their parents), so that one which resets its children in a way of its own has the last word. Buffers that no
    module resets, such as the mean and standard deviation of `Normalize`, stay.

    Raises:
        ModelError: a module has weights that may change and no `reset_parameters`. Nothing has been changed then.
    """
    changing = [m for m in modules if not owns(m) or any(p.requires_grad for p in m.parameters(recurse=False))]
    wanting = next((m for m in changing if owns(m) and _resetter(m) is None), None)
    if wanting is not None:
        raise ModelError(
            f"every layer that is to start anew must have a reset_parameters method, as PyTorch's own layers do; got {type(wanting).__name__} without one. "
            f"Give the class one that draws its weights, or {remedy}."
        )
    for module in modules:
        if isinstance(module, _NormBase) and module not in changing:  # frozen weights; what it has seen goes all the same
            module.reset_running_stats()
    for module in reversed(changing):
        fixed = {p: p.detach().clone() for p in module.parameters(recurse=False) if not p.requires_grad}
        (_resetter(module) or _nothing)()
        with torch.no_grad():
            for parameter, first in fixed.items():
                parameter.copy_(first)


def reinitialised(model: nn.Module) -> nn.Module:
    """A copy that knows nothing: all weights and statistics fresh, frozen ones too, drawn from torch's global generator of the CPU, the same ones for every device.

    Raises:
        ModelError: a parameter belongs to a module without `reset_parameters`.
    """
    fresh = copy.deepcopy(model).cpu().requires_grad_(True)
    reset(list(fresh.modules()), "pass build=…, a function that makes such a network (in a plan or on the command line: mypkg.nets:build)")
    return fresh.to(device_of(model))


def fresh_network(model: nn.Module, build: Build | None, data: Samples) -> nn.Module:
    """A network that knows nothing of what the model was trained on: as `build` makes it, or else a copy of the model with fresh weights; on the model's device.

    Args:
        build: returns a new network with as many outputs as the model has; None = `reinitialised`.
        data: samples of the kind that it will see.

    Raises:
        ModelError: as `new_model` or `reinitialised`, or the numbers of outputs differ, or the network has the model's weights.
    """
    if build is None:
        return reinitialised(model)
    network, one = new_model(build, data, device_of(model)), data.subset([0])
    n_outputs, own = (logits_of(each, one).shape[1] for each in (network, model))
    if n_outputs != own:
        raise ModelError(
            f"build() must make a network with the {own} outputs of the model; got {n_outputs}. Pass the function that built the original."
        )
    if model_hash(network) == model_hash(model):
        raise ModelError(
            "build() must make a network that has not seen what is to be forgotten; got the model's own weights. Leave the checkpoint out of it."
        )
    return network


def owns(module: nn.Module) -> bool:
    """Whether a module has weights of its own, not only its children's."""
    return next(module.parameters(recurse=False), None) is not None


def _resetter(module: nn.Module) -> Callable[[], None] | None:
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)  # nn.MultiheadAttention's name


def _nothing() -> None:
    pass
