"""The page: plain numbers in, HTML text out. What is shown and in which order is in template.html; how it looks is in style.css."""

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import DataError, StoreError
from ..store.files import write_file
from . import cells
from .class_section import sections
from .factors_section import section as factors_section
from .figures import Look, histogram_figure, looks, roc_figure
from .risk_section import section as risk_section
from .spectrum_section import section as spectrum_section
from .twins import folded, folded_name, in_figures, is_other, is_reference
from .verdict_section import cards

REQUIRED = ("models", "attacks")
OPTIONAL: dict[str, Any] = dict.fromkeys((
    "title", "created", "protocol", "provenance", "reference", "sizes", "verdicts", "floor", "histograms", "classes", "risks", "factors", "spectra", "measures", "flags",
))  # fmt: skip
OPTIONAL_OF_MODEL: dict[str, Any] = dict.fromkeys(("forget_test", "retain", "gaps", "seconds", "details"))
OPTIONAL_OF_GAPS: dict[str, Any] = dict.fromkeys(("forget_test",))
OPTIONAL_OF_ATTACK: dict[str, Any] = dict.fromkeys(("gap", "roc"))


@dataclass(frozen=True)
class _Panel:
    """One figure with its heading and the models in it."""

    title: str
    svg: Any
    names: list[str]


