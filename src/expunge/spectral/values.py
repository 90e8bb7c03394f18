"""Singular values of a layer, or of a whole linear network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import is_integer
from ..device import exact_float32
from ..errors import ConfigError, ModelError
from ..rng import generator
from .linear_maps import LinearMaps
from .power_qr import Singular, power_qr

TOLERANCE, PRODUCTS, MEMORY, LEAST = 1e-4, 300, 16, 12


@dataclass(frozen=True)
class SingularValues:
    """The k largest singular values of x ↦ Ax.

    Attributes:
        values: (k,), largest first.
        error_estimate: (k,), half widths: some singular value lies within this of each value. The values themselves are never too large, and
            usually far closer than this (the error is quadratic in the residual, the half width linear).
        right: (k, *input_shape), the vectors v, orthonormal.
        left: (k, *output_shape), the vectors u = Av/σ; 0 where σ is.
        iterations: products with AᵀA that it took.
        converged: whether every half width is within the tolerance.

    Example:
        >>> import torch, expunge
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
        >>> found = expunge.singular_values(layer, 2, k=2)
        >>> [round(value, 4) for value in found.values.tolist()], found.converged
        ([3.0, 1.0], True)
    """

    values: Tensor
    error_estimate: Tensor
    right: Tensor = field(repr=False)
    left: Tensor = field(repr=False)
    iterations: int
    converged: bool


def singular_values(
    layer: nn.Module,
    input_shape: int | Sequence[int],
    k: int = 1,
    *,
    tolerance: float = TOLERANCE,
    max_iterations: int = PRODUCTS,
    start: Tensor | None = None,
) -> SingularValues:
    """The k largest singular values, and vectors, of a layer at its real input size: convolutions of any stride, padding, dilation and groups,
    transposed ones, linear layers, average pooling, BatchNorm in eval mode, and compositions of these.

    Args:
        layer: a module with f(x) = Ax + b; weights of any float type (computed in float32 at least). `spectrum` takes whole models.
        input_shape: of one input, without the batch: (C, H, W) for a convolution, the number of features for a Linear.
        k: how many values, from 1 to the smaller of the numbers of inputs and outputs.
        tolerance: each half width (`error_estimate`) as a share of σ₁, > 0; below 1e-6 only float64 layers reach it.
        max_iterations: products with AᵀA, ≥ 1; what is reached by then is returned, with `converged` False.
        start: (k, *input_shape), vectors of an earlier call on similar weights: a warm start. One random vector is added to them.

    Raises:
        ModelError: the layer is not affine (which part is said), a BatchNorm is in training mode, or the shape does not fit.
        ConfigError: k, tolerance, max_iterations or start outside their range.

    Cost: about 10 to 60 products, each a forward and a backward pass of k + 1 inputs through the layer.
    Paper: PowerQR of arXiv:2402.16017, with the departures that `power_qr` lists.
    Example:
        >>> conv = nn.Conv2d(1, 1, 1, bias=False)
        >>> _ = nn.init.constant_(conv.weight, -2.0)
        >>> [round(value, 4) for value in singular_values(conv, (1, 8, 8), k=2).values.tolist()]
        [2.0, 2.0]
    """
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    check_affine(layer, shape)
    found = singular_values_of([layer], shape, k, tolerance=tolerance, max_iterations=max_iterations, start=start)[0]
    if len(found.values) < k:
        raise ConfigError(f"k must be at most {len(found.values)}, the number of singular values of {layer} at {shape}; got {k}.")
    return found


def singular_values_of(
    layers: Sequence[nn.Module], input_shape: tuple[int, ...], k: int, *, tolerance: float = TOLERANCE, max_iterations: int = PRODUCTS,
    start: Tensor | None = None,
) -> list[SingularValues]:  # fmt: skip
    """`singular_values` of affine layers that differ in their numbers only, computed side by side; k or as many as there are.

    Whether they are affine is not checked.
    """
    if not is_integer(k, 1) or not tolerance > 0 or not is_integer(max_iterations, 1):
        raise ConfigError(f"k and max_iterations must be integers ≥ 1 and tolerance > 0; got {k!r}, {max_iterations!r} and {tolerance!r}.")
    with torch.no_grad(), exact_float32():
        maps = LinearMaps(layers, input_shape)
        k = min(k, maps.rank)
        block = random_block(maps, k + 1)
        if start is not None:
            if start.shape != (k, *input_shape):
                raise ConfigError(f"start must have shape {(k, *input_shape)}; got {tuple(start.shape)}. Pass .right of an earlier call.")
            block[:, :k] = start.to(block).flatten(1)
        found = top(maps, block, k, tolerance, max_iterations)
        values, error, right = found.values[:, :k], found.half_widths[:, :k], found.right[:, :k]
        right = right.unflatten(2, maps.input_shape)
        left = maps(right)
        sizes = values.reshape(*values.shape, *[1] * len(maps.output_shape))
        left = torch.where(sizes > torch.finfo(left.dtype).eps * sizes[:, :1], left / sizes, 0)
        done = (error <= tolerance * values[:, :1]).all(1)
        return [
            SingularValues(value.cpu(), half_width.cpu(), vectors.cpu(), images.cpu(), iterations=found.products, converged=bool(ok))
            for value, half_width, vectors, images, ok in zip(values, error, right, left, done, strict=True)
        ]


def top(maps: LinearMaps, block: Tensor, wanted: int = 1, tolerance: float = 0.0, products: int = PRODUCTS) -> Singular:
    """`power_qr` of the maps, from a block (L, b, n)."""

    def gram(vectors: Tensor) -> Tensor:
        return maps.gram(vectors.unflatten(2, maps.input_shape)).flatten(2)

    return power_qr(gram, block, wanted=wanted, memory=2 * block.shape[1] + MEMORY, tolerance=tolerance, products=products, least=LEAST)


def random_block(maps: LinearMaps, width: int, seed: int = 0) -> Tensor:
    """(L, width, n) normal numbers, the same ones at every call with one seed and on every device."""
    numbers = torch.randn(len(maps), width, maps.n_inputs, generator=generator(seed), dtype=torch.float32)
    return numbers.to(maps.device, maps.dtype)


def check_affine(module: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Raises ModelError unless f(x) + f(y) = f(x + y) + f(0) holds on random inputs.

    Where it does not, the message names the first part that is not affine.
    """
    training = next((name or "it" for name, m in module.named_modules() if isinstance(m, _BatchNorm) and m.training), None)
    if training:
        raise ModelError(
            f"a BatchNorm is linear in eval mode only; got {training} in training mode, where its output depends on the rest of the batch. Call .eval() on it first."
        )
    maps = LinearMaps([module], input_shape)
    if _is_affine(maps):
        return
    part = _culprit(module, maps)
    raise ModelError(
        f"the layer must be affine, f(x) = Ax + b; got {part}, which is not. Pass the layers before and after it one by one, or the whole model to "
        "expunge.spectrum(model, input_shape), which finds its affine layers."
    )


@torch.no_grad()
def _is_affine(maps: LinearMaps) -> bool:
    x, y = random_block(maps, 2).unflatten(2, maps.input_shape).split(1, 1)
    both = torch.cat([x, y, x + y], 1)
    fx, fy, fxy = maps(both).split(1, 1)
    size = maps(both.abs()).abs().amax().maximum(torch.stack([fx, fy, fxy]).abs().amax())
    return bool((fx + fy - fxy).abs().amax() <= 1e-4 * size)


def _culprit(module: nn.Module, maps: LinearMaps) -> str:
    found: list[str] = []

    def look(part: nn.Module, args: tuple[Any, ...], output: Tensor, name: str) -> None:
        if not found and args and isinstance(args[0], Tensor) and not _is_affine(LinearMaps([part], tuple(args[0].shape[1:]))):
            found.append(f"{name} ({part})")

    leaves = [(name, part) for name, part in module.named_modules() if name and not list(part.children())]
    hooks = [part.register_forward_hook(lambda p, a, o, name=name: look(p, a, o, name)) for name, part in leaves]
    try:
        with torch.no_grad():
            module(torch.zeros(1, *maps.input_shape, device=maps.device, dtype=next((p.dtype for p in module.parameters()), torch.float32)))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else str(module)
