"""Layers as linear maps: x ↦ Ax of modules whose output is Ax + b, products with AᵀA, and what a weight contributes to uᵀAv.

The real layer is called at its real input size, and its transpose is its vector-Jacobian product. So stride, padding, dilation and groups need
no formula of their own, and neither do compositions.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..errors import ModelError
from ..models.normalize import Normalize

# What is added, or subtracted before the product. Setting it to zero is exact, where f(x) − f(0) would cancel the digits of a small Ax beside a large b.
OFFSETS = {_ConvNd: ("bias",), nn.Linear: ("bias",), _BatchNorm: ("bias", "running_mean"), Normalize: ("mean",)}


class LinearMaps:
    """The linear parts of L modules that differ in their numbers only, side by side.

    A batch of k vectors for each is a tensor (L, k, *input_shape). All L modules are evaluated in one call, in eval mode, at float32 or better.

    Args:
        modules: L ≥ 1 modules of one structure. They are not kept: changes of their weights do not reach here.
        input_shape: of one input, without the batch.

    Raises:
        ModelError: the input shape does not fit.
    """

    def __init__(self, modules: Sequence[nn.Module], input_shape: tuple[int, ...]) -> None:
        self.input_shape = tuple(input_shape)
        self.skeleton = _skeleton(modules[0])
        self.numbers = {name: _stack([_state(m)[name] for m in modules]) for name in _state(modules[0])}
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
        """AᵀAx, by one forward pass and one vector-Jacobian product: ½‖Ax‖² has this gradient."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = self(x)
            return torch.autograd.grad(y, x, y.detach())[0]

    def take(self, which: Tensor) -> "LinearMaps":
        """Some of the maps, by their numbers, with copies of their numbers."""
        some = copy.copy(self)
        some.numbers = {name: values[which] for name, values in self.numbers.items()}
        some.offset = None if self.offset is None else self.offset[which]
        return some

    def weight_gradients(self, names: Sequence[str], u: Tensor, v: Tensor) -> dict[str, Tensor]:
        """The gradient of Σᵢ uᵢᵀAvᵢ with respect to the named numbers: {name: (L, *shape)}.

        Args:
            u: (L, k, *output_shape). v: (L, k, *input_shape).
        """

        def products(chosen: dict[str, Tensor], rest: dict[str, Tensor], u: Tensor, v: Tensor) -> Tensor:
            return (functional_call(self.skeleton, chosen | rest, (v,)) * u).sum()

        chosen = {name: self.numbers[name] for name in names}
        rest = {name: value for name, value in self.numbers.items() if name not in chosen}
        with torch.autocast(v.device.type, enabled=False):
            return vmap(grad(products))(chosen, rest, u, v)

    def _affine(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            if not self.numbers:  # pooling: one map, whatever the number of modules
                return self.skeleton(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return vmap(lambda numbers, x: functional_call(self.skeleton, numbers, (x,)))(self.numbers, x)


def _skeleton(module: nn.Module) -> nn.Module:
    """The module without its numbers, in eval mode, and without anybody's hooks."""
    skeleton = copy.deepcopy(module).to("meta").eval().requires_grad_(False)
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


def _stack(values: list[Tensor]) -> Tensor:
    return values[0][None] if len(values) == 1 else torch.stack(values)
