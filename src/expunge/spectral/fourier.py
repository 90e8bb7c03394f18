"""Convolutions as if images were wrapped round at their edges: then a Fourier transform makes one small matrix for each frequency out of them.

A kernel K on a grid of n points, whose input and output are both Fourier transformed, is at frequency ω the matrix K̂(ω) of C_out × C_in. With stride s
the n / s frequencies of the output hold s of the input each, and the matrix at ω is [K̂(ω), K̂(ω + n/s), …] / √s (in each dimension): C_out × s C_in.
The singular values of all these matrices are those of the layer. Papers: Sedghi, Gupta and Long (below); for strides Senderovich et al. (below).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..checks import is_integer, setting
from ..device import exact_float32
from ..errors import ConfigError, ModelError
from .control import SpectralControl, write
from .layers import Layer
from .linear_maps import LinearMaps


@final
@dataclass(frozen=True, kw_only=True)
class FFTClip(SpectralControl):
    """Clipping in the frequency domain: exact for images that wrap round and kernels as large as they; then cut back to the kernel's own size.

        every N steps, for each layer, on a grid of the size of its input:
            K̂(ω) = U Σ Vᴴ for every frequency ω                                  (`fourier` has the matrices)
            K ← K − cut( inverse FFT of U max(Σ − c, 0) Vᴴ )                      = cut( inverse FFT of U min(Σ, c) Vᴴ )

    A Linear and 1 × 1 convolutions come to σ₁ ≤ c exactly, other convolutions do not: what is cut away is missing, zeros outside the image are not a
    wrapped image, and repeating it helps only partly. Layers within the bound on the wrapped image keep every bit.

    Use when: something must be compared with it. Cost: eigenvectors of a complex C_out × C_out matrix for every other pixel: 14 s
    on one core for a ResNet-18 at 32 × 32.

    Args:
        max_norm: c > 0.
        every: optimiser steps between two clips, ≥ 1. FastClip's authors: 100.

    Raises:
        ConfigError: a setting is outside its range.

    Papers: Sedghi, Gupta and Long, "The Singular Values of Convolutional Layers", ICLR 2019, arXiv:1805.10408; strides after Senderovich et al.,
    "Towards Practical Control of Singular Values of Convolutional Layers", NeurIPS 2022, arXiv:2211.13771.
    Departures: eigenvectors of K̂K̂ᴴ in place of singular vectors. No tensor-train factors (the second paper compresses kernels first). A
    grid that the stride does not divide grows until it does.
    Example:
        >>> FFTClip(max_norm=0.5).every
        100
    """

    max_norm: float = setting(1.0, gt=0)
    every: int = setting(100, ge=1)

    def act(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        module = layers[0].module
        maps = LinearMaps([layer.module for layer in layers], layers[0].input_shape)
        weights, sizes = maps.numbers["weight"], _sizes(module, maps.input_shape, maps.output_shape)
        lattice = _lattice(module, [max(n, e) for n, e in zip(sizes, _extents(module), strict=True)])
        maps.numbers["weight"] = weights - _kernels(_excess(_matrices(weights, lattice), self.max_norm), weights, lattice)
        write(layers, maps, ["weight"])


def _excess(matrices: Tensor, max_norm: float) -> Tensor:
    """U max(Σ − c, 0) Vᴴ, as U max(1 − c / Σ, 0) Uᴴ K̂ with the eigenvectors U of K̂K̂ᴴ: several times faster than singular vectors, which the small
    values, whose digits K̂K̂ᴴ loses, would need."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return _excess(matrices.mH, max_norm).mH
    squares, u = torch.linalg.eigh(matrices @ matrices.mH)
    share = 1 - max_norm / squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()
    return (u * share.clamp(min=0)[..., None, :]) @ (u.mH @ matrices)


