"""The two figures of a benchmark: every method's average gap on one axis, and average gap against cost with the methods' names at the points.

Both are placed here and drawn by the template, so that names of methods are escaped where all text of the page is. The strips of the first are in percent of the
width. Names in the second keep their size, so that it is drawn once for each of two widths, and the page shows the one that fits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .cells import Estimate, Scale
from .point_labels import Frame, Label, Point, place_labels
from .spectrum_section import Axis, Tick

BEYOND = 1.5  # times the largest gap: longer intervals are cut there, so that one of two seeds does not press all others together
FRAMES = (Frame("wide", 736, 440, 34, 7.0), Frame("tall", 328, 500, 28, 6.8))


@dataclass(frozen=True)
class GapAxis:
    """From no gap to a little more than the largest one, as a fraction."""

    high: float

    @classmethod
    def of(cls, gaps: Sequence[Estimate]) -> "GapAxis":
        """An axis that holds all these values, and their intervals unless they reach far beyond."""
        most = max(gap["value"] for gap in gaps)
        ends = [gap["high"] for gap in gaps if gap["high"] is not None]
        return cls(1.04 * min(max([most, *ends]), BEYOND * most) or 0.01)

    @property
    def ticks(self) -> list[Tick]:
        """Three to seven round numbers of points."""
        rough = 100 * self.high / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        return [Tick(f"{round(k * step, 9):g}", round(k * step / self.high, 2)) for k in range(int(100 * self.high / step) + 1)]

    def style(self, gap: Estimate | None, **marks: float | None) -> str:
        """Where an estimate and other marks lie, as CSS variables."""
        return Scale(0.0, self.high).style(gap, zero=0.0, **marks)

    def beyond(self, gap: Estimate) -> bool:
        """Whether an interval is cut at the upper end."""
        return gap["high"] is not None and gap["high"] > self.high


@dataclass(frozen=True)
class CostFigure:
    """The figure at one width, ready for the template; places are pixels of its frame."""

    frame: Frame
    marks: list[tuple[Point, Label]]
    across: list[tuple[str, float]]  # numbers on the axis of costs
    upwards: list[tuple[str, float]]  # and on that of gaps
    floor: float | None
    original: float | None


def cost_figures(
    methods: Sequence[tuple[str, str, float, Estimate]], axis: GapAxis, floor: Estimate | None, original: Estimate | None
) -> list[CostFigure]:
    """Average gap against cost, once for each width of a window.

    Args:
        methods: name, standing, cost ≥ 0 and average gap of each.
        axis: of the gaps.
        floor, original: average gaps of retraining and of the original, which have no cost.
    """
    costs = Axis.of([cost for _, _, cost, _ in methods])
    figures = []
    for frame in FRAMES:
        height = lambda gap, frame=frame: frame.y(min(100.0, max(0.0, 100 * gap / axis.high)))  # noqa: E731
        before = height(original["value"]) if original else None
        points = [
            Point(name, standing, frame.x(costs.place(cost)), height(gap["value"]), *(height(_end(gap, end)) for end in ("low", "high")))
            for name, standing, cost, gap in methods
        ]
        figures.append(
            CostFigure(
                frame,
                list(zip(points, place_labels(points, frame, before), strict=True)),
                [(tick.label, frame.x(tick.place)) for tick in costs.ticks],
                [(tick.label, frame.y(tick.place)) for tick in axis.ticks],
                height(_end(floor, "high")) if floor else None,
                before,
            )
        )
    return figures


def _end(gap: dict[str, Any], end: str) -> float:
    """An end of an interval, or the value where there is none."""
    return gap["value"] if gap[end] is None else gap[end]
