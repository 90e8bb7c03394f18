"""What forget samples are taught in place of their labels: the original's answers without some classes, or labels drawn at random."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DataError


def other_classes(labels: Tensor, forget_classes: Sequence[int], n_classes: int) -> Tensor:
    """bool (N, K): True for each class that is neither the sample's own nor a forgotten one.

    Raises:
        DataError: a sample has no such class.
    """
    others = torch.ones(len(labels), n_classes, dtype=torch.bool)
    others[:, list(forget_classes)] = False
    others[torch.arange(len(labels)), labels.cpu()] = False
    if not others.any(1).all():
        raise DataError(
            f"a forget sample needs a class to go to; got {n_classes} classes, none of which remains. Forget fewer classes, or delete the model."
        )
    return others


def renormalised(logits: Tensor, allowed: Tensor) -> Tensor:
    """softmax over the allowed classes alone: p_y / Σ_allowed p for them and exactly 0 elsewhere, (N, K).

    Masked in logit space, because on memorised images Σ_allowed p rounds to 0.

    Args:
        logits: (N, K).
        allowed: bool (N, K), or (K,) for all rows; at least one True in each.
    """
    return logits.masked_fill(~allowed, -torch.inf).softmax(1)


def random_labels(allowed: Tensor) -> Tensor:
    """For each row of `allowed`, bool (N, K), one of its classes, all with the same chance; int64 (N,), drawn from torch's global CPU generator."""
    return torch.multinomial(allowed.cpu().float(), 1).squeeze(1)
