"""Tables of the documentation, made of the registries: what is there cannot differ from what the pages say."""

from collections.abc import Callable
from typing import Any

from ..report.markdown import table
from .catalogue import entry_of, registries

COST = "Cost: passes over the training set (forward and backward) at the defaults, where a tenth of it is forgotten."


def methods() -> str:
    """All methods with what tuning chooses and what they do."""
    rows = [
        [
            f"`{name}`",
            f"`{m.__name__}`",
            e["forgets"],
            e["retain data"],
            e["cost"],
            f"`{m.tunes}`" if m.tunes else "",
            e["what it does"],
            m.paper,
        ]
        for name, m, e in _entries("methods")
    ]
    head = ["name", "class", "forgets", "retain data", "cost", "tuned", "what it does", "paper"]
    return f"{_table(head, rows)}\n\n{COST} Tuned: the setting that `tune` chooses.\n"


def methods_in_short() -> str:
    """All methods by what they need."""
    rows = [[f"`{m.__name__}`", e["forgets"], e["retain data"], e["cost"], m.paper] for _, m, e in _entries("methods")]
    return f"{_table(['method', 'forgets', 'retain data', 'cost', 'paper'], rows)}\n\n{COST}\n"


def audits() -> str:
    """Membership attacks and further measures."""
    attacks = [[f"`{a.__name__}`", e["what it does"], f"{e['shadow models']}", a.paper] for _, a, e in _entries("audits")]
    measures = [[f"`--measure {name}`", e["what it does"], "none", ""] for name, _, e in _entries("measures")]
    return _table(["audit", "what it says", "shadow models", "paper"], [*attacks, *measures]) + "\n"


TABLES: dict[str, Callable[[], str]] = {"methods": methods, "methods_in_short": methods_in_short, "audits": audits}


def _entries(kind: str) -> list[tuple[str, Any, dict[str, str]]]:
    return [(name, found, entry_of(kind, name, found)) for name, found in sorted(registries()[kind].items())]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return table(head, rows).replace("|  |", "| |")
