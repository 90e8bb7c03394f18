"""Which layers of a model are affine, and at which input sizes it calls them: found by one pass of an image."""

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..device import device_of
from ..errors import ModelError
from ..models.normalize import Normalize
from ..modes import eval_mode

POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
AFFINE = (_ConvNd, nn.Linear, _BatchNorm, Normalize, *POOLS)


@dataclass(frozen=True)
class Layer:
    """An affine layer at one input size, or a convolution together with the BatchNorm that follows it.

    Attributes:
        name: as in `model.named_modules()`; "conv1 + bn1" for both together.
        module: the layer itself, not a copy; for both together an `nn.Sequential` of the two.
        input_shape: of one input, without the batch; for a Linear only its last dimension, for it treats all positions alike.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for layers that may be computed side by side."""
        numbers = (*self.module.named_parameters(), *self.module.named_buffers())
        return (repr(self.module), self.input_shape, *((name, value.dtype, value.device) for name, value in numbers))


def affine_layers(model: nn.Module, input_shape: tuple[int, ...], *, composed: bool = False) -> list[Layer]:
    """The affine layers that a model calls, in order of their calls; a layer that is called at two sizes is there twice.

    Args:
        model: any module. It is called once, in eval mode, with one image of zeros; what calls torch.nn.functional itself is not seen.
        input_shape: (C, H, W) of an image.
        composed: whether a BatchNorm whose input is the output of a convolution (or Linear) is one layer together with it.

    Raises:
        ModelError: the model does not take such an image.
    """
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, AFFINE):
                hook = module.register_forward_hook(functools.partial(_note, calls, name), with_kwargs=True)
                stack.callback(hook.remove)
        stack.enter_context(eval_mode(model))
        call_once(model, input_shape)
    found: dict[tuple[Any, ...], Layer] = {}
    for name, module, x, _ in calls:
        before = next((c for c in calls if c[3] is x and isinstance(c[1], _ConvNd | nn.Linear)), None)
        layer = Layer(name, module, _shape(module, x))
        if composed and isinstance(module, _BatchNorm) and before:
            first = Layer(before[0], before[1], _shape(before[1], before[2]))
            found.pop((first.name, first.input_shape), None)
            layer = Layer(f"{first.name} + {name}", nn.Sequential(first.module, module), first.input_shape)
        found.setdefault((layer.name, layer.input_shape), layer)
    return list(found.values())


def grouped(layers: list[Layer]) -> list[list[Layer]]:
    """The layers, on a GPU those of one kind together, so that one call evaluates them all; a CPU is faster with one at a time."""
    groups: dict[tuple[Any, ...], list[Layer]] = {}
    for number, layer in enumerate(layers):
        alone = device_of(layer.module).type == "cpu"
        groups.setdefault((number,) if alone else layer.kind, []).append(layer)
    return list(groups.values())


@torch.no_grad()
def call_once(model: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """The model's output on one image of zeros.

    Raises:
        ModelError: the image does not fit.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        return model(torch.zeros(1, *input_shape, device=device_of(model), dtype=dtype))
    except (RuntimeError, ValueError, TypeError, ModelError) as error:
        raise ModelError(
            f"input_shape must be (C, H, W) of the model's images; got {tuple(input_shape)}: {str(error).splitlines()[0]} "
            "Pass the shape of one image, such as train.shape."
        ) from None


def _note(calls: list[Any], name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
    calls.append((name, module, args[0] if args else next(iter(kwargs.values())), output))


def _shape(module: nn.Module, x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[-1:]) if isinstance(module, nn.Linear) else tuple(x.shape[1:])
