"""The figures of a benchmark: every method's average gap on one axis, and average gap against cost and against the distance of answers, with the methods' names at the points.

All are placed here and drawn by the template, so that names of methods are escaped where all text of the page is. The strips of the first are in percent of the
width. Names in the others keep their size, so that each is drawn once for each of two widths, and the page shows the one that fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .axes import LinearAxis, LogAxis
from .cells import Estimate
from .point_labels import Frame, Label, Point, place_labels

FRAMES = (Frame("wide", 736, 440, 34, 7.0), Frame("tall", 328, 500, 28, 6.8))


Pair = tuple[Estimate | None, Estimate | None]  # to the right, and upwards


@dataclass(frozen=True)
class Scatter:
    """A figure at one width, ready for the template; places are pixels of its frame, to the right and upwards, None where there is none."""

    frame: Frame
    marks: list[tuple[Point, Label]]
    across: list[tuple[str, float]]  # numbers on the axis to the right
    upwards: list[tuple[str, float]]
    floor: tuple[float | None, float | None]
    original: tuple[float | None, float | None]


def scatters(
    methods: Sequence[tuple[str, str, Estimate, Estimate]], across: LogAxis | LinearAxis, upwards: LinearAxis, floor: Pair, original: Pair
) -> list[Scatter]:
    """One figure, once for each width of a window.

    Args:
        methods: name, standing, and where each lies to the right and upwards.
        across, upwards: the axes.
        floor: of retraining: the figure shows its upper ends. original: of the model as it was.
    """
    figures = []
    for frame in FRAMES:

        def x(value: float, frame: Frame = frame) -> float:
            return frame.x(across.place(value))

        def y(value: float, frame: Frame = frame) -> float:
            return frame.y(upwards.place(value))

        before = (x(original[0]["value"]) if original[0] else None, y(original[1]["value"]) if original[1] else None)
        points = [
            Point(name, standing, x(right["value"]), y(up["value"]), *(y(end) for end in ends(up)), *(x(end) for end in ends(right)))
            for name, standing, right, up in methods
        ]
        figures.append(
            Scatter(
                frame,
                list(zip(points, place_labels(points, frame, before), strict=True)),
                [(tick.label, frame.x(tick.place)) for tick in across.ticks],
                [(tick.label, frame.y(tick.place)) for tick in upwards.ticks],
                (x(ends(floor[0])[1]) if floor[0] else None, y(ends(floor[1])[1]) if floor[1] else None),
                before,
            )
        )
    return figures


def exactly(value: float) -> Estimate:
    """A number without an interval, such as a cost that is counted."""
    return {"value": value, "low": None, "high": None}


def ends(estimate: Estimate) -> tuple[float, float]:
    """Of its interval; the value at both ends where there is none.

    Example:
        >>> ends(exactly(3.0))
        (3.0, 3.0)
    """
    low, high = (estimate["value"] if estimate[end] is None else estimate[end] for end in ("low", "high"))
    return low, high