@final
@dataclass(frozen=True, kw_only=True)
class GramRescale(SpectralControl):
    """Rescaling by an upper bound instead of the norm itself: W ← W / max(1, bound / c), with `gram_bound`.

    The bound c holds for certain after every action, not only up to the accuracy of an iteration; the layers are smaller than need be by what the bound is too
    large, some percent for convolutions of more than a few pixels.

    Use when: something must be compared with it, or a bound is needed that no unlucky start can miss. Cost: `iterations` products of complex
    C_out × C_out matrices for every other pixel: 24 s on one core for a ResNet-18 at 32 × 32, every N steps.

    Args:
        max_norm: c > 0.
        every: optimiser steps between two projections, ≥ 1.
        iterations: of Gram, 1 to 20; each one squares the spectra's ratios. FastClip's authors: 6.

    Raises:
        ConfigError: a setting is outside its range. ModelError: when attached, a padding for which no bound is known.

    Paper: Delattre et al., "Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration", ICML 2023, arXiv:2305.16173.
    Departures: a projection, where they and FastClip's authors add the bound to the loss. Zero padding and strides are bounded too.
    Example:
        >>> GramRescale(max_norm=0.5).iterations
        6
    """

    max_norm: float = setting(1.0, gt=0)
    every: int = setting(50, ge=1)
    iterations: int = setting(6, ge=1, le=20)

    def layers(self, model: nn.Module, input_shape: tuple[int, ...]) -> list[Layer]:
        layers = super().layers(model, input_shape)
        for layer in layers:
            if isinstance(layer.module, _ConvNd):
                _pads(layer.module)  # before anything is changed
        return layers

    def act(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        maps = LinearMaps([layer.module for layer in layers], layers[0].input_shape)
        maps.scale("weight", (self.max_norm / _bounds(layers[0].module, maps, self.iterations)).clamp(max=1))
        write(layers, maps, ["weight"])


def gram_bound(layer: nn.Module, input_shape: int | Sequence[int], iterations: int = 6) -> float:
    """An upper bound on the largest singular value of a convolution (of any stride, dilation and groups, also transposed) or Linear; up to rounding.

        for each frequency:  D ← DᴴD, `iterations` times;   σ₁(K̂(ω)) ≤ ‖D‖_F ^ (2 ^ −iterations)
        (D is divided by its norm before each product, and the logarithms are added up: the powers would overflow.)

    Zero padding by p: the layer's image of n pixels is part of a wrapped one of n + p whose other pixels are zero, a window that goes over one edge
    reads the same zeros as the one that goes over the other, and its outputs are among those of the wrapped image. So the norm is at most that on the
    wrapped grid of n + p. (On the grid of n, as is often computed, it need not be.) Circular padding that keeps the size has grid n.

    Args:
        layer: its weights are not changed.
        input_shape: of one input, without the batch: (C, H, W), or the number of features.
        iterations: ≥ 1. The bound falls with every one, to the largest singular value on the wrapped grid; at 6 it is at most r^(1/128) above, r =
            the smaller side of the matrices: 5 % for 512.

    Raises:
        ConfigError: iterations < 1. ModelError: another kind of layer, a shape that does not fit, reflect or replicate padding, or circular padding
            that makes the image larger.

    Cost: a Fourier transform, and `iterations` products of complex C_out × C_out matrices for every other pixel.
    Paper: Delattre et al., "Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration", ICML 2023, arXiv:2305.16173.
    Example:
        >>> conv = nn.Conv2d(1, 1, 1, bias=False)
        >>> _ = nn.init.constant_(conv.weight, -2.0)
        >>> round(gram_bound(conv, (1, 8, 8)), 3)
        2.0
    """
    if not is_integer(iterations, 1):
        raise ConfigError(f"iterations must be an integer ≥ 1; got {iterations!r}.")
    if not isinstance(layer, _ConvNd | nn.Linear):
        raise ModelError(
            f"the layer must be a convolution or Linear; got {type(layer).__name__}. Use expunge.singular_values for other affine layers."
        )
    with torch.no_grad(), exact_float32():
        maps = LinearMaps([layer], (input_shape,) if isinstance(input_shape, int) else tuple(input_shape))
        return _bounds(layer, maps, iterations).item()


def _bounds(module: nn.Module, maps: LinearMaps, iterations: int) -> Tensor:
    """(L,)"""
    matrices = _matrices(maps.numbers["weight"], _covering(module, maps))
    if matrices.shape[-2] < matrices.shape[-1]:
        matrices = matrices.mH  # the smaller products
    logarithm = matrices.new_zeros((), dtype=matrices.real.dtype)
    for _ in range(iterations):
        norm = torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=torch.finfo(logarithm.dtype).tiny)
        matrices = matrices / norm
        logarithm, matrices = 2 * (logarithm + norm.log()), matrices.mH @ matrices
    last = logarithm + torch.linalg.matrix_norm(matrices, keepdim=True).log()
    return (last.flatten(1).amax(1) / 2**iterations).exp()


# Grids and the matrices on them


class _Lattice(NamedTuple):
    grid: tuple[int, ...]  # multiples of the stride
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def _lattice(module: nn.Module, sizes: Sequence[int], stride: Sequence[int] | None = None) -> _Lattice:
    """The grid of at least these sizes; a Linear is a 1 × 1 convolution of one pixel."""
    if isinstance(module, nn.Linear):
        return _Lattice((1,), (1,), (1,), 1)
    conv = cast(_ConvNd, module)
    stride = tuple(stride or conv.stride)
    return _Lattice(tuple(math.ceil(n / s) * s for n, s in zip(sizes, stride, strict=True)), stride, conv.dilation, conv.groups)


def _sizes(module: nn.Module, input_shape: Sequence[int], output_shape: Sequence[int]) -> Sequence[int]:
    """Of the image that is read. A transposed convolution is the transpose of the convolution, with the same weight, that reads its output."""
    if isinstance(module, nn.Linear):
        return (1,)
    return output_shape[1:] if isinstance(module, _ConvTransposeNd) else input_shape[1:]


