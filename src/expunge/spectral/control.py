"""What every control of spectral norms is: frozen settings, attached to a model and its optimiser in one line of a training loop.

    with expunge.Clip(max_norm=1.0).attach(model, optimizer, input_shape=(3, 32, 32)):
        for images, labels in batches:
            ...                                   # as before: autocast, gradient accumulation and learning rates are not touched

A control acts after the optimiser's steps, on the weights alone; neither gradients nor the optimiser's state change. (`SpectralNorm` is the exception: it is
part of the forward pass.)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..checks import check_settings
from ..device import exact_float32
from ..errors import ConfigError, ModelError
from .layers import Layer, affine_layers, grouped
from .linear_maps import LinearMaps
from .power_qr import Singular
from .values import random_block


class Stepping(Protocol):
    """What says when a step is done: any optimiser of torch, and the training loop's steps."""

    def register_step_post_hook(self, hook: Callable[..., None]) -> RemovableHandle: ...


@dataclass(frozen=True, kw_only=True)
class SpectralControl(ABC):
    """A way to keep the largest singular value of every convolution and linear layer small. A control's only base is this class.

    Every control has the field `max_norm`, the bound c > 0, and a number `every`, of optimiser steps between two actions.

    Example:
        >>> import expunge
        >>> isinstance(expunge.Clip(max_norm=1.0), expunge.SpectralControl), expunge.Clip(max_norm=1.0).max_norm
        (True, 1.0)
    """

    if TYPE_CHECKING:  # a control declares them, with their ranges

        @property
        def max_norm(self) -> float: ...

        @property
        def every(self) -> int: ...

    def __post_init__(self) -> None:
        check_settings(self)

    @final
    def attach(self, model: nn.Module, optimizer: Stepping, input_shape: tuple[int, ...]) -> "Attached":
        """Starts to act on `model` after the steps of `optimizer` that are `due`, every `every`-th; leaving the block, or `.finish()`, acts a last time and detaches.

        Args:
            model: in any mode; its convolutions and linear layers are found by one pass of an image of zeros.
            optimizer: of the model's parameters.
            input_shape: (C, H, W) of the images.

        Raises:
            ModelError: no layer to control, a frozen layer above the bound, or weights that are computed and cannot be set.
        """
        return Attached(self, model, optimizer, input_shape)

    def layers(self, model: nn.Module, input_shape: tuple[int, ...]) -> list[Layer]:
        """The layers that this control acts on."""
        return [layer for layer in affine_layers(model, input_shape) if editable(layer)]

    def due(self, step: int) -> bool:
        """Whether to act after this step of the optimiser; the first is number 1."""
        return step % self.every == 0

    def begin(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        """Sets the weights of layers of one kind, which can be evaluated side by side, before training.

        Args:
            layers: one or more.
            memory: tensors that this control keeps between its actions on these layers.
        """
        self.act(layers, memory)

    @abstractmethod
    def act(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        """The same while training."""

    def end(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        """The same at the end of training, where the bound is to hold."""
        self.act(layers, memory)

    def abandon(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        """Leaves plain weights, whatever they are, where the block ends by an error. Does nothing, unless a control overrides it."""
        return


class Attached:
    """A control at work on one model. `state_dict` and `load_state_dict` make it part of a checkpoint."""

    def __init__(self, control: SpectralControl, model: nn.Module, optimizer: Stepping, input_shape: tuple[int, ...]) -> None:
        self.control, self.steps = control, 0
        self.groups = grouped(distinct(control.layers(model, input_shape)))
        if not self.groups:
            raise ModelError(
                f"the model needs a convolution or linear layer to control; found none in {type(model).__name__}. Layers that call torch.nn.functional are not seen."
            )
        self.memories: list[dict[str, Tensor]] = [{} for _ in self.groups]
        self._do(control.begin)
        self._hook = optimizer.register_step_post_hook(lambda *_: self._after_step())

    def _after_step(self) -> None:
        self.steps += 1
        if self.control.due(self.steps):
            self._do(self.control.act)

    def _do(self, action: Callable[[list[Layer], dict[str, Tensor]], None]) -> None:
        with torch.no_grad(), exact_float32():
            for group, memory in zip(self.groups, self.memories, strict=True):
                action(group, memory)

    def finish(self) -> None:
        """Acts a last time, with care, and detaches from the optimiser."""
        self._hook.remove()
        self._do(self.control.end)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "memories": self.memories}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises:
            ConfigError: it is of another model.
        """
        if len(state["memories"]) != len(self.groups):
            raise ConfigError(
                f"the state must be of a model with {len(self.groups)} kinds of layers; got {len(state['memories'])}. Attach to the same architecture."
            )
        self.steps, self.memories = state["steps"], [dict(memory) for memory in state["memories"]]

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.finish()
        else:
            self._hook.remove()
            self._do(self.control.abandon)


def editable(layer: Layer) -> list[str]:
    """The names of the weights in a layer that may change; [] for pooling, normalisation alone, and frozen layers.

    Raises:
        ModelError: its weights are computed from other tensors.
    """
    if any(hasattr(part, "parametrizations") for part in layer.module.modules()):
        raise ModelError(
            f"a layer's weight must be a parameter that can be set; that of {layer.name} is computed by a parametrization. "
            "Remove it first: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')."
        )
    if not any(p.ndim > 1 for p in layer.module.parameters()):
        return []
    return [name for name, p in layer.module.named_parameters() if name.rpartition(".")[2] == "weight" and p.requires_grad]


def distinct(layers: list[Layer]) -> list[Layer]:
    """The layers, but only one of those that share their weights and are called at one size."""
    found: dict[tuple[Any, ...], Layer] = {}
    for layer in layers:
        found.setdefault((layer.kind, tuple(id(p) for p in layer.module.parameters())), layer)
    return list(found.values())


def start_of(maps: LinearMaps, memory: dict[str, Tensor], width: int) -> Tensor:
    """Vectors to start a search from, (L, width, n), or as many as there are inputs: those of the last time, and a random one for what has come up elsewhere."""
    block = random_block(maps, min(width, maps.n_inputs))
    if "vectors" in memory:
        block[:, :-1] = memory["vectors"].to(block)
    return block


def remember(memory: dict[str, Tensor], found: Singular) -> None:
    """Keeps what was found for `start_of`; the place of the last vector is the random one's."""
    memory["vectors"] = found.pushed[:, :-1]


def write(layers: list[Layer], maps: LinearMaps, names: list[str]) -> None:
    """Puts the named numbers of the maps into the layers."""
    for k, layer in enumerate(layers):
        parameters = dict(layer.module.named_parameters())
        for name in names:
            parameters[name].copy_(maps.numbers[name][k])
