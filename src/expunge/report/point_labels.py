"""Names beside the points of a figure, without covering one another as far as that is possible."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

TIES, WORSE = "ties", "worse"  # how a method stands to the best; "" where that is not known (yet)
WIDEST = 26  # letters of a name in a figure: so wide a name has a place at every point of every frame
RADII = (9, 13, 18, 25, 34, 46, 60, 76, 94, 116, 140, 170)  # pixels from a point to its name
DIRECTIONS = [(math.cos(math.tau * k / 16), math.sin(math.tau * k / 16)) for k in range(16)]
NEAR = 14  # pixels: names further away have a line to their point
SWEEPS = 4  # after the first; then names hardly move any more
OVERLAP = 120.0  # what is bad about a place, in pixels of distance: it covers another name,
COVERED = 60.0  # or a point, or a line runs through a name or a point,
CROSSING = 40.0  # or two lines cross,
STRUCK = 12.0  # or an interval or a line of the original runs through the name
Box = tuple[float, float, float, float]  # left, top, right, bottom
Line = tuple[float, float, float, float]  # x, y of both ends
Lines = tuple[float | None, float | None]  # of the original: x of the upright one, y of the level one


@dataclass(frozen=True)
class Frame:
    """The size of a figure in pixels, with room for numbers on the left and below."""

    kind: str
    width: int
    height: int
    left: int
    letter: float  # mean width of a letter

    top, right, bottom, line = 20, 10, 38, 15

    def x(self, percent: float) -> float:
        return round(self.left + percent / 100 * (self.width - self.left - self.right), 1)

    def y(self, percent: float) -> float:
        return round(self.floor - percent / 100 * (self.floor - self.top), 1)

    @property
    def floor(self) -> int:
        return self.height - self.bottom

    def holds(self, box: Box) -> bool:
        return box[0] >= self.left + 2 and box[1] >= self.top - 4 and box[2] <= self.width - 2 and box[3] <= self.floor - 2


@dataclass(frozen=True)
class Point:
    """One method in the figure, in pixels; low and high are the ends of its interval upwards, left and right of that across."""

    name: str
    standing: str
    x: float
    y: float
    low: float
    high: float
    left: float
    right: float


@dataclass(frozen=True)
class Label:
    """Where a name is written: the left end of its baseline, and the line to its point if it is not beside it."""

    text: str
    box: Box
    leader: Line | None

    @property
    def at(self) -> tuple[float, float]:
        return round(self.box[0], 1), round(self.box[3] - 4, 1)


def place_labels(points: Sequence[Point], frame: Frame, before: Lines = (None, None)) -> list[Label]:
    """A place for each point's name, near it and clear of other names, points and the original's lines as far as that is possible; the same for the same points.

    One after the other, each name takes the best place beside those that are there already; then each moves, a few times, to what is best now. From the left and
    from the right, and the better of the two.
    """
    tried, places = [], [_candidates(point, frame) for point in points]
    for key in (lambda k: points[k].x, lambda k: -points[k].x):
        labels: dict[int, Label] = {}
        costs: list[float] = []
        for _ in range(1 + SWEEPS):
            last, costs = costs, []
            for k in sorted(range(len(points)), key=key):
                labels.pop(k, None)
                labels[k], cost = _best(points[k], places[k], points, list(labels.values()), before)
                costs.append(cost)
            if costs == last:
                break
        tried.append((sum(costs), [labels[k] for k in range(len(points))]))
    return min(tried, key=lambda found: found[0])[1]


def _best(
    own: Point, places: Sequence[tuple[Label, float]], points: Sequence[Point], labels: Sequence[Label], before: Lines
) -> tuple[Label, float]:
    """The best place of one name, beside these others, and how bad it is."""
    best, least = places[0][0], math.inf
    for label, distance in places:
        if distance >= least:
            break  # candidates come by distance
        bad = distance + STRUCK * _struck(label.box, before)
        bad += _badness(label, own, points, labels, least - bad)
        if bad < least:
            best, least = label, bad
    return best, least


def _struck(box: Box, lines: Lines) -> int:
    """How many of these lines run through a box."""
    x, y = lines
    return (x is not None and box[0] < x < box[2]) + (y is not None and box[1] < y < box[3])


def shortened(name: str) -> str:
    """A name that is not too wide for a figure.

    Example:
        >>> shortened("salun"), shortened("a" * 40)
        ('salun', 'aaaaaaaaaaaaaaaaaaaaaaaaa…')
    """
    if letters(name) <= WIDEST:
        return name
    fits = next(k for k in range(len(name) + 1) if letters(name[: k + 1]) > WIDEST - 1)
    return name[:fits] + "…"


def letters(text: str) -> int:
    """The width of a text in Latin letters: a Chinese one is as wide as two.

    Example:
        >>> letters("salun"), letters("名前")
        (5, 4)
    """
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _candidates(point: Point, frame: Frame) -> list[tuple[Label, float]]:
    """Places around a point that are inside the frame, each with its distance, the nearest first: beside the point rather than above it, on the right rather than on the left."""
    text = shortened(point.name)
    width = frame.letter * (1.08 if point.standing == TIES else 1.0) * letters(text)
    found = []
    for radius in RADII:
        for x, y in DIRECTIONS:
            for before in (0.0, 0.5, 1.0) if abs(x) < 0.95 else (float(x < 0),):  # the part of the name that is left of the end of its line
                left, middle = point.x + radius * x - before * width, point.y + radius * y
                box = (left, middle - frame.line / 2, left + width, middle + frame.line / 2)
                leader = _leader(point, box)
                distance = math.dist(leader[2:], (point.x, point.y))
                if distance >= RADII[0] - 2 and frame.holds(box):
                    bad = (
                        distance + 3 * abs(y) + (x < 0) + STRUCK * (distance > NEAR and abs(leader[0] - leader[2]) < 4)
                    )  # a steep line looks like the interval
                    found.append((Label(text, box, leader if distance > NEAR else None), bad))
    return sorted(found, key=lambda place: place[1])


def _leader(point: Point, box: Box) -> Line:
    """From a point's rim to the nearest place at a name's box."""
    x, y = min(max(point.x, box[0]), box[2]), min(max(point.y, box[1] + 2), box[3] - 2)
    length = math.hypot(x - point.x, y - point.y) or 1.0
    start = [p + 5 * (q - p) / length for p, q in ((point.x, x), (point.y, y))]
    return round(start[0], 1), round(start[1], 1), round(x, 1), round(y, 1)


def _badness(label: Label, own: Point, points: Sequence[Point], labels: Sequence[Label], limit: float) -> float:
    """What is wrong with a place, beside these points and other names; some number above `limit` if that is exceeded."""
    bad = 0.0
    for other in labels:
        bad += OVERLAP * _overlap(label.box, other.box)
        bad += COVERED * (_through(other.leader, label.box) + _through(label.leader, other.box)) + CROSSING * _cross(
            label.leader, other.leader
        )
        if bad > limit:
            return bad
    for point in points:
        dot = (point.x - 6, point.y - 6, point.x + 6, point.y + 6)
        bad += COVERED * (_overlap(label.box, dot) + (point is not own and _through(label.leader, dot)))
        bad += STRUCK * (
            _overlap(label.box, (point.x, point.high, point.x, point.low))
            + _overlap(label.box, (point.left, point.y, point.right, point.y))
        )
        if bad > limit:
            return bad
    return bad


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] + 2 and b[0] < a[2] + 2 and a[1] < b[3] and b[1] < a[3]


def _cross(a: Line | None, b: Line | None) -> bool:
    """Whether two lines cross."""
    if a is None or b is None:
        return False
    side = lambda line, x, y: (line[2] - line[0]) * (y - line[1]) - (line[3] - line[1]) * (x - line[0])  # noqa: E731
    return side(a, b[0], b[1]) * side(a, b[2], b[3]) < 0 and side(b, a[0], a[1]) * side(b, a[2], a[3]) < 0


def _through(line: Line | None, box: Box) -> bool:
    """Whether a line has a part inside a box."""
    left, top, right, bottom = box
    if (
        line is None
        or max(line[0], line[2]) <= left
        or min(line[0], line[2]) >= right
        or max(line[1], line[3]) <= top
        or min(line[1], line[3]) >= bottom
    ):
        return False  # which nearly all are, and quickly
    inside = any(left < x < right and top < y < bottom for x, y in (line[:2], line[2:]))
    return inside or _cross(line, (left, top, right, bottom)) or _cross(line, (left, bottom, right, top))
