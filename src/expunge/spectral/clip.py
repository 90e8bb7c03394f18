"""Clipping of singular values (FastClip), so that the bound holds: what is too large comes down to the bound, what is smaller stays."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import setting
from ..device import device_of, exact_float32, resolve_precision
from ..errors import ModelError
from ..modes import eval_mode
from ..progress import report
from .control import SpectralControl, distinct, editable, remember, start_of, write
from .layers import Layer, affine_layers, grouped
from .linear_maps import LinearMaps
from .power_qr import Singular
from .values import random_block, top

BATCHNORM = ("apart", "composed")
LAST_ROUNDS, LAST_PRODUCTS = 40, 200


@final
@dataclass(frozen=True, kw_only=True)
class Clip(SpectralControl):
    """Keeps σ₁ ≤ c (1 + tolerance) for every convolution and linear layer.

        every N steps, and before the first of them after 1, 2, 4, 8, … steps, for each layer:
            vᵢ, σᵢ, uᵢ = Avᵢ/σᵢ   by a few products with AᵀA from the vectors of the last time and a random one      (PowerQR)
            until σ₁ ≤ c (1 + tolerance), or `rounds` times:
                eᵢ = max(σᵢ − c, 0);   G = ∇_W Σ eᵢ uᵢᵀAvᵢ;   W ← W − (Σ eᵢ² / ‖G‖²) G      the shortest step along G that is enough at first order
                a few products more
            W ← W c / σ₁  if σ₁ is still above the limit
        at the end the same with as many rounds as it takes, checked by many products.

    A convolution cannot be clipped exactly by a kernel of its own size; the change above is what its weights can do, and the rounds are
    repeated because other singular values come up from below. While training, products are in bfloat16 where the hardware multiplies it.

    Use when: a model to come shall be easy to unlearn (docs/spectral.md). Cost: a clip of a ResNet-18 takes about as long as two
    training steps of 128 images (docs/results/README.md); `every` decides how much that is.

    Args:
        max_norm: c > 0.
        every: optimiser steps between two clips, ≥ 1. Authors: 50 with BatchNorm, 100 without; between clips σ₁ drifts by about the step size.
            The first steps, which change weights most, are followed more closely whatever N is.
        tolerance: how far above c the largest value may stay, as a share of c, in (0, 1).
        batchnorm: "apart" (BatchNorm is not touched; convolutions are clipped by themselves) or "composed" (a convolution and the BatchNorm after
            it, with its running statistics, are one map: BatchNorm's weights change, the statistics never; in `clip_model` the kernel changes, too).
        vectors: how many singular vectors are followed, ≥ 1.
        products: with AᵀA in each round, ≥ 1.
        rounds: at most so many in one clip while training, ≥ 1; then the layer is scaled down.

    Raises:
        ConfigError: a setting is outside its range.
        ModelError: when attached: a frozen layer above the bound; weights that are computed.

    Paper: Ebrahimpour-Boroojeny et al., "Spectrum Extraction and Clipping for Implicitly Linear Layers", AISTATS 2024, arXiv:2402.16017.
    Departures: a step whose length is solved for, instead of a fixed learning rate (`GradientClip` is the authors'); several directions at once;
    one-sided; BatchNorm in eval mode while it is measured; nothing inside forward passes; the bound is made to hold at the end.
    Example:
        >>> Clip(max_norm=0.5).every
        50
    """

    max_norm: float = setting(1.0, gt=0)
    every: int = setting(50, ge=1)
    tolerance: float = setting(0.02, gt=0, lt=1)
    batchnorm: str = setting("apart", choices=BATCHNORM)
    vectors: int = setting(4, ge=1)
    products: int = setting(6, ge=1)
    rounds: int = setting(3, ge=1)

    @property
    def limit(self) -> float:
        return self.max_norm * (1 + self.tolerance)

    def layers(self, model: nn.Module, input_shape: tuple[int, ...]) -> list[Layer]:
        layers = affine_layers(model, input_shape, composed=self.batchnorm == "composed")
        layers = [layer for layer in layers if any(p.ndim > 1 for p in layer.module.parameters())]
        with torch.no_grad(), exact_float32():
            for layer in layers:
                self._check_frozen(layer)
        return [layer for layer in layers if editable(layer)]

    def due(self, step: int) -> bool:
        return step % self.every == 0 or (step < self.every and step & (step - 1) == 0)  # powers of 2 have one bit

    def begin(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        hold = partial(self._hold, turns=1, rounds=10)  # weights that were drawn at random may as well be scaled
        self.clip(layers, memory, hold, _scales(layers[0]))

    def act(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        self.clip(layers, memory, self._lower, _scales(layers[0]))

    def end(self, layers: list[Layer], memory: dict[str, Tensor]) -> None:
        self.clip(layers, memory, self._hold, _scales(layers[0]))

    def finished(self, layers: list[Layer]) -> None:
        """Clips layers that are not trained any more."""
        self.clip(layers, {}, self._hold, editable(layers[0]))

    def clip(self, layers: list[Layer], memory: dict[str, Tensor], lower: Callable[..., Singular], names: list[str]) -> None:
        """Lowers the singular values of layers of one kind by changing the named weights."""
        maps = LinearMaps([layer.module for layer in layers], layers[0].input_shape)
        remember(memory, lower(maps, names, start_of(maps, memory, min(self.vectors, maps.rank) + 1)))
        write(layers, maps, names)

    def _lower(self, maps: LinearMaps, names: list[str], block: Tensor, rounds: int | None = None) -> Singular:
        """Rounds of measuring and cutting, until all values seem to be within the limit; what is still above it is scaled down."""
        dtype = resolve_precision("auto", maps.device) if maps.dtype == torch.float32 else maps.dtype
        found = top(maps.rounded(dtype), block, products=self.products)
        for _ in range(rounds or self.rounds):
            late = (found.values[:, 0] > self.limit).nonzero().flatten()
            if not len(late):  # layers leave the rounds one by one
                return found
            for name, change in self._change(maps.take(late).rounded(dtype), names, found.values[late], found.right[late]).items():
                maps.numbers[name] = maps.numbers[name].index_add(0, late, change, alpha=-1)
            found = found.put(late, top(maps.take(late).rounded(dtype), found.pushed[late], products=self.products))
        self._scale(maps, names, found)
        return found

    def _scale(self, maps: LinearMaps, names: list[str], found: Singular) -> None:
        largest = found.values[:, 0]
        maps.scale(names[-1], torch.where(largest > self.limit, self.max_norm / largest, 1.0))

    def _hold(self, maps: LinearMaps, names: list[str], block: Tensor, turns: int = 3, rounds: int = LAST_ROUNDS) -> Singular:
        """Rounds until the limit holds by a measurement that starts anew; what is left after many is scaled down."""
        for turn in range(turns):
            self._lower(maps, names, block, rounds)
            found = top(maps, random_block(maps, block.shape[1], seed=turn + 1), tolerance=self.tolerance / 10, products=LAST_PRODUCTS)
            if bool((found.values[:, 0] <= self.limit).all()):
                return found
            block = found.pushed
        self._scale(maps, names, found)
        return found

    def _change(self, maps: LinearMaps, names: list[str], values: Tensor, right: Tensor) -> dict[str, Tensor]:
        """What to take away from the weights of layers with σ₁ above the bound: {name: (L, *shape)}."""
        above = int((values > self.max_norm).sum(1).amax())
        v = right[:, :above].unflatten(2, maps.input_shape)
        excess = (values[:, :above] - self.max_norm).clamp(min=0)
        shares = excess / values[:, :above].clamp(min=self.max_norm)
        gradients = maps.weight_gradients(names, v, lambda u: u * _beside(shares, u).to(u.dtype))
        step = excess.square().sum(1) / sum(g.flatten(1).square().sum(1) for g in gradients.values())
        return {name: g * _beside(step, g) for name, g in gradients.items()}

    def _check_frozen(self, layer: Layer) -> None:
        if editable(layer):
            return
        maps = LinearMaps([layer.module], layer.input_shape)
        largest = top(maps, random_block(maps, 2), products=20).values[0, 0].item()
        if largest > self.limit:
            raise ModelError(
                f"the weights of {layer.name} are frozen and its largest singular value, {largest:.3g}, is above max_norm={self.max_norm:g}. "
                "Set requires_grad=True on its weight, or raise max_norm."
            )


def _scales(layer: Layer) -> list[str]:
    """The weights that training may be clipped by. Behind a convolution, BatchNorm divides by what its outputs vary: while statistics are taken, a smaller kernel
    would only be scaled up again, ever smaller and with ever larger steps. What BatchNorm multiplies by stays."""
    return editable(layer)[-1:]


def _beside(values: Tensor, others: Tensor) -> Tensor:
    """The values with dimensions of size 1 behind, so that they multiply the first dimensions of others."""
    return values.reshape(*values.shape, *[1] * (others.ndim - values.ndim))


def clip_model(
    model: nn.Module,
    max_norm: float = 1.0,
    *,
    input_shape: tuple[int, ...],
    batchnorm: str = "apart",
    tolerance: float = 0.02,
    images: Tensor | None = None,
) -> nn.Module:
    """A copy of a finished model whose layers have no singular value above max_norm · (1 + tolerance).

    Args:
        model: any module; it stays as it is. Training it on afterwards needs `Clip`, or the values grow again.
        max_norm: c > 0. tolerance, batchnorm: as in `Clip`. With "composed", a bound on the network follows from the layers' (`Spectrum.bound`).
        input_shape: (C, H, W) of the images.
        images: float32 (N, C, H, W) in [0, 1], some hundreds of training images. BatchNorm's running means, which belong to the old kernels, are taken
            anew from them: that changes no singular value, and gives back most of the accuracy. With "apart", the running variances are, too.

    Raises:
        ConfigError: a bound that is not positive. ModelError: the shape does not fit, or a layer above the bound is frozen.

    Cost: a layer needs some tens of rounds of 4 products and 4 weight gradients: seconds for small networks, a minute for a ResNet-18; one
    forward pass of the images. Accuracy suffers where many values are far above the bound; `expunge spectrum --clip` prints how much.
    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> from expunge import singular_values
        >>> bool(singular_values(clip_model(net, 0.1, input_shape=(1, 2, 2))[1], 4).values[0] <= 0.102)
        True
    """
    control = Clip(max_norm=max_norm, batchnorm=batchnorm, tolerance=tolerance)
    clipped = copy.deepcopy(model)
    with torch.inference_mode(False), torch.no_grad(), exact_float32():
        groups = grouped(distinct(control.layers(clipped, input_shape)))
        for done, group in enumerate(groups, 1):
            control.finished(group)
            report("clipping layers", done, len(groups))
        if images is not None:
            _take_statistics(clipped, images, variances=batchnorm == "apart")
    return clipped


def _take_statistics(model: nn.Module, images: Tensor, variances: bool) -> None:
    """Sets BatchNorm's running means (and variances) to those of its inputs, each layer after those before it, in one pass."""

    def take(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        by_channel = args[0].float().transpose(0, 1).flatten(1)
        norm.get_buffer("running_mean").copy_(by_channel.mean(1))
        if variances:
            norm.get_buffer("running_var").copy_(by_channel.var(1))

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    hooks = [norm.register_forward_pre_hook(take) for norm in norms]
    try:
        with eval_mode(model):
            model(images.to(device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
