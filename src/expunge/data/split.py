"""Which training images must leave: the pair (D_F, D_R) over one training set D."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import final

import torch
from torch import Tensor

from ..checks import check_indices, choose
from ..errors import DataError
from ..rng import check_seed, permutation
from .images import Samples, Subset


@final
@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """A training set cut into a forget set D_F and a retain set D_R. Make one with `forget_samples`, `forget_random`, `forget_classes` or `forget_only`.

    Attributes:
        train: D, everything that the original model saw.
        forget_indices: positions of D_F in `train`, int64, ascending.
        forget_classes: class numbers if whole classes are forgotten, else empty.
        forget, retain: D_F and D_R; together they are `train`, and they share no sample.

    Raises:
        DataError: indices repeated, out of range, not integers, none, or all although there are retain data.
    """

    train: Samples
    forget_indices: Tensor
    forget_classes: tuple[int, ...] = ()
    has_retain: bool = True

    def __post_init__(self) -> None:
        indices = check_indices(self.forget_indices, len(self.train))
        if self.has_retain and len(indices) == len(self.train):
            raise DataError(
                f"forget indices name all {len(self.train)} training samples, so that nothing is retained. "
                "If the retain data are gone, use forget_only(forget); if everything must go, delete the model."
            )
        object.__setattr__(self, "forget_indices", indices)

    def __repr__(self) -> str:
        retained = f"retain {len(self.train) - len(self.forget_indices)}" if self.has_retain else "no retain data"
        return f"Split(forget {len(self.forget_indices)}, {retained}{f', classes {self.forget_classes}' if self.forget_classes else ''})"

    @cached_property
    def forget(self) -> Subset:
        return Subset(self.train, self.forget_indices)

    @cached_property
    def retain(self) -> Subset:
        if not self.has_retain:
            raise DataError(
                "the split has no retain samples, because it was made by forget_only. Use a method that does not read them "
                "(`expunge list methods` shows which), or make the split with forget_samples on the whole training set."
            )
        mask = torch.ones(len(self.train), dtype=torch.bool)
        mask[self.forget_indices] = False
        return Subset(self.train, mask.nonzero().flatten())


def forget_samples(train: Samples, indices: Sequence[int] | Tensor) -> Split:
    """Forgets the samples at these positions of the training set.

    Args:
        train: the training set D.
        indices: unique integers in [0, len(train)), at least one and not all.

    Raises:
        DataError: indices repeated, out of range, not integers, none, or all.

    Example:
        >>> from expunge import load_data
        >>> train, test = load_data("digits")
        >>> forget_samples(train, [17, 42])
        Split(forget 2, retain 998)
    """
    return Split(train, indices)


def forget_random(train: Samples, n: int, seed: int = 0) -> Split:
    """Forgets n samples chosen uniformly at random; the same seed gives the same ones.

    Raises:
        DataError: n is not an integer in [1, len(train)). ConfigError: seed is not an integer in [0, 2**63).
    """
    check_seed(seed)
    if isinstance(n, bool) or not isinstance(n, int) or not 0 < n < len(train):
        raise DataError(f"n must be an integer in [1, {len(train)}); got {n!r}. Pass the number of samples to forget.")
    return forget_samples(train, permutation(len(train), seed)[:n])


def forget_classes(train: Samples, classes: Sequence[str | int]) -> Split:
    """Forgets every sample of these classes, given by name or number.

    Raises:
        MissingError: a class that does not exist.
        DataError: no class, a class without samples, or all classes.
    """
    numbers = _class_numbers(train, classes)
    if not numbers:
        raise DataError(f"classes must name at least one class with samples; got {classes!r}.")
    return Split(train, torch.isin(train.labels, torch.tensor(numbers)).nonzero().flatten(), numbers)


def forget_only(forget: Samples, classes: Sequence[str | int] = ()) -> Split:
    """A split for when the retain data are gone: only the forget set is at hand.

    Args:
        forget: D_F.
        classes: names or numbers of the classes, if D_F is all samples of whole classes; methods that forget classes must be told.

    Raises:
        MissingError: a class that does not exist.
        DataError: `classes` are not exactly those of D_F, or all classes.
    """
    numbers = _class_numbers(forget, classes)
    if numbers and not torch.isin(forget.labels, torch.tensor(numbers)).all():
        raise DataError(
            f"classes must be all classes of the forget set; got {classes!r}, and samples of {len(forget.labels.unique())} classes. "
            "Name them all, or leave `classes` out if some were not forgotten whole."
        )
    if len(numbers) == len(forget.classes):
        raise DataError(f"classes name all {len(numbers)} classes, so that nothing is retained. If everything must go, delete the model.")
    return Split(forget, torch.arange(len(forget)), numbers, has_retain=False)


def share_of(samples: Samples, ratio: float, seed: int) -> Subset:
    """A random share of the samples: of each class the same share, rounded up; the same seed gives the same ones."""
    order = permutation(len(samples), seed)
    labels = samples.labels[order]
    chosen = [order[labels == k] for k in labels.unique()]
    return samples.subset(torch.cat([members[: math.ceil(ratio * len(members))] for members in chosen]))


def _class_numbers(train: Samples, classes: Sequence[str | int]) -> tuple[int, ...]:
    classes = [classes] if isinstance(classes, str | int) else classes
    numbers = sorted({_class_number(train, c) for c in classes})
    for number in numbers:
        if not (train.labels == number).any():
            raise DataError(f"classes must have samples; got {train.classes[number]!r}, which has none. Leave it out.")
    return tuple(numbers)


def _class_number(train: Samples, name: str | int) -> int:
    if isinstance(name, Integral) and 0 <= name < len(train.classes):  # also NumPy's integers
        return int(name)
    return train.classes.index(choose("class", str(name), train.classes, "classes are the names or numbers of the training set."))
