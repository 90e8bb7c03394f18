"""What others do about spectral norms, with the interface of `Clip`, so that they can be compared: normalisation, rescaling, the FastClip authors' step.

The two that work with Fourier transforms are in fourier.py. Frozen layers stay as they are in all of them.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, cast, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ..checks import setting
from ..errors import ModelError
from ..rng import fork
from .control import SpectralControl, remember, start_of, write
from .layers import Layer
from .linear_maps import LinearMaps
from .power_qr import Singular
from .values import top

FIRST_PRODUCTS, HELD_PRODUCTS, HELD_TOLERANCE = 100, 200, 1e-3
SETTLING = 15  # power iterations, as many as torch does when it starts
SLACK = 0.05  # below c, within which the authors' correction does not enlarge


@final
@dataclass(frozen=True, kw_only=True)
class SpectralNorm(SpectralControl):
    """Spectral normalisation: while training, every layer works with c · W / σ(W), and at the end that is its weight.

        in every forward pass in training mode, W as a matrix of C_out × (C_in · k²):
            v ← Wᵀu / ‖Wᵀu‖,   u ← Wv / ‖Wv‖,   σ = uᵀWv          one power iteration, of torch
            the layer uses c · W / σ; its gradient goes through σ too

    It always divides, so that small values grow: all layers have the same norm. That norm is the matrix's; the convolution's own is larger by up to
    the square root of the kernel's size, k for k × k, which is why networks come out with layers far above c.

    While attached the layers are parametrised by `torch.nn.utils.parametrize`: `model.state_dict()` has "parametrizations.weight.original" in place of
    "weight", and the optimiser's parameters are the originals W. Afterwards the names are as before and the parameters are the same objects.

    Use when: something must be compared with it. Cost: two products of a matrix and a vector for each layer and forward pass.

    Args:
        max_norm: c > 0. Paper: 1.
        iterations: power iterations in each forward pass, ≥ 1. Paper: 1.

    Raises:
        ConfigError: a setting is outside its range. ModelError: when attached, two layers that share a weight.

    Paper: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018, arXiv:1802.05957.
    Departures: 15 power iterations more at the end. σ is computed in float32 inside autocast.
    Example:
        >>> SpectralNorm(max_norm=0.5)
        SpectralNorm(max_norm=0.5, iterations=1)
    """

    every: ClassVar[int] = 1  # the optimiser's steps do not matter to it
    max_norm: float = setting(1.0, gt=0)
    iterations: int = setting(1, ge=1)

    def layers(self, model: nn.Module, input_shape: tuple[int, ...]) -> list[Layer]:
        layers = super().layers(model, input_shape)
        first: dict[int, Layer] = {}
        for layer in layers:
            other = first.setdefault(id(layer.module.weight), layer)
            if other.module is not layer.module:  # one would be normalised and the other not
                raise ModelError(
                    f"each weight must belong to one layer; got one that {other.name} and {layer.name} share. "
                    "Call one module twice instead of two that share, or use Rescale."
                )
        return layers

    def begin(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        for module in _modules(layers, parametrized=False):
            with fork(0):  # torch starts from random vectors
                parametrizations.spectral_norm(module, n_power_iterations=self.iterations)
            chain = _parametrizations(module)
            chain[0] = _Scaled(chain[0], self.max_norm)

    def act(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        """Nothing: the forward pass does it."""

    def end(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        for module in _modules(layers, parametrized=True):
            chain = _parametrizations(module).train()
            for _ in range(math.ceil(SETTLING / self.iterations)):
                chain()  # computing the weight is a power iteration
        self.abandon(layers, memory)

    def abandon(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        """Makes plain weights of what the layers compute now; for training that ends by an error."""
        for module in _modules(layers, parametrized=True):
            _parametrizations(module).eval()
            parametrize.remove_parametrizations(module, "weight")
            others = [(name, p) for name, p in module.named_parameters(recurse=False) if name != "weight"]
            for name, parameter in others:  # torch puts the weight back behind them; parameters shall come in their old order
                delattr(module, name)
                module.register_parameter(name, parameter)


class _Scaled(nn.Module):
    """c times torch's normalisation, whose products must not be autocast: half precision is not enough for σ, and torch's dot product refuses two types."""

    def __init__(self, normalised: nn.Module, max_norm: float) -> None:
        super().__init__()
        self.normalised, self.max_norm = normalised, max_norm
        self.train(normalised.training)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return self.max_norm * self.normalised(weight)


def _parametrizations(module: nn.Module) -> parametrize.ParametrizationList:
    """What makes a module's weight."""
    return cast(parametrize.ParametrizationList, module.get_submodule("parametrizations.weight"))


def _modules(layers: list[Layer], *, parametrized: bool) -> list[nn.Module]:
    """Each once, although a module that is called at two sizes is two layers."""
    modules = dict.fromkeys(layer.module for layer in layers)
    return [module for module in modules if parametrize.is_parametrized(module, "weight") == parametrized]


