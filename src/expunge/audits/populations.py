"""Groups of models on the same samples: what audits of populations, such as U-LiRA, the forgetting score and KLoM, check first."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from ..rng import permutation


def checked_populations(*, least: int = 2, **groups: Tensor) -> list[Tensor]:
    """The margins of groups of models as float64 on the CPU, (N, n) each, in order of the arguments.

    Args:
        least: how many models a group needs.
        groups: by name, for messages.

    Raises:
        DataError: not one row for each model and one column for each sample, of the same samples; too few models; a margin is not finite.

    Example:
        >>> [len(x) for x in checked_populations(unlearned=torch.zeros(2, 5), retrained=torch.zeros(3, 5))]
        [2, 3]
    """
    checked: list[Tensor] = []
    for name, margins in groups.items():
        checked.append(checked_margins(f"{name} models", margins, least, checked[0].shape[1] if checked else None))
    return checked


def checked_margins(what: str, margins: Tensor, least: int, n_samples: int | None = None) -> Tensor:
    """The margins of one group of models as float64 on the CPU, (N, n); on as many samples as other models, if told how many.

    Raises:
        DataError: as `checked_populations`; `what` names the group.
    """
    if margins.ndim != 2 or not margins.is_floating_point() or margins.shape[1] == 0:
        raise DataError(
            f"margins of {what} must be floating point, one row for each model and one column for each sample; "
            f"got {margins.dtype} of shape {tuple(margins.shape)}. Stack logit_margin(logits, labels) of the models."
        )
    if len(margins) < least:
        raise DataError(f"this audit needs at least {least} {what}; got {len(margins)}. Train more, with other seeds.")
    if n_samples is not None and margins.shape[1] != n_samples:
        raise DataError(
            f"margins of {what} must be of the same {n_samples} samples as the others; got {margins.shape[1]}. Score one set, in one order."
        )
    broken = ~torch.isfinite(margins)
    if broken.any():
        raise DataError(f"margins of {what} must be finite; got {int(broken.sum())} NaN or infinite. Check the logits of the models.")
    return margins.detach().cpu().double()


class Matched(NamedTuple):
    """Groups of models for a comparison and for its floor, of the same sizes in both: what depends on the number of models cancels.

    Attributes:
        ours: pairs of (unlearned, retrained) margins.
        floor: one pair of retrained models against other retrained ones.
        size: models of a group that is compared with a group of retrained models.
    """

    ours: list[tuple[Tensor, Tensor]]
    floor: tuple[Tensor, Tensor]
    size: int

    def redrawn(self, rng: torch.Generator) -> "Matched":
        """The same groups with models drawn from each with replacement; a group that is in several pairs is drawn once."""
        groups = {id(x): x for pair in (*self.ours, self.floor) for x in pair}
        drawn = {key: x[torch.randint(len(x), (len(x),), generator=rng)] for key, x in groups.items()}
        new = [(drawn[id(a)], drawn[id(b)]) for a, b in (*self.ours, self.floor)]
        return Matched(new[:-1], new[-1], self.size)


def matched(unlearned: Tensor, retrained: Tensor, second: Tensor | None, least: int, seed: int) -> Matched | None:
    """Random halves of both kinds of models, each unlearned half against one retrained half; or all of them, with a second group of retrained models.

    None if there are fewer than `least` models a group.
    """
    order = permutation(len(unlearned), seed, 0)
    if second is not None:
        size = min(len(unlearned), len(second))
        return Matched([(unlearned[order[:size]], retrained)], (second[:size], retrained), size) if size >= least else None
    size = min(len(unlearned), len(retrained)) // 2
    if size < least:
        return None
    halves = retrained[permutation(len(retrained), seed, 1)[: 2 * size]].split(size)
    return Matched(list(zip(unlearned[order[: 2 * size]].split(size), halves, strict=True)), (halves[0], halves[1]), size)
