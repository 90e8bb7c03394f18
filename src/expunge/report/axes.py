"""The axes of the figures that the page draws itself: where a value lies, in percent, and which numbers are printed beside it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .cells import Estimate, Scale, number

DECADES = 6  # of a log axis at most: what is smaller than 1e-6 of the largest value lies at its left end
FEW = 2.2  # decades: up to here a log axis has ticks at 1, 2 and 5, beyond at powers of 10
MOST_TICKS = 8
BEYOND = 1.5  # times the largest value of a linear axis: longer intervals are cut there, so that one of two seeds does not press all others together


@dataclass(frozen=True)
class Tick:
    """A number on the axis."""

    label: str
    place: float


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis; low and high are the exponents of 10 at its ends."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "LogAxis":
        """An axis for these values, of one decade at least; values that are not positive have no place on it."""
        logs = [math.log10(value) for value in values if value > 0] or [0.0]
        high = max(logs)
        low = max(min(logs), high - DECADES)
        air = max(0.04 * (high - low), (1 - (high - low)) / 2)
        return cls(low - air, high + air)

    def beyond(self, value: float) -> bool:
        """Whether a value is smaller than the axis shows."""
        return value <= 0 or math.log10(value) < self.low

    def place(self, value: float) -> float:
        """In percent of the width."""
        if value <= 0:
            return 0.0
        return round(min(100.0, max(0.0, 100 * (math.log10(value) - self.low) / (self.high - self.low))), 2)

    @property
    def ticks(self) -> list[Tick]:
        step = max(1, math.ceil((self.high - self.low) / MOST_TICKS))
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        values = [m * 10.0**p for p in powers for m in ((1, 2, 5) if self.high - self.low <= FEW else (1,)) if p % step == 0]
        return [Tick(number(value), self.place(value)) for value in values if self.low <= math.log10(value) <= self.high]


@dataclass(frozen=True)
class LinearAxis:
    """From nothing to a little more than the largest value; `unit` times a value is what its numbers say."""

    high: float
    unit: float = 100.0

    @classmethod
    def of(cls, values: Sequence[Estimate], unit: float = 100.0) -> "LinearAxis":
        """An axis that holds all these values, and their intervals unless they reach far beyond."""
        most = max(each["value"] for each in values)
        ends = [each["high"] for each in values if each["high"] is not None]
        return cls(1.04 * min(max([most, *ends]), BEYOND * most) or 0.01, unit)

    @property
    def ticks(self) -> list[Tick]:
        """Three to seven round numbers."""
        rough = self.unit * self.high / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        return [Tick(f"{round(k * step, 9):g}", self.place(k * step / self.unit)) for k in range(int(self.unit * self.high / step) + 1)]

    def place(self, value: float) -> float:
        """In percent of the axis."""
        return round(min(100.0, max(0.0, 100 * value / self.high)), 2)

    def style(self, estimate: Estimate | None, **marks: float | None) -> str:
        """Where an estimate and other marks lie, as CSS variables."""
        return Scale(0.0, self.high).style(estimate, zero=0.0, **marks)

    def beyond(self, estimate: Estimate) -> bool:
        """Whether an interval is cut at the upper end."""
        return estimate["high"] is not None and estimate["high"] > self.high
