"""Which shadow models saw a sample and which did not, and how to take one of them as the target without giving its answer away.

Shadow models come as complementary halves, so each sample is in exactly half of them. Take model t as the target and leave only it out: a
sample that t trained on now has one IN model less than OUT models, and one that t did not train on has one more. The group sizes tell the
label, and plug-in variances pass it on: on pure noise the AUC is 0.43 for 8 models. Leaving out the complement of t as well makes both
groups M/2 − 1 whatever the label.
"""

import torch
from torch import Tensor

from ..errors import DataError
from ..types import Included


def check_groups(included: Included, n_in: int, n_out: int) -> None:
    """Raises DataError unless every sample has at least `n_in` models trained on it and `n_out` that were not."""
    count_in = included.sum(0)
    check_counts(count_in, len(included) - count_in, n_in, n_out)


def check_counts(count_in: Tensor, count_out: Tensor, n_in: int, n_out: int) -> None:
    """`check_groups` from the sizes of both groups, each (N,)."""
    short = (count_in < n_in) | (count_out < n_out)
    if short.any():
        first = int(short.nonzero()[0])
        raise DataError(
            f"every sample needs at least {n_in} shadow models trained on it and {n_out} that were not; "
            f"got {int(short.sum())} samples with fewer (first: sample {first} with {int(count_in[first])} and {int(count_out[first])}). "
            "Train more shadow models on balanced halves; for samples that no shadow model may see, use online=False."
        )


def mates(included: Included) -> Tensor:
    """For each model the one that trained on exactly the other samples, int64 (M,).

    Raises:
        DataError: a model has no such mate.

    Example:
        >>> mates(torch.tensor([[True, False], [False, True]]))
        tensor([1, 0])
    """
    signs = included.float() * 2 - 1  # sums of ±1 are exact in float32 up to 2**24 samples
    agreement = signs @ signs.T
    complement = agreement == -included.shape[1]
    lonely = ~complement.any(1)
    if lonely.any():
        raise DataError(
            "leaving out mates needs shadow models in complementary pairs; "
            f"got {int(lonely.sum())} without one (first: model {int(lonely.nonzero()[0])}). "
            "Train them with train_shadow_models, or pass drop_mates=False if each half was drawn independently."
        )
    return complement.int().argmax(1)


def has_mates(included: Included) -> bool:
    """Whether models come in complementary pairs."""
    try:
        mates(included)
    except DataError:
        return False
    return True


def kept_models(included: Included, drop_mates: bool = True) -> Tensor:
    """Row t says which models may be read when model t is the target, bool (M, M): all but t and, if asked, its mate."""
    kept = ~torch.eye(len(included), dtype=torch.bool)
    if drop_mates:
        kept[torch.arange(len(included)), mates(included)] = False
    return kept
