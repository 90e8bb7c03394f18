"""What a plan found, as far as its store has it: for each combination of the grid one table of all methods beside retraining."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from ..audits.compared import ORIGINAL, RETRAINED
from ..audits.tables import Table, lines, number, percent
from ..checks import choose
from ..costs import Cost
from ..metrics.estimate import Estimate, mean_estimate, unsupported
from ..metrics.ranking import ties_with_best
from ..provenance import provenance
from ..report.page import write_text
from ..store import Cell, Store
from ..store.files import write_json
from .markdown import markdown
from .plan import Plan
from .point import Point, points
from .work import FAILED, Run, chosen, tuned_cell

GROUPS = ("forget", "forget_test", "retain", "test")
AVERAGE_GAP = "average gap"
ANSWERS = {"distance": "TV distance", "mia_nn_gap": "MIA-NN gap"}


@final
@dataclass(frozen=True, eq=False)
class Row:
    """One method (or the original, or retraining): means over seeds with 95 % t-intervals; with one seed the intervals of its audit.

    Attributes:
        columns: "average gap", accuracies by group, "TV distance", of classes "MIA-NN gap", AUC by attack ("RMIA AUC"), as fractions; for retraining, average gap and TV distance are the null floor.
        gaps: the average gap of each seed. seeds: how many there are by now.
        epochs: passes over the training set, counted. seconds: median. settings: the method as text.
        tuned: what `tune` chose and tried. paper: published values by column. problem: why there are no numbers (diverged, failed, or not there yet). planned: seeds of the plan.
    """

    name: str
    seeds: int
    columns: dict[str, Estimate]
    gaps: list[float] = field(default_factory=list)
    epochs: float | None = None
    seconds: float | None = None
    settings: str | None = None
    tuned: dict[str, Any] | None = None
    paper: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    planned: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "seeds": self.seeds, "columns": {name: estimate.to_dict() for name, estimate in self.columns.items()}, "gaps": self.gaps,
            "epochs": self.epochs, "seconds": self.seconds, "settings": self.settings, "tuned": self.tuned, "paper": dict(self.paper), "problem": self.problem,
            "planned": self.planned,
        }  # fmt: skip


@final
@dataclass(frozen=True, eq=False)
class PointResults:
    """The table of one combination of the grid.

    Attributes:
        rows: retraining, the original, and the methods in the order of the plan.
        ties: the methods that could have the smallest average gap.
        sizes: how many samples of each group and shadow models. flags: health flags of its audits, each once.
    """

    title: str
    rows: list[Row]
    ties: list[str]
    sizes: dict[str, int]
    flags: list[dict[str, str]]

    def __getitem__(self, name: str) -> Row:
        choose("method", name, [row.name for row in self.rows], "")
        return next(row for row in self.rows if row.name == name)

    def ordered(self, sort: str = AVERAGE_GAP) -> list[Row]:
        """Retraining and the original first, then the methods by this column, those without a number last."""
        ends = [row for row in self.rows if row.name in (RETRAINED, ORIGINAL)]
        methods = [row for row in self.rows if row not in ends]
        has = [row for row in methods if sort in row.columns and row.columns[sort].supported]
        return ends + sorted(has, key=lambda row: row.columns[sort].value) + [row for row in methods if row not in has]

    def table(self, sort: str = AVERAGE_GAP) -> Table:
        rows = self.ordered(sort)
        columns = list(dict.fromkeys(name for row in rows for name in row.columns))
        extra = ["epochs", "s", "ties with the best"]
        return Table(self.title, ["", *columns, *extra], [cells for row in rows for cells in self._lines(row, columns)])

    def _lines(self, row: Row, columns: Sequence[str]) -> list[list[str]]:
        """One line, and one for what the paper says."""
        shown = [_shown(name, row.columns.get(name)) for name in columns]
        if row.problem and columns:
            shown[0] = row.problem.partition(" (")[0]  # the reason is a note
        cost = ["-" if row.epochs is None else f"{row.epochs:.3g}", "-" if row.seconds is None else f"{row.seconds:.0f}"]
        partial = row.planned is not None and 0 < row.seeds < row.planned
        name = row.name + (" (gap: floor)" if row.name == RETRAINED else f" ({row.seeds} of {row.planned} seeds)" if partial else "")
        found = [[name, *shown, *cost, "yes" if row.name in self.ties else ""]]
        return found + ([[f"  {row.name}, paper", *(row.paper.get(name, "") for name in columns), "", "", ""]] if row.paper else [])


@final
@dataclass(frozen=True, eq=False)
class Results:
    """What `Plan.run` and `Plan.results` return. `print(results)` shows the tables; `results.points[0]["amun"].columns["average gap"]` is one number of them."""

    title: str
    points: list[PointResults]
    done: int
    total: int
    source: str | None = None
    provenance: dict[str, Any] = field(default_factory=provenance)

    def table(self, sort: str = AVERAGE_GAP) -> str:
        """All tables as text, methods ordered by a column.

        Raises:
            MissingError: no table has this column.
        """
        self.check_column(sort)
        parts = ["\n".join(lines(point.table(sort))) for point in self.points]
        return "\n\n".join([*parts, "\n".join(self.notes())])

    def check_column(self, name: str) -> None:
        """Raises MissingError if no table has this column."""
        known = dict.fromkeys(column for point in self.points for row in point.rows for column in row.columns)
        choose("column", name, known or [name])

    def notes(self) -> list[str]:
        """What belongs under the tables."""
        sizes = [", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in point.sizes.items()) for point in self.points if point.sizes]
        notes = [
            f"Means over seeds with 95 % intervals; accuracies and gaps in percent. Samples: {'; '.join(dict.fromkeys(sizes)) or 'none yet'}."
        ]
        if self.source:
            notes.append(f"Paper: {self.source}.")
        reasons = [(row.name, row.problem) for point in self.points for row in point.rows if row.problem and " (" in row.problem]
        notes += [f"{name}: {problem}" for name, problem in reasons]
        if self.done < self.total:
            notes.append(f"{self.total - self.done} of {self.total} audited models are not there yet; run the plan again to continue.")
        flags = {(flag["name"], flag["message"]): None for point in self.points for flag in point.flags}
        return notes + [f"! {name}: {message}" for name, message in flags]

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values: what `to_json` writes and the page is made of."""
        points = [
            {"title": p.title, "rows": [row.to_dict() for row in p.ordered()], "ties": p.ties, "sizes": p.sizes, "flags": p.flags} for p in self.points
        ]  # fmt: skip
        return {
            "title": self.title,
            "points": points,
            "done": self.done,
            "total": self.total,
            "source": self.source,
            "provenance": self.provenance,
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The results as JSON text; also written to `path` if given, whole or not at all. StoreError if it cannot be written."""
        return write_json(self.to_dict(), path)

    def to_html(self, path: str | Path) -> None:
        """Writes one self-contained page: tables, gaps with their intervals beside the floor, gaps against cost and against the distance of answers, settings and provenance."""
        from ..report import write_benchmark

        write_benchmark(self.to_dict(), path)

    def to_markdown(self, path: str | Path, sort: str = AVERAGE_GAP) -> None:
        """Writes tables, settings, notes and provenance as Markdown, to be committed or pasted."""
        write_text(markdown(self, sort), path)


def results(plan: Plan, store: Store | str | Path, *, root: str | Path = "data") -> Results:
    """See `Plan.results`."""
    return collect(plan, points(plan, store, root))


def collect(plan: Plan, grid: Sequence[Point]) -> Results:
    """The results of points that are loaded already."""
    runs = [(point, Run(0, name, seed)) for point in grid for seed in range(point.seeds) for name in (ORIGINAL, *point.methods)]
    done = sum(_done(run.cell(point)) or _untunable(point, run.method) is not None for point, run in runs)
    return Results(plan.title, [_point(point, plan.paper) for point in grid], done, len(runs), plan.paper.get("source"))


def _point(point: Point, paper: Mapping[str, Any]) -> PointResults:
    found = {name: _results(point, name) for name in (ORIGINAL, *point.methods)}
    audits = [result for each in found.values() for result in each if FAILED not in result]
    rows = [_reference(audits, paper.get(RETRAINED, {}))]
    rows += [_row(point, name, each, paper.get(name, {})) for name, each in found.items()]
    gaps = {row.name: row.gaps for row in rows if row.name in point.methods and len(row.gaps) == point.seeds}
    ties = ties_with_best(gaps) if len(gaps) > 1 and point.seeds > 1 else []
    return PointResults(point.title, rows, ties, audits[0]["sizes"] if audits else {}, _flags(audits))


def _flags(audits: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Each flag once, with the message of the first audit that raised it, and how many did."""
    raised: dict[str, list[str]] = {}
    for audit in audits:
        for flag in (*audit.get("warned", ()), *audit["flags"]):
            raised.setdefault(flag["name"], []).append(flag["message"])
    return [
        {
            "name": name,
            "message": messages[0] + (f" (And in {len(messages) - 1} more of {len(audits)} audits.)" if len(messages) > 1 else ""),
        }
        for name, messages in raised.items()
    ]


def _results(point: Point, name: str) -> list[dict[str, Any]]:
    cells = [Run(0, name, seed).cell(point) for seed in range(point.seeds)]
    return [cell.result() for cell in cells if cell is not None and _done(cell)]


def _done(cell: Cell | None) -> bool:
    return cell is not None and cell.done


def _reference(audits: Sequence[Mapping[str, Any]], paper: Mapping[str, str]) -> Row:
    """Retraining: each retrained model is the yardstick in turn; its average gap is the floor."""
    yardsticks = {
        json.dumps(audit["yardstick"], sort_keys=True): audit for audit in audits
    }.values()  # each once, however many models it judged
    columns = {AVERAGE_GAP: _floor([twin for audit in yardsticks for twin in audit["twins"]])} if audits else {}
    return Row(
        RETRAINED,
        len(yardsticks),
        columns | _columns([audit["yardstick"] for audit in yardsticks]),
        paper=paper,
        problem=None if audits else "not there yet",
    )


def _floor(floors: Sequence[Mapping[str, Any]]) -> Estimate:
    """How far retrained models are from one another, the mean over pairs. Pairs share models, so that their spread is no standard error: the interval runs from the lowest end to the highest."""
    ends = [[floor[key] for floor in floors] for key in ("value", "low", "high")]
    return Estimate(
        statistics.fmean(ends[0]),
        min(ends[1]),
        max(ends[2]),
        len(floors),
        "mean over pairs of retrained models; from the lowest end of their intervals to the highest",
    )


def _row(point: Point, name: str, audits: Sequence[Mapping[str, Any]], paper: Mapping[str, str]) -> Row:
    method = None if name == ORIGINAL else chosen(point, name)
    problem = _problem(point, name, audits)
    broken = problem is not None and audits and any(FAILED in audit for audit in audits)
    audits = [] if broken else audits  # the mean of the runs that are left is not the method's
    models = [audit["model"] for audit in audits]
    gaps = [model["gaps"]["average"] for model in models]
    tuned = tuned_cell(point, name).result() if method is not None and method is not point.methods[name] else None
    return Row(
        name=name, seeds=len(audits), columns=({AVERAGE_GAP: _over(gaps)} if gaps else {}) | _columns(models), gaps=[gap["value"] for gap in gaps],
        epochs=statistics.mean(_epochs(point, audit["cost"]) for audit in audits) if method is not None and audits and audits[0].get("cost") else None,
        seconds=statistics.median(audit["seconds"] for audit in audits) if method is not None and audits else None,
        settings=None if method is None else str(method), tuned=tuned, paper=paper, problem=problem, planned=point.seeds,
    )  # fmt: skip


def _problem(point: Point, name: str, audits: Sequence[Mapping[str, Any]]) -> str | None:
    failed = [audit for audit in audits if FAILED in audit]
    if failed:
        return f"{_why(failed[0])} in {len(failed)} of {point.seeds} runs"
    untunable = name != ORIGINAL and _untunable(point, name)
    if untunable:
        return f"{untunable} with every setting that was tried" if untunable == "diverged" else untunable
    return None if audits else "not there yet"


def _why(result: Mapping[str, Any]) -> str:
    """ "diverged", or the error of a method that cannot do what it was asked for."""
    return result[FAILED] if result[FAILED] == "diverged" else f"failed ({result['reason']})"


def _untunable(point: Point, name: str) -> str | None:
    """Why no setting of a method worked; None if one did, or none was tried yet."""
    if not point.tunes(name):
        return None
    cell = tuned_cell(point, name)
    return _why(cell.result()) if cell.done and FAILED in cell.result() else None


def _columns(models: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Accuracies by group, how far answers are from retraining's, and AUC by attack."""
    found = {group.replace("_", " "): _over([model[group] for model in models]) for group in GROUPS if models and models[0].get(group)}
    found |= {title: _over([model[key] for model in models]) for key, title in ANSWERS.items() if models and all(key in m for m in models)}
    for k, row in enumerate(models[0]["attacks"] if models else ()):
        found[f"{row['attack']} AUC"] = _over([model["attacks"][k]["auc"] for model in models])
    return found


def _over(estimates: Sequence[Mapping[str, Any]]) -> Estimate:
    """The mean over seeds; of a single one its own interval."""
    wanting = next((e for e in estimates if e is None or e["value"] is None), estimates[0])
    if wanting is None or wanting["value"] is None:
        return unsupported("no number" if wanting is None else wanting["note"] or "no number", 0)
    if len(estimates) == 1:
        return Estimate(*(estimates[0][key] for key in ("value", "low", "high", "n", "note")))
    return mean_estimate([e["value"] for e in estimates], within=(0.0, 1.0))  # all columns are shares, areas, or sizes of their differences


def _epochs(point: Point, cost: Mapping[str, Any]) -> float:
    return Cost.from_dict(cost).passes(len(point.split.train))


def _shown(column: str, estimate: Estimate | None) -> str:
    plain = None if estimate is None else estimate.to_dict()
    return number(plain) if column.endswith(("AUC", "TV distance")) else percent(plain)
