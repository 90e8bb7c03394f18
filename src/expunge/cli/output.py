"""What the verbs print: tables or JSON to stdout, messages to stderr."""

import json
import sys
from collections.abc import Sequence
from typing import Any

UNLIMITED = 10_000  # columns: in a file or a pipe no cell is wrapped


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "") -> None:
    """An aligned table. On a terminal long cells wrap; elsewhere each row is one line."""
    from rich.console import Console
    from rich.table import Table

    if title:
        print(title)
    table = Table(*header, box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(_text, row))
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else UNLIMITED)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def print_json(value: Any) -> None:
    """The value as JSON on stdout; the only thing there."""
    print(json.dumps(value, indent=1, allow_nan=False))


def complain(kind: str, message: object) -> None:
    """One line on stderr: "error: …". A name from a file may hold what a terminal acts on: that is not printed."""
    text = " ".join(str(message).split())
    print(f"{kind}: {''.join(c if c.isprintable() else '�' for c in text)}", file=sys.stderr, flush=True)


def percent(share: float | None) -> str:
    """A fraction as a percentage, for people.

    Example:
        >>> percent(0.1234)
        '12.3 %'
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def _text(cell: Any) -> str:
    return "-" if cell is None else str(cell)
