"""The page of a benchmark: for each combination of its grid up to three figures, the table of all methods, and folded away how each was set and tuned."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from . import cells
from .axes import LinearAxis, LogAxis
from .benchmark_figures import Scatter, ends, exactly, scatters
from .cells import Cell, Estimate, number
from .page import safe_json, template, write_text
from .point_labels import TIES, WORSE

Plain = Mapping[str, Any]
Drawn = Sequence[tuple[Plain, Estimate]]  # methods with their average gaps
RETRAINED, ORIGINAL = "retrained", "original"
AVERAGE_GAP, DISTANCE = "average gap", "TV distance"
HEADS = {
    AVERAGE_GAP: "Average gap, points", "forget": "Forget accuracy, %", "forget test": "Forgotten classes, unseen, %",
    "retain": "Retain accuracy, %", "test": "Test accuracy, %", "MIA-NN gap": "MIA-NN gap, points",
}  # fmt: skip
AREAS = ("AUC", DISTANCE)  # ends of the names of columns that are not printed in percent


@dataclass(frozen=True)
class Strip:
    """One method in the figure of gaps."""

    name: str
    standing: str
    style: str
    beyond: bool
    gap: Cell


@dataclass(frozen=True)
class Line:
    """One method in the table, and what is published of it."""

    name: str
    standing: str
    seeds: str  # "" where all are there
    cells: list[Cell]
    epochs: str
    time: str
    problem: str
    paper: list[str]


@dataclass(frozen=True)
class Tried:
    """One value that tuning tried."""

    value: str
    gap: Cell | None  # None where training diverged
    chosen: bool


@dataclass(frozen=True)
class Setting:
    """What a method ran with."""

    name: str
    repr: str
    field: str
    trials: list[Tried]
    at_the_end: bool


@dataclass(frozen=True)
class Section:
    """One combination of the grid, ready for benchmark.html."""

    title: str
    sizes: list[tuple[str, str]]
    floor: Cell | None
    floor_note: str
    original: Cell | None
    blind: bool
    axis: LinearAxis | None
    strips: list[Strip]
    by_cost: list[Scatter]
    by_answers: list[Scatter]
    missing: list[tuple[str, list[str]]]
    heads: list[str]
    lines: list[Line]
    compared: bool
    has_paper: bool
    settings: list[Setting]
    flags: list[Plain]


def render_benchmark(result: Plain, path: str | os.PathLike[str] | None = None) -> str:
    """A benchmark as one self-contained HTML page, as `render` makes one of an audit; also while it is still running.

    Args:
        result: plain JSON values, as `Results.to_dict()` gives them.
        path: where to write the page as well; None = nowhere. Its folder must exist.

    Raises:
        DataError: a part is missing, or a value is not plain JSON.
        StoreError: the file cannot be written.

    Cost: a few hundredths of a second for each method of each combination: names look for room in two figures.
    Example:
        >>> gap = {"value": 0.021, "low": 0.01, "high": 0.032, "n": 3, "note": None}
        >>> row = {"name": "a<b", "seeds": 3, "columns": {"average gap": gap}, "gaps": [0.02, 0.021, 0.022], "epochs": 2.5, "seconds": 75.0}
        >>> row |= {"settings": None, "tuned": None, "paper": {}, "problem": None}
        >>> point = {"title": "CIFAR-10", "rows": [row], "ties": [], "sizes": {}, "flags": []}
        >>> page = render_benchmark({"title": "Benchmark", "points": [point], "done": 3, "total": 3, "source": None, "provenance": {}})
        >>> "a&lt;b" in page, "1 min 15 s" in page
        (True, True)
    """
    from jinja2 import UndefinedError

    if not isinstance(result.get("points"), list):
        raise DataError("a page of a benchmark needs a list of points; got none. Pass results.to_dict().")
    numbers = safe_json(result)
    try:
        seeds = _seeds(result)
        view = {
            "done": result["done"],
            "total": result["total"],
            "result": result,
            "sections": [_section(point, seeds) for point in result["points"]],
            "seeds": seeds,
            "numbers": numbers,
        }
        text = template().environment.get_template("benchmark.html").render(view)
    except (KeyError, TypeError, AttributeError, UndefinedError) as error:
        raise DataError(f"every part of a benchmark must be complete; got one that is not ({error}). Pass results.to_dict().") from error
    if path is not None:
        write_text(text, path)
    return text


def write_benchmark(result: Plain, path: str | os.PathLike[str]) -> None:
    """Writes the page of a benchmark to a file, which is there whole or not at all.

    Args, Raises: as for `render_benchmark`.
    """
    render_benchmark(result, path)


def _seeds(result: Plain) -> int:
    """How many unlearned models are planned for each method: all methods have as many."""
    return max((row.get("planned") or row["seeds"] for point in result["points"] for row in point["rows"] if _is_method(row)), default=0)


def _is_method(row: Plain) -> bool:
    return row["name"] not in (RETRAINED, ORIGINAL)


def _section(point: Plain, seeds: int) -> Section:
    rows = point["rows"]
    methods = [row for row in rows if _is_method(row)]
    standing = {row["name"]: _standing(row, point["ties"], seeds) for row in methods}
    retrained, before = (next((row for row in rows if row["name"] == name), None) for name in (RETRAINED, ORIGINAL))
    floor, original = (_gap(row) if row else None for row in (retrained, before))
    drawn = sorted(((row, gap) for row in methods if (gap := _gap(row))), key=lambda pair: pair[1]["value"])
    axis = LinearAxis.of([e for e in (floor, original, *(gap for _, gap in drawn)) if e]) if drawn else None
    columns = list(dict.fromkeys([AVERAGE_GAP, *(name for row in rows for name in (*row["columns"], *row["paper"]))]))
    return Section(
        title=point["title"],
        sizes=[(name.replace("_", " "), f"{n:,}") for name, n in point["sizes"].items() if n],
        floor=cells.percent(floor) if floor else None,
        floor_note=floor["note"] or "" if floor else "",
        original=cells.percent(original) if original else None,
        blind=bool(floor and original and ends(original)[0] <= ends(floor)[1]),
        axis=axis,
        strips=[_strip(row["name"], gap, standing[row["name"]], axis, floor, original) for row, gap in drawn] if axis else [],
        by_cost=_by_cost(drawn, standing, axis, floor, original) if axis else [],
        by_answers=_by_answers(drawn, standing, axis, retrained, before) if axis else [],
        missing=_missing(methods),
        heads=[HEADS.get(name, name) for name in columns],
        lines=[_line(row, columns, standing.get(row["name"], ""), seeds) for row in rows],
        compared=any(standing.values()),
        has_paper=any(row["paper"] for row in rows),
        settings=[_setting(row) for row in methods if row["settings"]],
        flags=point["flags"],
    )


def _by_cost(
    drawn: Drawn, standing: Mapping[str, str], axis: LinearAxis, floor: Estimate | None, original: Estimate | None
) -> list[Scatter]:
    methods = [(row["name"], standing[row["name"]], exactly(row["epochs"]), gap) for row, gap in drawn if row["epochs"] is not None]
    across = LogAxis.of([cost["value"] for _, _, cost, _ in methods])
    return scatters(methods, across, axis, (None, floor), (None, original)) if len(methods) > 1 else []


def _by_answers(
    drawn: Drawn, standing: Mapping[str, str], axis: LinearAxis, retrained: Plain | None, original: Plain | None
) -> list[Scatter]:
    """Accuracies may agree where answers do not: average gaps against the distance of answers."""
    methods = [(row["name"], standing[row["name"]], far, gap) for row, gap in drawn if (far := _known(row, DISTANCE))]
    floor, before = ((_known(row, DISTANCE), _gap(row)) if row else (None, None) for row in (retrained, original))
    across = [far for far in (*(far for _, _, far, _ in methods), floor[0], before[0]) if far]
    return scatters(methods, LinearAxis.of(across, unit=1.0), axis, floor, before) if len(methods) > 1 else []


def _known(row: Plain, column: str) -> Estimate | None:
    """A number of a row, if it has one."""
    estimate = row["columns"].get(column)
    return estimate if estimate and estimate["value"] is not None else None


def _gap(row: Plain) -> Estimate | None:
    """The average gap that the figures show: not that of the runs that are left when others diverged."""
    return None if row["problem"] else _known(row, AVERAGE_GAP)


def _standing(row: Plain, ties: Sequence[str], seeds: int) -> str:
    """Only methods that have all their seeds are compared with the best."""
    if row["name"] in ties:
        return TIES
    return WORSE if ties and len(row["gaps"]) == seeds and _gap(row) else ""


def _strip(name: str, gap: Estimate, standing: str, axis: LinearAxis, floor: Estimate | None, original: Estimate | None) -> Strip:
    style = axis.style(gap, floor=ends(floor)[1] if floor else None, original=original["value"] if original else None)
    return Strip(name, standing, style, axis.beyond(gap), cells.percent(gap))


def _missing(methods: Sequence[Plain]) -> list[tuple[str, list[str]]]:
    """Why methods are not in the figures, each reason once."""
    reasons: dict[str, list[str]] = {}
    for row in methods:
        if not _gap(row):
            gap = row["columns"].get(AVERAGE_GAP) or {}
            reasons.setdefault(row["problem"] or gap.get("note") or "no average gap", []).append(row["name"])
    return list(reasons.items())


def _line(row: Plain, columns: Sequence[str], standing: str, seeds: int) -> Line:
    part = 0 < row["seeds"] < seeds and row["name"] != RETRAINED and not row["problem"]
    return Line(
        name=row["name"],
        standing=standing,
        seeds=f"{row['seeds']} of {seeds} seeds" if part else "",
        cells=[_cell(name, row["columns"].get(name)) for name in columns] if row["columns"] else [],
        epochs="" if row["epochs"] is None else number(row["epochs"], 3),
        time="" if row["seconds"] is None else cells.duration(row["seconds"]),
        problem=row["problem"] or "",
        paper=[row["paper"].get(name, "") for name in columns] if row["paper"] else [],
    )


def _cell(column: str, estimate: Estimate | None) -> Cell:
    return (cells.area if column.endswith(AREAS) else cells.percent)(estimate)


def _setting(row: Plain) -> Setting:
    tuned = row["tuned"] or {"field": "", "trials": [], "best": None, "at_the_end": False}
    trials = [
        Tried(number(trial["value"], 3), cells.percent(trial["gap"]) if trial["gap"] else None, trial["value"] == tuned["best"])
        for trial in sorted(tuned["trials"], key=lambda trial: trial["value"])
    ]
    return Setting(row["name"], row["settings"], tuned["field"], trials, tuned["at_the_end"])
