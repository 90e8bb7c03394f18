"""What the page says of one forgotten class: which columns are shown, in which order, and what each cell holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import cells
from .cells import Estimate, Scale
from .twins import is_reference

MAX_COLUMNS = 12  # more classes than this: the SHOWN most frequent ones, and the others in one column
SHOWN = 10
OTHERS = "others"
GAMMA = 0.7  # of the colour: below 1, so that a share of a few percent can be told from nothing
SCORES = {  # of an attacker in `leakage`: the margin of which class, on which images
    "own train": ("own", "seen"),
    "own unseen": ("own", "unseen"),
    "neighbour train": ("neighbour", "seen"),
    "neighbour unseen": ("neighbour", "unseen"),
}
CEILING = "original"  # the row of `leakage` that is no method


@dataclass(frozen=True)
class Column:
    """One class in the table of answers, or all the others together."""

    name: str
    own: bool = False
    neighbour: bool = False
    forgotten: bool = False  # too, beside the class of the section
    rest: int = 0  # of how many classes this is the sum; 0 = it is one class


@dataclass(frozen=True)
class Share:
    """A share as text in percent, and as the strength of a colour in [0, 1]."""

    text: str
    strength: str

    @classmethod
    def of(cls, share: float) -> "Share":
        bounded = min(1.0, max(0.0, float(share)))
        return cls(f"{100 * bounded:.0f}", f"{bounded**GAMMA:.3f}")


@dataclass(frozen=True)
class Line:
    """One model: its shares, in the order of the columns."""

    model: str
    answer: list[Share]
    predicted: list[Share]
    last_yardstick: bool


@dataclass(frozen=True)
class Leakage:
    """The attack that compares many unlearned models with as many retrained ones, in the plain values of `ClassLeakage.to_dict()`."""

    n: int
    neighbour: str
    scores: list[tuple[str, str]]
    groups: list[
        dict[str, Any]
    ]  # one for each measure that the data support: title, rows of (method, cells), a note that all cells share, the floor's cells
    unsupported: str | None  # why there is no rate of true positives
    has_ceiling: bool


@dataclass(frozen=True)
class Standing:
    """One model on this class, in one line."""

    standing: str  # of its distance to retraining: "within" the floor, "above" it, or "" where there is none
    distance: str
    told: str  # the largest AUC of U-LiRA, or ""


@dataclass(frozen=True)
class Section:
    """All of it, ready for the template."""

    id: str
    name: str
    n: int
    neighbour: str | None
    columns: list[Column]
    lines: list[Line]
    measures: list[dict[str, Any]]  # the rows that are held against retrained models, yardsticks first
    distance_floor: Estimate | None
    neighbour_floor: Estimate | None
    distance_scale: Scale
    leakage: Leakage | None
    standings: dict[str, Standing]


def sections(classes: Sequence[Mapping[str, Any]] | None, reference: str | None) -> list[Section]:
    """The sections of all forgotten classes.

    Args:
        classes: "classes" of an audit's plain values; None or empty where no whole class is forgotten.
        reference: the name of the retrained model, or None.
    """
    classes = classes or []
    forgotten = {answers["name"] for answers in classes}
    return [_section(k, answers, forgotten, reference) for k, answers in enumerate(classes)]


def _section(k: int, answers: Mapping[str, Any], forgotten: set[str], reference: str | None) -> Section:
    rows = sorted(answers["rows"], key=lambda row: not is_reference(row["model"], reference))  # stable: otherwise the audit's order
    twins = sum(is_reference(row["model"], reference) for row in rows)
    name, neighbour = answers["name"], answers.get("neighbour")
    chosen, rest = _choose(answers, rows, twins)
    columns = [
        Column(label, own=label == name, neighbour=label == neighbour, forgotten=label in forgotten and label != name)
        for label in (answers["classes"][c] for c in chosen)
    ] + ([Column(OTHERS, rest=len(rest))] if rest else [])
    distance_floor, neighbour_floor = (_valued(answers.get(key)) for key in ("distance_floor", "neighbour_floor"))
    return Section(
        f"class{k}",
        name,
        answers["n"],
        neighbour,
        columns,
        [
            Line(row["model"], _shares(row["answer"], chosen, rest), _shares(row["predicted"], chosen, rest), i + 1 == twins < len(rows))
            for i, row in enumerate(rows)
        ],
        rows if any(row.get("neighbour") or row.get("distance") for row in rows) else [],
        distance_floor,
        neighbour_floor,
        cells.scale([row.get("distance") for row in rows] + [distance_floor], 0.0),
        _leakage(answers["leakage"]) if answers.get("leakage") else None,
        _standings(rows[twins:], distance_floor, answers.get("leakage")),
    )


def _standings(rows: Sequence[Mapping[str, Any]], floor: Estimate | None, leakage: Mapping[str, Any] | None) -> dict[str, Standing]:
    """What the summary says of each model; nothing of those that were not measured."""
    told = {row["method"]: max(row[key]["auc"]["value"] for key in SCORES) for row in (leakage or {"rows": []})["rows"]}
    standings = {}
    for row in rows:
        name, distance = row["model"], _valued(row.get("distance"))
        standing = ("within" if distance["low"] <= floor["high"] else "above") if floor and distance else ""
        if standing or name in told:
            standings[name] = Standing(standing, cells.area(distance).value, f"{told[name]:.3f}" if name in told else "")
    return standings


def _choose(answers: Mapping[str, Any], rows: list[dict[str, Any]], twins: int) -> tuple[list[int], list[int]]:
    """The classes that get a column, the forgotten one first and then from the most to the least frequent under retraining; and the rest."""
    names, lines = answers["classes"], [row[key] for row in rows for key in ("answer", "predicted")]
    largest = [max((line[c] for line in lines), default=0.0) for c in range(len(names))]
    yardstick = [sum(row["answer"][c] for row in rows[:twins]) for c in range(len(names))]
    own = names.index(answers["name"]) if answers["name"] in names else -1
    kept = list(range(len(names)))
    if len(names) > MAX_COLUMNS:
        always = (own, names.index(answers["neighbour"]) if answers.get("neighbour") in names else -1)
        kept = sorted(kept, key=lambda c: (c not in always, -largest[c]))[:SHOWN]
    kept.sort(key=lambda c: (c != own, -yardstick[c], -largest[c], c))
    return kept, [c for c in range(len(names)) if c not in kept]


def _shares(values: Sequence[float], chosen: Sequence[int], rest: Sequence[int]) -> list[Share]:
    return [Share.of(values[c]) for c in chosen] + ([Share.of(sum(values[c] for c in rest))] if rest else [])


def _leakage(leakage: Mapping[str, Any]) -> Leakage:
    rows = leakage["rows"]
    every = [row[key] for row in rows for key in SCORES]
    titles = {"auc": ("AUC", cells.area), "balanced_accuracy": ("Balanced accuracy, %", cells.percent)}
    unsupported = None
    if any(result["tpr"]["value"] is not None for result in every):
        titles["tpr"] = (f"True positives at {cells.rate(every[0]['fpr'])} FPR, %", cells.percent)
    elif every:
        unsupported = every[0]["tpr"].get("note") or "not supported by so few images"
    groups = []
    for measure, (title, text) in titles.items():
        table = [(row["method"], [text(row[key][measure]) for key in SCORES]) for row in rows]
        notes = {cell.note for _, line in table for cell in line}
        floor = [_around_half(leakage["floors"][key]) for key in SCORES] if measure == "auc" and leakage.get("floors") else None
        groups.append({"title": title, "rows": table, "note": notes.pop() if len(notes) == 1 else None, "floor": floor})
    methods = {row["method"] for row in rows}
    return Leakage(leakage["n"], leakage["neighbour"], list(SCORES.values()), groups, unsupported, CEILING in methods)


def _around_half(floor: Estimate) -> cells.Cell:
    """A floor, which is |AUC − 0.5|, so that it can be compared with the AUCs above it."""
    return cells.Cell(f"0.5 ± {floor['value']:.3f}", f"± {floor['low']:.3f} to {floor['high']:.3f}", floor.get("note") or "")


def _valued(estimate: Estimate | None) -> Estimate | None:
    return estimate if estimate and estimate["value"] is not None else None
