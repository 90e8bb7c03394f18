"""Many retrained models as one line: readers want their spread, not eight rows of the same thing.

The yardstick stays as it is. Where there are more than MOST_TWINS others, they become one entry, "retrained 2 … 8", in which every number is their mean, and its
"interval" runs from the smallest to the largest of them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Plain = Mapping[str, Any]
MOST_TWINS = 2  # that are listed one by one
GROUPS = ("forget", "forget_test", "retain", "test")


def is_reference(name: str, reference: str | None) -> bool:
    """Whether this model is the reference ("retrained"), another of its kind ("retrained 2"), or several of them ("retrained 2 … 8")."""
    return name == reference or is_other(name, reference)


def is_other(name: str, reference: str | None) -> bool:
    """Whether this is another model of the reference's kind, or several of them."""
    return reference is not None and re.fullmatch(re.escape(reference) + r" \d+( … \d+)?", name) is not None


def numbered(name: str, k: int) -> str:
    """What the k-th model of a name is called, counted from 0: "retrained", "retrained 2", …"""
    return name if k == 0 else f"{name} {k + 1}"


def folded_name(result: Plain) -> str | None:
    """What the folded entry is called, or None where there is nothing to fold."""
    others = _others(result)
    return f"{others[0]} … {others[-1].rsplit(' ', 1)[1]}" if len(others) > MOST_TWINS else None


def folded(result: Plain) -> dict[str, Any]:
    """The result with one entry for all retrained models but the yardstick, in the models, the attacks and the forgotten classes; unchanged if they are few.

    Args:
        result: an audit's plain values.
    """
    name, others = folded_name(result), set(_others(result))
    if name is None:
        return dict(result)

    def one(entries: Sequence[Plain], key: str, merged: Callable[[list[Plain]], dict[str, Any]]) -> list[Plain]:
        mine = [entry for entry in entries if entry[key] in others]
        return [
            {key: name} | merged(mine) if entry is mine[0] else entry
            for entry in entries
            if entry[key] not in others or entry is mine[0]
        ]  # fmt: skip

    attacks = list(dict.fromkeys((row["attack"], row["fpr"]) for row in result["attacks"]))
    return dict(result) | {
        "models": one(result["models"], "name", _model),
        "attacks": [
            row
            for kind in attacks
            for row in one([row for row in result["attacks"] if (row["attack"], row["fpr"]) == kind], "model", _attack)
        ],
        "classes": [answers | {"rows": one(answers["rows"], "model", _answer)} for answers in result.get("classes") or []],
    }


def in_figures(name: str, result: Plain) -> bool:
    """Whether a model has curves and histograms: of the retrained ones, the yardstick and one more."""
    return name not in _others(result)[1:]


def _others(result: Plain) -> list[str]:
    return [model["name"] for model in result["models"] if is_other(model["name"], result.get("reference"))]


def _model(models: list[Plain]) -> dict[str, Any]:
    gaps = [model["gaps"] for model in models if model.get("gaps")]
    seconds = [model["seconds"] for model in models if model.get("seconds")]
    return {group: spread([model.get(group) for model in models]) for group in GROUPS} | {
        "gaps": {key: spread([gap.get(key) for gap in gaps]) for key in gaps[0]} if gaps else None,
        "seconds": sum(seconds) / len(seconds) if seconds else None,
        "details": next((model["details"] for model in models if model.get("details")), None),
    }


def _attack(rows: list[Plain]) -> dict[str, Any]:
    return {"attack": rows[0]["attack"], "fpr": rows[0]["fpr"]} | {
        key: spread([row.get(key) for row in rows]) for key in ("auc", "tpr", "gap")
    }


def _answer(rows: list[Plain]) -> dict[str, Any]:
    near = [row["neighbour"] for row in rows if row.get("neighbour")]
    return {key: [sum(share) / len(rows) for share in zip(*(row[key] for row in rows), strict=True)] for key in ("answer", "predicted")} | {
        "distance": spread([row.get("distance") for row in rows]),
        "neighbour": {"profile_gap": sum(n["profile_gap"] for n in near) / len(near)} | {k: spread([n[k] for n in near]) for k in ("score", "gap")}
        if near else None,
    }  # fmt: skip


def spread(estimates: Sequence[Plain | None]) -> dict[str, Any] | None:
    """Mean, smallest and largest of the values; the reason of the first where none has one."""
    there = [estimate for estimate in estimates if estimate]
    values = [estimate["value"] for estimate in there if estimate["value"] is not None]
    if not values:
        return dict(there[0]) if there else None
    notes = {estimate.get("note") for estimate in there}
    note = notes.pop() if len(notes) == 1 else None  # what holds for all of them
    return {"value": sum(values) / len(values), "low": min(values), "high": max(values), "n": there[0].get("n"), "note": note}
