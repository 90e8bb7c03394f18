"""Layers as linear maps: x ↦ Ax of modules whose output is Ax + b, products with AᵀA, and what a weight contributes to uᵀAv.

The real layer is called at its real input size, and its transpose is its vector-Jacobian product. So stride, padding, dilation and groups need
no formula of their own, and neither do compositions.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map

from ..errors import ModelError
from ..models.normalize import Normalize

# What is added, or subtracted before the product. Setting it to zero is exact, where f(x) − f(0) would cancel the digits of a small Ax beside a large b.
OFFSETS = {_ConvNd: ("bias",), nn.Linear: ("bias",), _BatchNorm: ("bias", "running_mean"), Normalize: ("mean",)}


class LinearMaps:
    """The linear parts of L modules that differ in their numbers only, side by side.

    A batch of k vectors for each is a tensor (L, k, *input_shape). All L modules are evaluated in one call, in eval mode, at float32 or better
    unless `rounded`.

    Args:
        modules: L ≥ 1 modules of one structure. They are not kept: changes of their weights do not reach here.
        input_shape: of one input, without the batch.

    Raises:
        ModelError: the input shape does not fit.
    """

    def __init__(self, modules: Sequence[nn.Module], input_shape: tuple[int, ...]) -> None:
        self.input_shape = tuple(input_shape)
        self.skeleton = _skeleton(modules[0])
        states = [_state(module) for module in modules]
        self.numbers = {name: _stack([state[name] for state in states]) for name in states[0]}
        some = next(iter(self.numbers.values()), torch.empty(0))
        self.device, self.dtype = some.device, some.dtype if some.is_floating_point() else torch.float32
        zero = torch.zeros(len(modules), 1, *self.input_shape, device=self.device, dtype=self.dtype)
        try:
            rest = self._affine(zero)
        except (RuntimeError, ValueError, ModelError) as error:
            raise ModelError(
                f"input_shape must be that of one input of the layer, without the batch; got {self.input_shape} for {modules[0]}: "
                f"{str(error).splitlines()[0]} For a convolution of colour images pass (3, H, W)."
            ) from None
        if not isinstance(rest, Tensor) or rest.ndim < 2:
            raise ModelError(f"a layer must return one tensor; got {type(rest).__name__} from {modules[0]}.")
        self.offset = rest if rest.any() else None
        self.output_shape = tuple(rest.shape[2:])

    def __len__(self) -> int:
        return len(next(iter(self.numbers.values()))) if self.numbers else 1

    @property
    def n_inputs(self) -> int:
        return torch.Size(self.input_shape).numel()

    @property
    def rank(self) -> int:
        """No map has more singular values than this."""
        return min(self.n_inputs, torch.Size(self.output_shape).numel())

    def __call__(self, x: Tensor) -> Tensor:
        """Ax: (L, k, *input_shape) → (L, k, *output_shape)."""
        y = self._affine(x)
        return y if self.offset is None else y - self.offset

    def gram(self, x: Tensor) -> Tensor:
        """AᵀAx, by one forward pass and one vector-Jacobian product: ½‖Ax‖² has this gradient. Of the type of x, whatever the type of the numbers."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = self(x)
            return torch.autograd.grad(y, x, y.detach())[0]

    def rounded(self, dtype: torch.dtype) -> "LinearMaps":
        """These maps with numbers of another type, for products that need not be exact: on hardware that multiplies bfloat16, five times as fast."""
        if dtype == self.dtype:
            return self
        some = copy.copy(self)
        some.dtype = dtype
        some.numbers = {name: _channels_last(v.to(dtype) if v.is_floating_point() else v) for name, v in self.numbers.items()}
        some.offset = None if self.offset is None else self.offset.to(dtype)
        return some

    def scale(self, name: str, factors: Tensor) -> None:
        """Multiplies the named numbers by a factor for each map, (L,)."""
        values = self.numbers[name]
        self.numbers[name] = values * factors.reshape(-1, *[1] * (values.ndim - 1))

    def take(self, which: Tensor) -> "LinearMaps":
        """Some of the maps, by their numbers, with copies of their numbers."""
        some = copy.copy(self)
        some.numbers = {name: values[which] for name, values in self.numbers.items()}
        some.offset = None if self.offset is None else self.offset[which]
        return some

    def weight_gradients(self, names: Sequence[str], v: Tensor, pull: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The gradient of Σᵢ uᵢᵀAvᵢ with respect to the named numbers, for u = pull(Av) that do not change: {name: (L, *shape)}, float32 or better.

        Args:
            v: (L, k, *input_shape). pull: (L, k, *output_shape) → the same.
        """
        some = copy.copy(self)
        with torch.enable_grad():
            chosen = {name: self.numbers[name].detach().requires_grad_() for name in names}
            some.numbers = self.numbers | chosen
            y = some(v)
            gradients = torch.autograd.grad(y, list(chosen.values()), pull(y.detach()))
        return {name: _wide(gradient) for name, gradient in zip(names, gradients, strict=True)}

    def _affine(self, x: Tensor) -> Tensor:
        x = self._fitting(x)
        with torch.autocast(x.device.type, enabled=False):
            if not self.numbers:  # pooling: one map, whatever the number of modules
                return self.skeleton(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return self._side_by_side(lambda numbers, x: functional_call(self.skeleton, numbers, (x,)))(self.numbers, x)

    def _fitting(self, x: Tensor) -> Tensor:
        return x if x.dtype == self.dtype else _channels_last(x.to(self.dtype))

    def _side_by_side(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of one map's tensors, for all maps: `vmap`, but without its copies for one."""
        if len(self) > 1:
            return vmap(function)
        return lambda *trees: tree_map(lambda t: t[None], function(*tree_map(lambda t: t[0], trees)))


def _skeleton(module: nn.Module) -> nn.Module:
    """The module without its numbers, in eval mode, and without anybody's hooks."""
    numbers = (*module.parameters(), *module.buffers())
    memo = {id(value): type(value)(value.detach().to("meta")) if isinstance(value, nn.Parameter) else value.to("meta") for value in numbers}
    skeleton = copy.deepcopy(module, memo).eval().requires_grad_(False)
    for part in skeleton.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return skeleton


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, the offsets of known layers at zero, half precision widened."""
    offsets = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in module.named_modules()
        for kind, names in OFFSETS.items()
        if isinstance(part, kind)
        for name in names
    }
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: torch.zeros_like(_wide(value)) if name in offsets else _wide(value) for name, value in state.items()}


def _wide(value: Tensor) -> Tensor:
    value = value.detach()
    return value.float() if value.is_floating_point() and value.element_size() < 4 else value


def _channels_last(values: Tensor) -> Tensor:
    """(1, N, C, H, W) stored channels last, in which bfloat16 convolutions are fastest; others as they are."""
    return values[0].contiguous(memory_format=torch.channels_last)[None] if values.ndim == 5 and len(values) == 1 else values


def _stack(values: list[Tensor]) -> Tensor:
    return values[0][None] if len(values) == 1 else torch.stack(values)