def _extents(module: nn.Module) -> list[int]:
    """Of the kernel, with the holes that dilation makes."""
    if isinstance(module, nn.Linear):
        return [1]
    conv = cast(_ConvNd, module)
    return [(k - 1) * d + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]


def _pads(module: _ConvNd) -> list[tuple[int, int]]:
    """Of every dimension, left and right.

    Raises:
        ModelError: pixels are repeated in a way for which no bound is known.
    """
    extents = _extents(module)
    if isinstance(module.padding, str):  # "same" puts the odd one on the right
        pads = [((e - 1) // 2, e // 2) if module.padding == "same" else (0, 0) for e in extents]
    else:
        pads = [(p, p) for p in module.padding]
    keeps = all(sum(p) < e for p, e in zip(pads, extents, strict=True))
    if module.padding_mode != "zeros" and any(map(sum, pads)) and not (module.padding_mode == "circular" and keeps):
        raise ModelError(
            f"the bound is known for zero padding, and for circular padding that does not make the image larger; got {module}. "
            "Use Rescale or Clip, which measure the layer itself."
        )
    return pads


def _covering(module: nn.Module, maps: LinearMaps) -> _Lattice:
    """A grid on which the wrapped layer's norm is at least that of the layer itself (`gram_bound` says why)."""
    sizes, extents = _sizes(module, maps.input_shape, maps.output_shape), _extents(module)
    if isinstance(module, nn.Linear):
        return _lattice(module, sizes)
    conv = cast(_ConvNd, module)
    pads = _pads(conv)
    if conv.padding_mode == "zeros" or not any(map(sum, pads)):
        return _lattice(conv, [max(n + max(p), e) for n, p, e in zip(sizes, pads, extents, strict=True)])
    # Images that repeat after n are among those that repeat after a multiple of n; and where s does not divide n the outputs are some of those of stride 1.
    grid = [n * math.ceil(e / n) for n, e in zip(sizes, extents, strict=True)]
    return _lattice(conv, grid, [s if n % s == 0 else 1 for n, s in zip(sizes, conv.stride, strict=True)])


def _matrices(weights: Tensor, lattice: _Lattice) -> Tensor:
    """(L, C_out, C_in / groups, *kernel) → (L, groups, *grid / stride, C_out / groups, C_in / groups · strides), one matrix for each frequency.

    In the last dimension only frequencies 0 to half: the others' matrices are conjugates of these.
    """
    grid, stride, _, groups = lattice
    d = len(grid)
    weights = weights.reshape(len(weights), groups, weights.shape[1] // groups, weights.shape[2], *weights.shape[3:] or (1,))
    padded = weights.new_zeros(*weights.shape[:4], *grid)
    padded[_taps(weights.shape[4:], lattice)] = weights
    transformed = torch.fft.fftn(padded, dim=tuple(range(4, 4 + d)))
    for k, s in enumerate(stride):  # n frequencies as s × (n / s)
        transformed = transformed.unflatten(4 + 2 * k, (s, -1))
    order = (0, 1, *range(5, 5 + 2 * d, 2), 2, 3, *range(4, 4 + 2 * d, 2))
    matrices = transformed.permute(order).flatten(3 + d) / math.sqrt(math.prod(stride))
    return matrices[..., : matrices.shape[-3] // 2 + 1, :, :]


def _kernels(matrices: Tensor, weights: Tensor, lattice: _Lattice) -> Tensor:
    """The inverse of `_matrices`, cut to the shape of the weights."""
    grid, stride, _, _ = lattice
    d, m = len(grid), grid[-1] // stride[-1]
    twice = torch.tensor([1.0 + (0 < k < m - k) for k in range(m // 2 + 1)], dtype=matrices.dtype, device=matrices.device)
    # A conjugate adds as much to the real part of a sum as the number itself.
    matrices = nn.functional.pad(matrices * twice[:, None, None], (0, 0, 0, 0, 0, m - len(twice)))
    apart = (matrices * math.sqrt(math.prod(stride))).unflatten(-1, (weights.shape[2], *stride))
    order = (0, 1, 2 + d, 3 + d, *(place for k in range(d) for place in (4 + d + k, 2 + k)))
    transformed = apart.permute(order)
    for k in range(d):
        transformed = transformed.flatten(4 + k, 5 + k)
    images = torch.fft.ifftn(transformed, dim=tuple(range(4, 4 + d))).real
    return images[_taps(weights.shape[3:] or (1,), lattice)].reshape(weights.shape)


def _taps(kernel: Sequence[int], lattice: _Lattice) -> tuple[Any, ...]:
    """Where the kernel's weights are on the grid."""
    return (..., *(slice(0, (k - 1) * d + 1, d) for k, d in zip(kernel, lattice.dilation, strict=True)))
