"""Learning-rate schedules: a factor on the peak learning rate as a function of the epochs done so far (a real number)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from ..checks import check_settings, setting


class Schedule(ABC):
    """A frozen recipe for the learning rate; `schedule(done, epochs)` is the factor in [0, 1]."""

    @abstractmethod
    def __call__(self, done: float, epochs: int) -> float: ...


@final
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same learning rate all the time."""

    def __call__(self, done: float, epochs: int) -> float:
        return 1.0


@final
@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """Multiplies by `gamma` after every `every` epochs, for the first time after `first` (None = after `every` as well).

    Example:
        >>> Step(every=40)(80.0, 200)  # doctest: +ELLIPSIS
        0.01...
    """

    every: int = setting(1, ge=1)
    gamma: float = setting(0.1, gt=0, le=1)
    first: int | None = setting(None, ge=1, later=True)

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self, done: float, epochs: int) -> float:
        early = self.every - (self.first or self.every)
        return self.gamma ** max(0, int((done + early) // self.every))


@final
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Rises linearly during the first `warmup` share of the epochs, then falls to 0 along half a cosine."""

    warmup: float = setting(0.1, ge=0, lt=1)

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self, done: float, epochs: int) -> float:
        progress = done / epochs
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
