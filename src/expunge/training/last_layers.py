"""The last layers of a model, in the order in which it calls them: for methods that leave the rest as it is."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..costs import count
from ..data.images import Samples
from ..device import device_of
from ..errors import ModelError
from ..modes import eval_mode
from .reinitialise import owns

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Parts(NamedTuple):
    """A model's modules with weights or statistics of their own, each without its children: those of the last layers, and all others."""

    last: list[nn.Module]
    front: list[nn.Module]


def last_layers(model: nn.Module, data: Samples, k: int) -> Parts:
    """The last `k` layers (all, if there are no more), and the rest.

    A layer is a module with weights of its own, together with the BatchNorm (or another normalisation) that is called after it. They are counted in the order in
    which the model first calls them in eval mode, found by running it: names, shapes and the order of construction mislead. A module that is never called goes with
    the layer that it lies in, as the output of nn.MultiheadAttention does, or else to the rest.

    Raises:
        ModelError: the model calls no layer.

    Cost: one forward pass over two images.
    """
    layers = _layers(model, data)
    last = [module for layer in layers[-k:] for module in layer]
    return Parts(last, [module for module in model.modules() if (owns(module) or isinstance(module, NORMS)) and module not in last])


def _layers(model: nn.Module, data: Samples) -> list[list[nn.Module]]:
    layers: list[list[nn.Module]] = []
    homes: dict[nn.Module, list[nn.Module]] = {}
    order = _called(model, data)
    for module in order:
        if isinstance(module, NORMS) and layers:
            layers[-1].append(module)
        elif owns(module):
            layers.append([module])
            homes[module] = layers[-1]
    parents = {child: parent for parent in model.modules() for child in parent.children()}
    for module in model.modules():
        if owns(module) and module not in order:
            parent = parents.get(module)
            while parent is not None and parent not in homes:
                parent = parents.get(parent)
            if parent is not None:
                homes[parent].append(module)
    if not layers:
        raise ModelError(
            f"the model must call layers with weights; got {type(model).__name__}, which calls none. Wrap its parts in modules."
        )
    return layers


def _called(model: nn.Module, data: Samples) -> dict[nn.Module, None]:
    order: dict[nn.Module, None] = {}
    hooks = [module.register_forward_pre_hook(lambda module, _: order.setdefault(module)) for module in model.modules()]
    count(data.ids[:2], forward=1)
    try:
        with eval_mode(model), torch.enable_grad():  # without gradients PyTorch's transformers take a short cut past their own layers
            model(data.fetch(torch.arange(min(2, len(data)))).to(device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    return order