def render(result: Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> str:
    """The report as one self-contained HTML page: no network, no JavaScript; tables, figures, flags, costs, and the numbers as JSON.

    Args:
        result: plain JSON values, as `Audit.to_dict()` gives them; parts that an audit does not have may be missing or None,
            but not "models" and "attacks".
        path: where to write the page as well; None = nowhere. See `write`.

    Raises:
        DataError: a part is missing, or a value is not plain JSON (NaN, a tensor).

    Cost: about a tenth of a second for each figure: one for each attack and each model.

    Example:
        >>> estimate = {"value": 0.9, "low": 0.8, "high": 1.0, "n": 50, "note": None}
        >>> page = render({"title": "<b>Audit</b>", "models": [{"name": "original", "forget": estimate, "test": estimate}], "attacks": []})
        >>> "&lt;b&gt;Audit&lt;/b&gt;" in page, "90.0" in page
        (True, True)
    """
    from jinja2 import UndefinedError

    missing = [name for name in REQUIRED if not isinstance(result.get(name), list)]
    if missing:
        raise DataError(f"a report needs the lists {' and '.join(REQUIRED)}; got none for {' and '.join(missing)}. Pass audit.to_dict().")
    numbers = safe_json(result)
    try:
        text = template().render(_view(result) | {"numbers": numbers})
    except (KeyError, UndefinedError) as error:
        raise DataError(f"every part of a report must be complete; got one that is not ({error}). Pass audit.to_dict().") from error
    if path is not None:
        write_text(text, path)
    return text


def write(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the report to a file, which is there whole or not at all.

    Args:
        result: see `render`.
        path: of the HTML file; its folder must exist. An older file is replaced.

    Raises:
        DataError: see `render`.
        StoreError: the folder does not exist or cannot be written.
    """
    render(result, path)


def _view(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows: the result itself, and what has to be worked out from it."""
    every = _complete(result)
    result = _complete(folded(every))
    models, attacks, reference, floor = (result[key] for key in ("models", "attacks", "reference", "floor"))
    drawn = [row for row in every["attacks"] if in_figures(row["model"], every)]
    histograms = [_of_like(h) for h in result["histograms"] or [] if in_figures(h["model"], every)]
    histograms = [h for h in histograms if h["forget"] and h["test"]]
    answers = [row for c in result["classes"] or [] for row in c["rows"]]
    named = [m["name"] for m in models] + [row["model"] for row in (*attacks, *drawn, *histograms, *answers)]
    spectra = {name: found for name, found in (result["spectra"] or {}).items() if in_figures(name, every)}
    verdicts, risks = cards(result["verdicts"]), risk_section(result["risks"], every)
    exposed = [risk.model for example in (risks.examples if risks else ()) for risk in example.risks]
    names = list(
        dict.fromkeys(
            [
                *named,
                *(result["factors"] or {}),
                *spectra,
                *(card.model for card in verdicts),
                *exposed,
                *(m["model"] for m in result["measures"] or []),
            ]
        )
    )
    look = looks(names, reference)
    gaps = [m["gaps"] for m in models if m["gaps"]]
    return {
        "result": result,
        "models": models,
        "reference": reference,
        "looks": look,
        "drawn": list(dict.fromkeys(row["model"] for row in drawn)),
        "is_other": functools.partial(is_other, reference=reference),
        "is_reference": functools.partial(is_reference, reference=reference),
        "cells": cells,
        "floor": floor if floor and floor["value"] is not None else None,
        "standing": functools.partial(_standing, floor=floor),
        "blind": any(m["name"] == "original" and _standing(m["gaps"], floor) == "within" for m in models),
        "gap_scale": cells.scale([g["average"] for g in gaps] + [floor], 0.0),
        "area_scale": cells.scale([row["auc"] for row in attacks], 0.5),
        "groups": _groups(attacks),
        "rocs": _rocs(drawn, look, result["sizes"] or {}),
        "folded": folded_name(every),
        "twins": _one_by_one(every) if folded_name(every) else [],
        "histograms": _histograms(histograms, look),
        "cards": verdicts,
        "risks": risks,
        "sections": sections(result["classes"], reference),
        "factors": factors_section(result["factors"]),
        "spectra": spectrum_section(spectra, look),
        "unseen_histogram": any(h.get("forget_test") for h in histograms),
        "has_retain_histogram": any(h.get("retain") for h in histograms),
        "speedup": functools.partial(_speedup, reference=next((m["seconds"] for m in models if m["name"] == reference), None)),
    }


def _complete(result: Mapping[str, Any]) -> dict[str, Any]:
    """With None for what the audit does not have."""
    models = [OPTIONAL_OF_MODEL | m for m in result["models"]]
    return OPTIONAL | dict(result) | {
        "models": [m | {"gaps": m["gaps"] and OPTIONAL_OF_GAPS | m["gaps"]} for m in models],
        "attacks": [OPTIONAL_OF_ATTACK | row for row in result["attacks"]],
    }  # fmt: skip


def _one_by_one(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All retrained models, with what each table says of them."""
    return [
        {
            "model": model,
            "attacks": [row for row in result["attacks"] if row["model"] == model["name"]],
            "answers": [row for answers in result["classes"] or [] for row in answers["rows"] if row["model"] == model["name"]],
        }
        for model in result["models"]
        if is_reference(model["name"], result["reference"])
    ]


def _standing(gaps: Mapping[str, Any] | None, floor: Mapping[str, Any] | None) -> str:
    """Where an average gap lies against the null floor: "within" it, "above" it, or "" where that cannot be said."""
    average = gaps and gaps["average"]
    if not average or average["value"] is None or not floor or floor["value"] is None:
        return ""
    return "within" if average["low"] <= floor["high"] else "above"


def _speedup(seconds: float | None, reference: float | None) -> str:
    return f"{reference / seconds:.1f}×" if seconds and reference else "–"


def _groups(attacks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of each attack, in the order in which they came."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in attacks:
        groups.setdefault((row["attack"], row["fpr"]), []).append(row)
    return [{"attack": attack, "fpr": fpr, "rows": rows, "tpr_note": _shared_note(rows)} for (attack, fpr), rows in groups.items()]


def _shared_note(rows: list[dict[str, Any]]) -> str | None:
    """What is to be said about the true-positive rate of every row, so that it is said once."""
    notes = {row["tpr"].get("note") for row in rows}
    return notes.pop() if len(rows) > 1 and len(notes) == 1 else None


def _rocs(attacks: list[dict[str, Any]], look: dict[str, Look], sizes: Mapping[str, int]) -> list[_Panel]:
    counts = [n for n in (sizes.get("forget"), sizes.get("forget_test") or sizes.get("test")) if n] or [1000]
    start = min(0.1, 1 / max(counts))
    panels = []
    for k, group in enumerate(_groups(attacks)):
        rows = [row for row in group["rows"] if row["roc"] and len(row["roc"]["fpr"])]
        if rows:
            svg = roc_figure([(look[row["model"]], row["roc"]) for row in rows], start, group["fpr"], f"roc{k}")
            panels.append(_Panel(group["attack"], _html(svg), [row["model"] for row in rows]))
    return panels


def _of_like(histogram: dict[str, Any]) -> dict[str, Any]:
    """With whole classes forgotten, non-members are the unseen images of these classes: those of others look different anyway."""
    return histogram | {"test": histogram.get("forget_test") or histogram["test"]}


def _histograms(histograms: list[dict[str, Any]], look: dict[str, Look]) -> list[_Panel]:
    if not histograms:
        return []
    limits = min(h["edges"][0] for h in histograms), max(h["edges"][-1] for h in histograms)
    top = max(max(h["forget"] + h["test"]) for h in histograms) or 1.0
    return [
        _Panel(h["model"], _html(histogram_figure(look[h["model"]], h, limits, top, f"hist{k}")), [h["model"]])
        for k, h in enumerate(histograms)
    ]


def safe_json(result: Mapping[str, Any]) -> Any:
    """JSON that no HTML parser can leave early: `<`, `>` and `&` are written as escapes, which any JSON reader undoes."""
    try:
        text = json.dumps(result, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a report is made of plain JSON values; got something else ({error}). Use numbers, text, lists, and None for NaN."
        ) from error
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _html(text)


def _html(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # our own SVG and escaped JSON; nothing else may come through here


@functools.cache
def template() -> Any:
    """The template of the audit's page; its environment has the others."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    read: Callable[[str], str] = lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")  # noqa: E731
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(read))
    environment.globals["style"] = _html(read("style.css"))
    return environment.get_template("template.html")


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Writes a page to a file of a folder that exists, whole or not at all; StoreError if that cannot be done."""
    path = Path(path)
    if not path.parent.is_dir():
        raise StoreError(f"a report needs an existing folder; got {path}, and {path.parent} is none. Make it first, or pass another path.")
    write_file(path, text.encode("utf-8", "replace"))  # a lone surrogate in a name must not cost the report
