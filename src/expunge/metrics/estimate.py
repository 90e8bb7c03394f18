"""A number with its interval, or the reason why the data cannot support one."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import final

from scipy.special import betaincinv, stdtrit

from ..errors import ConfigError


@final
@dataclass(frozen=True)
class Estimate:
    """A measured value with a confidence interval.

    Attributes:
        value: the point estimate; NaN if the data cannot support one.
        low, high: the ends of the interval (95 % unless asked otherwise); NaN with the value.
        n: how many samples it rests on.
        note: why there is no value, or what weakens it; None if nothing does.

    Example:
        >>> print(Estimate(0.512, 0.48, 0.544, n=2000))
        0.512 [0.480, 0.544]
        >>> f"{Estimate(0.512, 0.48, 0.544, n=2000):.1%}"
        '51.2% [48.0%, 54.4%]'
        >>> print(unsupported("needs 500 non-members, got 200", n=200))
        n/a (needs 500 non-members, got 200)
    """

    value: float
    low: float
    high: float
    n: int
    note: str | None = None

    @property
    def supported(self) -> bool:
        """Whether there is a value at all."""
        return not math.isnan(self.value)

    def __format__(self, spec: str) -> str:
        if not self.supported:
            return f"n/a ({self.note})"
        value, low, high = (format(x, spec or ".3f") for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self)

    def to_dict(self) -> dict[str, float | int | str | None]:
        """Plain values for JSON, which has no NaN: None where the value is not supported."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def unsupported(reason: str, n: int) -> Estimate:
    """An estimate without a value: the data cannot carry it, for this reason."""
    return Estimate(math.nan, math.nan, math.nan, n, reason)


def mean_estimate(values: Sequence[float], level: float = 0.95, within: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """The mean of independent values (of seeds, say) with its t-interval; one value has none.

    Args:
        values: finite, at least one. level: confidence in (0, 1).
        within: the smallest and the largest that a mean can be; the interval ends there.

    Example:
        >>> print(mean_estimate([1.0, 2.0, 3.0]), mean_estimate([1.0, 2.0, 3.0], within=(0.0, 4.0)))
        2.000 [-0.484, 4.484] 2.000 [0.000, 4.000]
    """
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(mean, math.nan, math.nan, 1, "one value has no interval")
    reach = float(stdtrit(n - 1, (1 + check_level(level)) / 2)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, max(within[0], mean - reach), min(within[1], mean + reach), n)


def proportion_interval(successes: int | float, n: int, level: float = 0.95) -> tuple[float, float]:
    """The Clopper-Pearson interval (low, high) of a proportion: it covers the truth at least as often as `level` says, for every n.

    Args:
        successes: in [0, n]; need not be whole (a tie counts half).
        n: independent trials, ≥ 1.
        level: confidence in (0, 1).

    Example:
        >>> [round(x, 3) for x in proportion_interval(0, 100)]
        [0.0, 0.036]
    """
    tail = (1 - check_level(level)) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def check_level(level: float) -> float:
    """Returns the confidence level; raises ConfigError unless it lies in (0, 1)."""
    if not 0 < level < 1:
        raise ConfigError(f"level must be a confidence in (0, 1); got {level!r}. Pass 0.95 for a 95 % interval.")
    return level
