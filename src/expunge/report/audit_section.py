"""What an audit found about one model, as Markdown for its card: the verdict in words, accuracies and attacks beside retrained models, floors and flags."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..models.lineage import Change
from . import cells
from .cells import Cell
from .evidence import Evidence
from .markdown import prose, table
from .twins import folded_name, is_reference

GROUPS = {"forget": "forget", "forget_test": "unseen, of forgotten classes", "retain": "retain", "test": "test"}
COUNTS = {"forget": "forget", "forget_test": "unseen images of forgotten classes", "retain": "retain", "test": "test"}
MOST_FLAGS = 50
Plain = Mapping[str, Any]


def audit_section(found: Evidence, requests: Sequence[Change], *, several: bool) -> str:
    """The part of the card about one audit; with a heading where there are several, or several requests that it could be of."""
    result = found.result
    shown = [m for m in result["models"] if m["name"] in (found.model, "original") or is_reference(m["name"], result["reference"])]
    shown.sort(key=lambda m: m["name"] != found.model)  # the model that the card is about comes first
    parts = [f"#### Audit of {_which(found)}"] if several else []
    parts += [
        *_verdict(found),
        _accuracies(shown, found),
        _attacks([m["name"] for m in shown], found),
        *_classes(found, [m["name"] for m in shown]),
    ]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in [*_notes(found, requests), *_flags(result["flags"])])])


def _which(found: Evidence) -> str:
    return f"request {found.requests[0] + 1}" if len(found.requests) == 1 else "all requests together"


def _verdict(found: Evidence) -> list[str]:
    verdicts = [verdict for verdict in found.result["verdicts"] if verdict["model"] == found.model]
    if verdicts:
        return [f"> **{verdicts[0]['word'].capitalize()}.** {prose(verdicts[0]['text'], 1000)}"]
    if is_reference(found.model, found.result["reference"]):
        return ["> **No verdict**: in this audit the model is one of the retrained ones that others are held against."]
    return ["> **No verdict**: the audit had no retrained model to hold this one against."]


def _name(name: str, found: Evidence) -> str:
    return f"**{prose(name, 60)}** (this model)" if name == found.model else prose(name, 60)


def _accuracies(models: Sequence[Plain], found: Evidence) -> str:
    groups = [group for group in GROUPS if any(m[group] for m in models)]
    rows = [
        [_name(m["name"], found), *(_text(cells.percent(m[group])) for group in groups), _text(cells.percent(m["gaps"]["average"])) if m["gaps"] else "–"]
        for m in models
    ]  # fmt: skip
    return table(["right answers, %", *(GROUPS[group] for group in groups), "average gap to retrained, points"], rows)


def _attacks(names: Sequence[str], found: Evidence) -> str:
    rows = [row for name in names for row in found.result["attacks"] if row["model"] == name]
    kinds = list(dict.fromkeys(row["attack"] for row in rows))
    fprs = {row["fpr"] for row in rows}
    rate = f" at {cells.rate(fprs.pop())} FPR" if len(fprs) == 1 and None not in fprs else " at low FPR"
    ordered = [
        [prose(row["attack"], 120), _name(row["model"], found), _text(cells.area(row["auc"])), _text(cells.percent(row["tpr"])), _text(cells.area_gap(row["gap"])) if row["gap"] else "–"]
        for kind in kinds for row in rows if row["attack"] == kind
    ]  # fmt: skip
    return table(["membership attack", "model", "AUC (0.5 = cannot be told)", f"TPR{rate}, %", "AUC gap to retrained"], ordered)


def _classes(found: Evidence, names: Sequence[str]) -> list[str]:
    """How far the answers on unseen images of each forgotten class are from retrained models'."""
    rows = [
        [prose(answers["name"], 60), _name(row["model"], found), _text(cells.area(row["distance"])), _text(cells.area(answers["floor"])) if answers["floor"] else "–"]
        for answers in found.result["classes"] for row in answers["rows"] if row["model"] in names and row["distance"]
    ]  # fmt: skip
    header = ["forgotten class", "model", "distance of its answers to retrained models' (total variation)", "null floor"]
    return [table(header, rows)] if rows else []


def _notes(found: Evidence, requests: Sequence[Change]) -> list[str]:
    result = found.result
    sizes, made = result["sizes"], result["provenance"]
    counts = ", ".join(f"{sizes[group]:,} {text}" for group, text in COUNTS.items() if group in sizes)
    models = f"{_models(found.n_retrained, 'retrained')} and {_models(sizes.get('shadow_models', 0), 'shadow')}"
    protocol = f"Protocol {prose(result['protocol'], 60)}" if result["protocol"] else "No frozen protocol"
    floor = result["floor"]
    notes = [f"Intervals: 95 %. Images: {counts}. {models}. {protocol}."]
    notes += [f"Null floor: models that are both retrained have an average gap of up to {_text(cells.percent(floor))} points to one another."] if floor else ["Null floor: none, for there were fewer than two retrained models."]  # fmt: skip
    together = folded_name(result)
    notes += [f"{prose(together, 60)}: the mean of these models, and from the smallest to the largest."] if together else []
    notes += [f"{found.n_others} more model{'s' * (found.n_others > 1)} in the same audit: not shown here."] if found.n_others else []
    original = next((m["hash"] for m in result["models"] if m["name"] == "original"), None)
    if original and original not in {change.original for change in requests}:
        notes.append("**The original in this audit is none of the models that unlearning began with**, by its hash.")
    versions = ", ".join(f"{key} {prose(made[key], 80)}" for key in ("expunge", "torch", "hardware", "date") if key in made)
    return [*notes, *([f"Measured with {versions}."] if versions else [])]


def _models(n: int, kind: str) -> str:
    return f"{n or 'no'} {kind} model{'s' * (n != 1)}"


def _flags(flags: Sequence[Plain]) -> list[str]:
    shown = [f"Flag **{prose(flag['name'], 60)}**: {prose(flag['message'])}" for flag in flags[:MOST_FLAGS]]
    more = [f"{len(flags) - MOST_FLAGS} more flags."] if len(flags) > MOST_FLAGS else []
    return [*shown, *more] if flags else ["Health flags: none was raised."]


def _text(cell: Cell) -> str:
    """A number with its interval, or the reason why there is none."""
    interval = f" ({cell.interval})" if cell.interval else ""
    note = f" ({prose(cell.note, 120)})" if cell.note and cell.value == "n/a" else ""
    return f"{cell.value}{interval}{note}"
