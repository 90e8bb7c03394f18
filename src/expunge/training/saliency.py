"""Which weights matter for the forget set: the mask of SalUn, also used by AMUN."""

import torch
from torch import nn
from torch.nn import functional

from ..costs import count
from ..data.images import Samples
from ..data.mixture import Mixture
from ..device import device_of, exact
from ..errors import ConfigError
from .step import Mask


def saliency_mask(model: nn.Module, forget: Samples, ratio: float, *, batch_size: int = 256) -> Mask:
    """For each trainable parameter a bool tensor: True for the weights with the largest |∇_θ L(θ; D_F)|, ranked over the whole model.

    Args:
        model: evaluated in eval mode, on un-augmented images.
        forget: D_F.
        ratio: share of all weights in the mask, in (0, 1]; ties are broken by position, so that the share is exact.

    Raises:
        ConfigError: ratio outside (0, 1].

    Cost: one forward and backward pass over D_F.
    Paper: Fan et al., "SalUn", ICLR 2024, arXiv:2310.12508.

    Example:
        >>> import expunge
        >>> train, _ = expunge.load_data("digits")
        >>> mask = saliency_mask(expunge.architecture("small", train)(), train.subset([17, 42]), 0.5)
        >>> sum(int(part.sum()) for part in mask.values()) / sum(part.numel() for part in mask.values())
        0.5
    """
    _check_ratio(ratio)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradient = [torch.zeros_like(p) for p in parameters.values()]
    mixture = Mixture([forget], device_of(model), augment=False)
    with exact(model):
        for batch in mixture.epoch(torch.arange(len(forget)).split(batch_size), 0):
            loss = functional.cross_entropy(model(batch.images).float(), batch.labels, reduction="sum")
            parts = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            count(batch.ids, forward=1, backward=1)
            gradient = [total + part for total, part in zip(gradient, parts, strict=True)]
    return _largest(dict(zip(parameters, gradient, strict=True)), ratio)


def random_mask(model: nn.Module, ratio: float) -> Mask:
    """A mask of as many weights as `saliency_mask` has, drawn at random from torch's global CPU generator: what tells whether saliency matters.

    Raises:
        ConfigError: ratio outside (0, 1].
    """
    _check_ratio(ratio)
    return _largest({name: torch.rand(p.shape) for name, p in model.named_parameters() if p.requires_grad}, ratio)


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ConfigError(f"mask ratio must lie in (0, 1]; got {ratio!r}. Pass 0.5 for half of the weights.")


def _largest(values: dict[str, torch.Tensor], ratio: float) -> Mask:
    flat = torch.cat([v.abs().flatten() for v in values.values()])
    n = max(1, round(ratio * len(flat)))
    least = flat.kthvalue(len(flat) - n + 1).values  # nine times as fast as sorting all weights of a ResNet-18
    chosen = flat > least
    equal = (flat == least).nonzero().flatten()
    chosen[equal[: n - int(chosen.sum())]] = True
    parts = chosen.split([v.numel() for v in values.values()])
    return {name: part.view_as(v) for (name, v), part in zip(values.items(), parts, strict=True)}
