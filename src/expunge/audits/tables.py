"""The result of an audit as tables of text, from the plain values of `Audit.to_dict()`, so that a stored result prints like a fresh one."""

from typing import Any, NamedTuple

Plain = dict[str, Any]


class Table(NamedTuple):
    """A heading, column names, and rows of text."""

    title: str
    header: list[str]
    rows: list[list[str]]


def tables(result: Plain) -> list[Table]:
    """The two tables of an audit: accuracies with the average gap, and membership."""
    models, attacks = result["models"], result["attacks"]
    entering, fpr = attacks[-1]["attack"], attacks[0]["fpr"]
    counted = "three" if models[0]["retain"] else "two"  # there may be no retain data
    accuracy = [
        [m["name"], *(percent(m[g]) for g in ("forget", "retain", "test")), percent(m["gaps"] and m["gaps"]["average"])] for m in models
    ]
    membership = [[a["attack"], a["model"], number(a["auc"]), number(a["tpr"]), number(a["gap"], "+.3f")] for a in attacks]
    return [
        Table(
            f"Accuracy in %, and average gap to {result['reference'] or 'a retrained model'} ({counted} accuracies and {entering} AUC, in points)",
            ["model", "forget", "retain", "test", "average gap"], accuracy,
        ),
        Table(
            "Membership: forget samples against test samples (0.5 = cannot be told apart)",
            ["attack", "model", "AUC", f"TPR at {100 * fpr:g} % FPR", "AUC gap"], membership,
        ),
    ]  # fmt: skip


def notes(result: Plain) -> list[str]:
    """What belongs under the tables: sizes, the null floor, flags."""
    counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in result["sizes"].items())
    floor = (
        [f"Null floor: retrained models have an average gap of up to {percent(result['floor'])} points to one another."]
        if result["floor"]
        else []
    )
    return [f"Intervals: 95 %. Samples: {counts}.", *floor, *(f"Flag {flag['name']}: {flag['message']}" for flag in result["flags"])]


def as_text(result: Plain) -> str:
    """Tables and notes as plain text."""
    parts = ["\n".join([table.title, *_aligned([table.header, *table.rows])]) for table in tables(result)]
    return "\n\n".join([*parts, "\n".join(notes(result))])


def number(estimate: Plain | None, form: str = ".3f") -> str:
    """An estimate with its interval, "n/a (reason)", or "-" where there is none."""
    if estimate is None:
        return "-"
    if estimate["value"] is None:
        return f"n/a ({estimate['note']})"
    value, low, high = (format(estimate[k], form) for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def percent(estimate: Plain | None) -> str:
    """A fraction with its interval, in percent."""
    if estimate is None or estimate["value"] is None:
        return number(estimate)
    return number({k: 100 * estimate[k] for k in ("value", "low", "high")}, ".1f")


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
