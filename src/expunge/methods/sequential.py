"""Several deletion requests, one after another, each on the model that the last one left."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_indices
from ..data.images import Samples
from ..data.split import Split, forget_samples
from ..errors import DataError
from ..rng import derive
from .base import Method


def unlearn_sequentially(
    method: Method,
    model: nn.Module,
    train: Samples,
    requests: Sequence[Sequence[int] | Tensor],
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> list[nn.Module]:
    """The model after each request; request j is unlearned from the model of request j − 1, with what was forgotten before gone from the data.

    AMUN recomputes its adversarial set on the current model at each request (the paper's AMUN-A). To compute it once, on the first model, for all requests:
    `AMUN(adversarial=attack(model, train.subset(all_indices)), transferred=True)`.

    Args:
        method: any method.
        model: the original, trained on all of `train`.
        train: the training set D.
        requests: for each request, positions in `train`; no sample may be asked for twice.
        seed: each request's own follows from it and the request's number.

    Raises:
        DataError: a request is empty or repeats a sample, or nothing is left; before anything is unlearned.

    Cost: one call of the method for each request.

    Example:
        >>> import expunge
        >>> train, _ = expunge.load_data("digits")
        >>> model = expunge.architecture("small", train)()
        >>> len(expunge.unlearn_sequentially(expunge.GradientAscent(epochs=1), model, train, [[17, 42], [3]]))
        2
    """
    gone = torch.zeros(len(train), dtype=torch.bool)
    splits, models = [], []
    for number, request in enumerate(requests):
        indices = check_indices(request, len(train), f"the indices of request {number}")
        if gone[indices].any():
            raise DataError(
                f"request {number} names sample {int(indices[gone[indices]][0])}, which an earlier request has removed. Ask for each sample once."
            )
        splits.append(_remaining_split(train, gone, indices))
        gone[indices] = True
    for number, split in enumerate(splits):
        model = method(model, split, seed=derive(seed, number), device=device)
        models.append(model)
    return models


def _remaining_split(train: Samples, gone: Tensor, indices: Tensor) -> Split:
    remaining = (~gone).nonzero().flatten()
    return forget_samples(train.subset(remaining), torch.searchsorted(remaining, indices))