@final
@dataclass(frozen=True, kw_only=True)
class Rescale(SpectralControl):
    """Projection by scaling: a layer whose norm is too large is divided, as a whole, by as much as it is too large.

        every N steps, for each layer:
            σ₁ by a few products with AᵀA from the vector of the last time and a random one
            W ← W / max(1, σ₁ / c)

    The layer's true norm, at its real input size. All its singular values shrink by the factor of the largest, where `Clip` changes the largest only.

    Use when: something must be compared with it, or the bound must hold after every step. Cost: `products` forward and backward passes of two inputs through
    each layer, every N steps.

    Args:
        max_norm: c > 0.
        every: optimiser steps between two projections, ≥ 1. Paper: 1.
        products: with AᵀA in each, ≥ 1. FastClip's authors: 5 power iterations. While training σ₁ may be found a little too small; before and
            after it, as many are done as it takes for one part in a thousand (at most 200).

    Raises:
        ConfigError: a setting is outside its range.

    Paper: Gouk et al., "Regularisation of Neural Networks by Enforcing Lipschitz Continuity", Machine Learning 110 (2021), arXiv:1804.04368.
    Departures: warm starts, and the memory of `power_qr`. BatchNorm is not touched.
    Example:
        >>> Rescale(max_norm=0.5).every
        1
    """

    max_norm: float = setting(1.0, gt=0)
    every: int = setting(1, ge=1)
    products: int = setting(5, ge=1)

    def begin(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        self._rescale(layers, memory, HELD_PRODUCTS, HELD_TOLERANCE)

    def act(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        self._rescale(layers, memory, self.products)

    def end(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        self._rescale(layers, memory, HELD_PRODUCTS, HELD_TOLERANCE)

    def _rescale(self, layers: list[Layer], memory: dict[str, Tensor], products: int, tolerance: float = 0.0) -> None:
        maps = LinearMaps([layer.module for layer in layers], layers[0].input_shape)
        maps.scale("weight", (self.max_norm / _measured(maps, memory, products, tolerance).values[:, 0]).clamp(max=1))
        write(layers, maps, ["weight"])


@final
@dataclass(frozen=True, kw_only=True)
class GradientClip(SpectralControl):
    """The FastClip authors' own correction: a few gradient steps of fixed length that shrink the top direction.

        every N steps, for each layer with σ₁ > c:
            v, σ₁ by 10 products with AᵀA                                              (100 the first time)
            T times:  W ← W − λ ∇_W J(W),   J = (1 / W_out) ‖A(W) v − (c / σ₁) A v‖²      v and the second A as they were before

    (J is the mean over the columns of the output image, and for a Linear the sum, as theirs is.) A Linear comes to c by 5 steps; a convolution
    moves only a little, because the weights are shared and J is a mean. So no bound holds, during training or after it: σ₁ goes to c over hundreds of clips.

    Use when: FastClip's published behaviour is to be reproduced; `Clip` otherwise. Cost: 10 products and `steps` weight gradients every N steps.

    Args:
        max_norm: c > 0.
        every: optimiser steps between two clips, ≥ 1. Authors: 50 with BatchNorm, 100 without.
        steps: T ≥ 1. Authors: 5 with BatchNorm, 1 without.
        lr: λ > 0. Authors: 0.35.
        two_sided: also enlarge convolutions with σ₁ < c − 0.05, so that all are held near c from both sides; the authors' default.

    Raises:
        ConfigError: a setting is outside its range.

    Paper: Ebrahimpour-Boroojeny et al., "Spectrum Extraction and Clipping for Implicitly Linear Layers", AISTATS 2024, arXiv:2402.16017.
    Departures: one-sided unless asked; faults of their code are left out: they act inside forward passes and zero the layer's gradients there, start each
    clip from a new random vector, evaluate BatchNorm in training mode, and lose a sign in σ₁ (`power_qr`). No maps of a convolution and a BatchNorm together.
    Example:
        >>> GradientClip(max_norm=0.5).lr
        0.35
    """

    max_norm: float = setting(1.0, gt=0)
    every: int = setting(50, ge=1)
    steps: int = setting(5, ge=1)
    lr: float = setting(0.35, gt=0)
    two_sided: bool = setting(False)

    def act(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        maps = LinearMaps([layer.module for layer in layers], layers[0].input_shape)
        found = _measured(maps, memory, 10 if memory else FIRST_PRODUCTS)
        v = found.right[:, :1].unflatten(2, maps.input_shape)
        sigma = found.values[:, 0].reshape(-1, *[1] * (len(maps.output_shape) + 1)).clamp(min=1e-30)
        chosen = sigma > self.max_norm
        if self.two_sided and not isinstance(layers[0].module, nn.Linear):
            chosen = chosen | (sigma < self.max_norm - SLACK)
        target, step = maps(v) * (self.max_norm / sigma), chosen * (2 * self.lr / math.prod(maps.output_shape[2:]))
        for _ in range(self.steps):
            change = maps.weight_gradients(["weight"], v, lambda u: step * (u - target))["weight"]
            maps.numbers["weight"] = maps.numbers["weight"] - change
        write(layers, maps, ["weight"])


def _measured(maps: LinearMaps, memory: dict[str, Tensor], products: int, tolerance: float = 0.0) -> Singular:
    """The top of the spectra, from the vectors of the last time and a random one, for what has come up elsewhere."""
    found = top(maps, start_of(maps, memory, 2), tolerance=tolerance, products=products)
    remember(memory, found)
    return found
