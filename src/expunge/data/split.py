"""Which training images must leave: the pair (D_F, D_R) over one training set D."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import final

import torch
from torch import Tensor

from ..checks import check_indices, choose, is_integer
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

    Example:
        >>> import expunge
        >>> split = expunge.forget_samples(expunge.load_data("digits").train, [17, 42])
        >>> len(split.forget), len(split.retain), split.forget.ids.tolist()
        (2, 998, [17, 42])
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
    return Split(train, check_indices(indices, len(train)))


def forget_random(train: Samples, n: int, seed: int = 0) -> Split:
    """Forgets n samples chosen uniformly at random; the same seed gives the same ones.

    Raises:
        DataError: n is not an integer in [1, len(train)). ConfigError: seed is not an integer in [0, 2**63).

    Example:
        >>> import expunge
        >>> expunge.forget_random(expunge.load_data("digits").train, 50)
        Split(forget 50, retain 950)
    """
    check_seed(seed)
    if not is_integer(n, 1) or n >= len(train):
        raise DataError(f"n must be an integer in [1, {len(train)}); got {n!r}. Pass the number of samples to forget.")
    return forget_samples(train, permutation(len(train), seed)[:n])


def forget_classes(train: Samples, classes: Sequence[str | int]) -> Split:
    """Forgets every sample of these classes, given by name or number.

    Raises:
        MissingError: a class that does not exist.
        DataError: no class, a class without samples, all classes, or no sample of another class.

    Example:
        >>> import expunge
        >>> expunge.forget_classes(expunge.load_data("digits").train, ["3", 8])
        Split(forget 199, retain 801, classes (3, 8))
    """
    numbers = class_numbers(train, classes)
    _check_some_stay(train, numbers)
    forget = samples_of(train, numbers).positions
    if len(forget) == len(train):
        raise DataError(
            f"other classes must have samples too, or nothing is retained; all {len(train)} are of {_names(train, numbers)}. "
            "Where the retain data are gone, use forget_only(train, classes=[...]), or --no-retain on the command line."
        )
    return Split(train, forget, numbers)


def forget_only(forget: Samples, classes: Sequence[str | int] = ()) -> Split:
    """A split for when the retain data are gone: only the forget set is at hand.

    Args:
        forget: D_F.
        classes: names or numbers of the classes, if D_F is all samples of whole classes; methods that forget classes must be told.

    Raises:
        MissingError: a class that does not exist.
        DataError: `classes` are not exactly those of D_F, or all classes.

    Example:
        >>> import expunge
        >>> train, _ = expunge.load_data("digits")
        >>> expunge.forget_only(train.subset([17, 42]))
        Split(forget 2, no retain data)
        >>> expunge.forget_only(train.subset((train.labels == 3).nonzero().flatten()), classes=["3"])
        Split(forget 102, no retain data, classes (3,))
    """
    numbers = () if isinstance(classes, tuple | list) and not classes else class_numbers(forget, classes)
    strange = set(forget.labels.tolist()) - set(numbers)
    if numbers and strange:
        raise DataError(
            f"classes must be all classes of the forget set; got {_names(forget, numbers)}, and samples of {_names(forget, strange)} too. "
            "Name them all, or leave `classes` out if some were not forgotten whole."
        )
    _check_some_stay(forget, numbers)
    return Split(forget, torch.arange(len(forget)), numbers, has_retain=False)


def samples_of(samples: Samples, classes: Sequence[str | int]) -> Subset:
    """The samples of these classes, given by name or number.

    Raises:
        MissingError, DataError: as `class_numbers` does.
    """
    return samples.subset(torch.isin(samples.labels, torch.tensor(class_numbers(samples, classes))).nonzero().flatten())


def share_of(samples: Samples, ratio: float, seed: int) -> Subset:
    """A random share of the samples: of each class the same share, rounded up; the same seed gives the same ones."""
    order = permutation(len(samples), seed)
    labels = samples.labels[order]
    chosen = [order[labels == k] for k in labels.unique()]
    return samples.subset(torch.cat([members[: math.ceil(ratio * len(members))] for members in chosen]))


def class_numbers(samples: Samples, classes: Sequence[str | int]) -> tuple[int, ...]:
    """The numbers of these classes, ascending, without repetition.

    Raises:
        MissingError: a class that does not exist.
        DataError: no class, or one without samples.
    """
    classes = classes.tolist() if hasattr(classes, "tolist") else classes  # NumPy's and torch's
    classes = [classes] if isinstance(classes, str | int) else classes
    if not isinstance(classes, Iterable) or not (numbers := sorted({_class_number(samples, c) for c in classes})):
        raise DataError(
            f"classes must name at least one class with samples; got {classes!r}. Pass names or numbers, such as ['{samples.classes[0]}']."
        )
    empty = set(numbers) - set(samples.labels.tolist())
    if empty:
        raise DataError(
            f"classes must have samples; got {_names(samples, empty)} without any. Leave it out, or check that the data are those it is in."
        )
    return tuple(numbers)


def _class_number(samples: Samples, name: str | int) -> int:
    if isinstance(name, Integral) and 0 <= name < len(samples.classes):  # also NumPy's integers
        return int(name)
    remedy = f"Pass a class by its name, or by its number from 0 to {len(samples.classes) - 1}."
    return samples.classes.index(choose("class", str(name), samples.classes, remedy))


def _check_some_stay(samples: Samples, numbers: tuple[int, ...]) -> None:
    if len(numbers) == len(samples.classes):
        raise DataError(
            f"classes must leave at least one class for the model to know; got all {len(numbers)}: {_names(samples, numbers)}. If everything must go, delete the model; "
            "if the data hold only what must go, name the model's other classes too, in the model's order (an empty folder, or a name in `classes`, for each)."
        )


def _names(samples: Samples, numbers: Iterable[int]) -> str:
    names = [repr(samples.classes[k]) for k in sorted(numbers)]
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)
