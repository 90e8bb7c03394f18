"""What goes into the linear layers and convolutions of a model: second moments of their inputs, found in one pass."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..costs import count
from ..data.images import Samples
from ..data.mixture import Mixture
from ..device import device_of, exact

Weighted = nn.Linear | nn.Conv2d


def weighted_layers(model: nn.Module) -> dict[str, Weighted]:
    """The nn.Linear and nn.Conv2d layers by name, each once, whose weights are parameters of their own that may change."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) in (nn.Linear, nn.Conv2d) and "weight" in layer._parameters and layer.weight.requires_grad
    }


def as_matrices(layer: Weighted) -> Tensor:
    """The weights as matrices that act on the layer's inputs: float64 (G, O, d), one for each group of a convolution; d = C · k · k counts channels, rows, columns."""
    groups = getattr(layer, "groups", 1)
    return layer.weight.detach().double().reshape(groups, layer.weight.shape[0] // groups, -1)


def input_moments(
    model: nn.Module, layers: dict[str, Weighted], data: Samples, n_inputs: int, *, batch_size: int = 64
) -> dict[str, Tensor]:
    """For each of these layers the sum of x xᵀ over its inputs x: float64 (G, d, d), un-augmented and in eval mode; zeros for a layer that is not called.

    An input of a convolution is what its kernel covers at one position, padding included, and one for each group. Of every image as many positions are drawn, without
    repetition, as give about `n_inputs` inputs in all; all positions where that is not more. Rows and columns of the sum are ordered as those of `as_matrices`.

    Cost: one forward pass.
    """
    wanted = max(1, n_inputs // len(data))
    moments = {name: _zeros(layer) for name, layer in layers.items()}

    def note(name: str) -> Callable[[Weighted, tuple[Tensor, ...]], None]:
        def hook(layer: Weighted, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach()
            for group, chosen in enumerate(_inputs(layer, x, wanted)):
                moments[name][group] += chosen.T @ chosen

        return hook

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        with exact(model), torch.no_grad():
            for batch in Mixture([data], device_of(model), augment=False).epoch(torch.arange(len(data)).split(batch_size), 0):
                count(batch.ids, forward=1)
                model(batch.images)
    finally:
        for hook in hooks:
            hook.remove()
    return moments


def _zeros(layer: Weighted) -> Tensor:
    groups, _, d = as_matrices(layer).shape
    return torch.zeros(groups, d, d, dtype=torch.float64, device=layer.weight.device)


def _inputs(layer: Weighted, x: Tensor, wanted: int) -> Tensor:
    """Inputs of the layer, float64 (G, n, d): `wanted` of each image, or all."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(len(x), -1, x.shape[-1])
        chosen = _draw(len(x), rows.shape[1], wanted).to(x.device)
        return rows[torch.arange(len(x), device=x.device)[:, None], chosen].reshape(1, -1, x.shape[-1]).double()
    return _patches(layer, x, wanted)


def _patches(layer: nn.Conv2d, x: Tensor, wanted: int) -> Tensor:
    """What `unfold` would give, at the chosen positions alone: all patches of a large map are kernel-size squared times the map."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode).permute(0, 2, 3, 1)
    sizes = zip(x.shape[1:3], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    height, width = ((size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation in sizes)
    chosen = _draw(len(x), height * width, wanted).to(x.device)
    top, left = chosen // width * layer.stride[0], chosen % width * layer.stride[1]
    down, right = (torch.arange(k, device=x.device) * step for k, step in zip(layer.kernel_size, layer.dilation, strict=True))
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    patches = x[image, top[:, :, None, None] + down[:, None], left[:, :, None, None] + right]  # (B, n, kh, kw, C)
    in_groups = patches.double().unflatten(-1, (layer.groups, -1)).permute(4, 0, 1, 5, 2, 3)
    return in_groups.reshape(layer.groups, patches.shape[0] * patches.shape[1], -1)


def _draw(n_images: int, n_positions: int, wanted: int) -> Tensor:
    """Positions of each image, int64 (B, n), without repetition; drawn on the CPU, so that a GPU sees the same ones."""
    if wanted >= n_positions:
        return torch.arange(n_positions).expand(n_images, -1)
    return torch.rand(n_images, n_positions).argsort(1)[:, :wanted]


def apply_importance(rows: Tensor, moments: Tensor, alpha: float) -> Tensor:
    """rows · M with M = U Λ Uᵀ: U are the principal directions of the inputs, s_i the shares of their energy, Λ_ii = α s_i / ((α − 1) s_i + 1); float64 (G, n, d).

    Λ is a rational function of s, so that M = α S ((α − 1) S + I)⁻¹ with S = moments / trace: a Cholesky decomposition, no eigenvectors, and well conditioned (the
    eigenvalues of what is inverted lie between 1 and α).

    Args:
        rows: float64 (G, n, d).
        moments: of `input_moments`, (G, d, d); zeros mean that nothing is important.
        alpha: 0 = M is zero; 1 = M is S; large = M projects on the directions in which inputs lie.
    """
    if alpha == 0:
        return torch.zeros_like(rows)
    trace = moments.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    shares = moments / trace.clamp(min=1e-300)
    system = (alpha - 1) * shares + torch.eye(shares.shape[-1], dtype=shares.dtype, device=shares.device)
    return alpha * torch.cholesky_solve((rows @ shares).mT, torch.linalg.cholesky(system)).mT
