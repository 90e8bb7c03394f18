"""Learning-rate schedules: a factor on the peak learning rate as a function of the epochs done so far (a real number)."""

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from ..checks import check_settings, is_integer, setting
from ..errors import ConfigError


class Schedule(ABC):
    """A frozen recipe for the learning rate; `schedule(done, epochs)` is the factor in [0, 1]."""

    @abstractmethod
    def __call__(self, done: float, epochs: int) -> float: ...


@final
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same learning rate all the time.

    Example:
        >>> Constant()(5.0, 10)
        1.0
    """

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
class MultiStep(Schedule):
    """Multiplies by `gamma` after each of the epochs in `milestones`, ascending integers ≥ 1.

    Example:
        >>> schedule = MultiStep(milestones=(91, 136))
        >>> schedule(90.9, 182), schedule(91.0, 182)
        (1.0, 0.1)
    """

    milestones: tuple[int, ...]
    gamma: float = setting(0.1, gt=0, le=1)

    def __post_init__(self) -> None:
        check_settings(self)
        ascending = all(a < b for a, b in itertools.pairwise(self.milestones))
        if not (self.milestones and ascending and all(is_integer(m, 1) for m in self.milestones)):
            raise ConfigError(f"MultiStep: milestones must be ascending integers ≥ 1; got {self.milestones!r}. Pass milestones=(91, 136).")

    def __call__(self, done: float, epochs: int) -> float:
        return self.gamma ** sum(done >= milestone for milestone in self.milestones)


@final
@dataclass(frozen=True, kw_only=True)
class Triangular(Schedule):
    """Rises linearly from `start` to 1 during the first `peak` share of the epochs, then falls linearly to `end`.

    Example:
        >>> Triangular(peak=0.25)(1, 8), Triangular(peak=0.25)(5, 8)
        (0.5, 0.5)
    """

    peak: float = setting(0.2, gt=0, lt=1)
    start: float = setting(0.0, ge=0, le=1)
    end: float = setting(0.0, ge=0, le=1)

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self, done: float, epochs: int) -> float:
        progress = done / epochs
        if progress < self.peak:
            return self.start + (1 - self.start) * progress / self.peak
        return self.end + (1 - self.end) * (1 - progress) / (1 - self.peak)


@final
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Rises linearly during the first `warmup` share of the epochs, then falls to 0 along half a cosine.

    Example:
        >>> schedule = Cosine()
        >>> schedule(1.0, 10), schedule(5.0, 10) > schedule(9.0, 10)
        (1.0, True)
    """

    warmup: float = setting(0.1, ge=0, lt=1)

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self, done: float, epochs: int) -> float:
        progress = done / epochs
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


SCHEDULES = {"constant": Constant, "cosine": Cosine, "multi_step": MultiStep, "step": Step, "triangular": Triangular}
