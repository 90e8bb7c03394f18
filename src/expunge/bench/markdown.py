"""The results of a plan as Markdown, to be committed beside the plan or pasted into an issue."""

from typing import TYPE_CHECKING

from ..report.markdown import code, table

if TYPE_CHECKING:
    from .results import PointResults, Results, Row

ESCAPED = str.maketrans({"|": "\\|", "\n": " ", "<": "&lt;", ">": "&gt;"})


def markdown(results: "Results", sort: str = "average gap") -> str:
    """A heading, one table for each combination of the grid with its settings, notes and flags, and what it was measured with."""
    parts = [f"# {_cell(results.title)}"]
    for point in results.points:
        parts += [f"## {_cell(point.title)}", _table(point, sort), _settings(point)]
    notes = "\n".join(f"- {_cell(note)}" for note in results.notes())
    parts += [notes, ", ".join(f"{name} {value}" for name, value in results.provenance.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(point: "PointResults", sort: str) -> str:
    _, header, rows = point.table(sort)
    return table(header, [[_cell(text) for text in row] for row in rows])


def _settings(point: "PointResults") -> str:
    return "\n".join(f"- {_cell(row.name)}: {code(row.settings, longest=2000)}{_tuned(row)}" for row in point.ordered() if row.settings)


def _tuned(row: "Row") -> str:
    """What tuning chose, and whether a better value may lie beyond those that were tried."""
    if row.tuned is None:
        return ""
    tried = ", ".join(f"{trial['value']:.3g}" for trial in row.tuned["trials"])
    return f"; {row.tuned['field']} chosen among {tried}" + (", at their end" if row.tuned["at_the_end"] else "")


def _cell(text: str) -> str:
    return text.translate(ESCAPED)
