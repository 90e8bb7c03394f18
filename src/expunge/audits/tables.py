"""The result of an audit as tables of text, from the plain values of `Audit.to_dict()`, so that a stored result prints like a fresh one."""

from typing import Any, NamedTuple

from ..metrics.gap import GROUPS
from ..report.cells import interval
from ..report.factors_section import GROUPS as FACTORS
from ..report.factors_section import QUANTITY, SHARE, SIGNED, Factor, basis, value_of
from ..report.spectrum_section import values_with_errors
from ..report.twins import folded, folded_name, is_other, spread

Plain = dict[str, Any]
COUNTS = {2: "two", 3: "three", 4: "four"}


class Table(NamedTuple):
    """A heading, column names, and rows of text."""

    title: str
    header: list[str]
    rows: list[list[str]]


def tables(result: Plain) -> list[Table]:
    """The tables of an audit: accuracies with the average gap, membership, what models answer on each forgotten class, the factors of AMUN's theorem, and
    spectral norms; many retrained models in one row."""
    every, result = result, folded(result)
    models, attacks = result["models"], result["attacks"]
    entering, fpr = attacks[-1]["attack"], attacks[0]["fpr"]
    groups = [group for group in GROUPS if models[0].get(group)]  # there may be no retain data, and no forgotten class
    accuracy = [[m["name"], *(percent(m[g]) for g in groups), percent(m["gaps"] and m["gaps"]["average"])] for m in models]
    membership = [[a["attack"], a["model"], number(a["auc"]), number(a["tpr"]), number(a["gap"], "+.3f")] for a in attacks]
    return [
        Table(
            f"Accuracy in %, and average gap to {result['reference'] or 'a retrained model'} ({COUNTS[len(groups)]} accuracies and {entering} AUC, in points)",
            ["model", *(g.replace("_", " ") for g in groups), "average gap"], accuracy,
        ),
        Table(
            f"Membership: forget samples against {'test samples of their classes' if 'forget_test' in groups else 'test samples'} (0.5 = cannot be told apart)",
            ["attack", "model", "AUC", f"TPR at {100 * fpr:g} % FPR", "AUC gap"], membership,
        ),
        *(table for answers in result.get("classes") or [] for table in _class_tables(answers)),
        *([factor_table(result["factors"])] if result.get("factors") else []),
        *([_spectrum_table(every)] if every.get("spectra") else []),
        *([_measure_table(result["measures"])] if result.get("measures") else []),
    ]  # fmt: skip


def _class_tables(answers: Plain) -> list[Table]:
    """What models answer on one forgotten class, and U-LiRA on it if it was measured."""
    rows = []
    for row in answers["rows"]:
        near = row["neighbour"]
        rows.append(
            [row["model"], top_answers(row["answer"], answers["classes"]), percent(near and near["score"]), percent(near and near["gap"], "+.1f"), number(row["distance"])]
        )  # fmt: skip
    neighbour = f", which retrained models take for {answers['neighbour']}" if answers["neighbour"] else ""
    answered = Table(
        f"Answers on {answers['n']} unseen images of {answers['name']}{neighbour}",
        ["model", "mean answer in %", f"{' '.join(filter(None, ('MIA-NN', answers['neighbour'])))}, %", "gap, points", "TV to retrained"],
        rows,
    )
    return [answered, _leakage_table(answers["leakage"])] if answers.get("leakage") else [answered]


def _leakage_table(leakage: Plain) -> Table:
    scores = [f"{score} {images}" for score in ("own", "neighbour") for images in ("train", "unseen")]
    rows = [
        [row["method"], *(number(row[score]["auc"]) for score in scores), number(row["own train"]["balanced_accuracy"])]
        for row in leakage["rows"]
    ]
    if leakage["floors"]:
        rows.append(["floor: |AUC − 0.5| of retrained", *(number(leakage["floors"][score]) for score in scores), "-"])
    return Table(
        f"U-LiRA on {leakage['name']}, {leakage['n']} unlearned against {leakage['n']} retrained models (AUC, 0.5 = cannot be told apart; neighbour: {leakage['neighbour']})",
        ["method", *scores, "balanced accuracy"],
        rows,
    )


def factor_table(factors: Plain, meanings: bool = False) -> Table:
    """The factors of AMUN's theorem, a column for each model; with a sentence on each factor or without.

    Args:
        factors: `Factors.to_dict()` of each model, by name.
        meanings: whether the last column says what a factor means.
    """
    rows = [
        [
            factor.name,
            factor.better or "-",
            *(_factor(factor, found) for found in factors.values()),
            *([factor.meaning] if meanings else []),
        ]
        for group in FACTORS.values()
        for factor in group
    ]
    header = ["factor", "better", *factors, *(["meaning"] if meanings else [])]
    return Table("Factors of AMUN's theorem (a diagnostic; shares in %, losses in nats)", header, rows)


def _factor(factor: Factor, found: Plain) -> str:
    estimate = value_of(factor, found)
    text = percent(estimate) if factor.kind == SHARE else number(estimate, {QUANTITY: ".3g", SIGNED: "+.3f"}.get(factor.kind, ".3f"))
    return f"{text} ({estimate['note']})" if factor.key == "norm" and estimate["value"] is not None else text


def _spectrum_table(result: Plain) -> Table:
    """The largest σ₁ of each model with its layer, and the bound on the network; the page has all layers."""
    together = folded_name(result)
    rows: dict[str, list[Plain]] = {}
    for name, found in result["spectra"].items():
        rows.setdefault(together if together and is_other(name, result["reference"]) else name, []).append(found)
    return Table(
        "Spectral norms: the largest σ₁ of a layer, and the Lipschitz bound of the network (an upper bound, usually far above the truth)",
        ["model", "largest σ₁", "layer", "Lipschitz bound"],
        [[name, *_norms(spectra)] for name, spectra in rows.items()],
    )


def _measure_table(measures: list[Plain]) -> Table:
    rows = [[m["quantity"], m["model"], number(m["value"]), m["like"], number(m["floor"])] for m in measures]
    return Table("Further measures", ["what", "model", "value", "for retrained", "each retrained (smallest to largest)"], rows)


def _norms(spectra: list[Plain]) -> list[str]:
    """The largest σ₁, its layer and the bound of one model; or the means of several, and all their layers."""
    largest = [max(found["layers"], key=lambda layer: layer["values"][0]) for found in spectra if found["layers"]]
    layers = ", ".join(dict.fromkeys(layer["name"] for layer in largest)) or "-"
    norms = [_alone(layer["values"][0]) for layer in largest] or [_alone(None, "no affine layer was seen")]
    bounds = [_alone(found["bound"], found["reason"]) for found in spectra]
    if len(spectra) > 1:
        return [number(spread(norms), ".4g"), layers, number(spread(bounds), ".3g")]
    return [values_with_errors(largest[0])[0] if largest else number(norms[0]), layers, number(bounds[0], ".3g")]


def _alone(value: float | None, note: str = "") -> Plain:
    """A number without an interval, as a plain estimate."""
    return {"value": value, "low": None, "high": None, "note": note or None}


def top_answers(answer: list[float], classes: list[str], n: int = 3) -> str:
    """The n classes with the highest mean probability, in percent.

    Example:
        >>> top_answers([0.2, 0.1, 0.7], ["ship", "cat", "truck"], n=2)
        'truck 70, ship 20'
    """
    order = sorted(range(len(answer)), key=lambda k: -answer[k])[:n]
    return ", ".join(f"{classes[k]} {100 * answer[k]:.0f}" for k in order)


def notes(result: Plain) -> list[str]:
    """What belongs under the tables: verdicts, sizes, null floors, flags."""
    counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in result["sizes"].items())
    floor = (
        [f"Null floor: retrained models have an average gap of up to {percent(result['floor'])} points to one another."]
        if result["floor"]
        else []
    )
    for answers in result.get("classes") or []:
        near, far = (answers[f"{measure}_floor"] for measure in ("neighbour", "distance"))
        parts = [f"MIA-NN gap {percent(near)} points"] if near and near["value"] is not None else []
        parts += [f"TV {number(far)}"] if far and far["value"] is not None else []
        if parts:
            floor.append(
                f"Null floor on {answers['name']}, a retrained model against the others (mean, smallest to largest): {', '.join(parts)}."
            )
    name = folded_name(result)
    spread = [f"{name}: the mean of these models, and from the smallest to the largest."] if name else []
    verdicts = [f"Verdict: {verdict['text']}" for verdict in result.get("verdicts") or []]
    return [
        *verdicts,
        f"Intervals: 95 %. Samples: {counts}.",
        *spread,
        *floor,
        *(f"Factors of {name}: {basis(found)}." for name, found in (result.get("factors") or {}).items()),
        *(f"Flag {flag['name']}: {flag['message']}" for flag in result["flags"]),
    ]


def as_text(result: Plain) -> str:
    """Tables and notes as plain text."""
    parts = ["\n".join(lines(table)) for table in tables(result)]
    return "\n\n".join([*parts, "\n".join(notes(result))])


def lines(table: Table) -> list[str]:
    """A table as lines of text, its columns aligned."""
    return [table.title, *_aligned([table.header, *table.rows])]


def number(estimate: Plain | None, form: str = ".3f") -> str:
    """An estimate with its interval if it has one, "n/a (reason)", or "-" where there is none; an interval may have an open end.

    Example:
        >>> number({"value": 2.0, "low": 1.2, "high": None, "n": 6, "note": None}, ".2f")
        '2.00 [1.20, ∞)'
    """
    if estimate is None:
        return "-"
    if estimate["value"] is None:
        return f"n/a ({estimate['note']})"
    ends = interval(estimate["low"], estimate["high"], lambda x: format(x, form))
    return f"{estimate['value']:{form}} {ends}".rstrip()


def percent(estimate: Plain | None, form: str = ".1f") -> str:
    """A fraction with its interval, in percent."""
    if estimate is None or estimate["value"] is None:
        return number(estimate)
    return number({k: estimate[k] and 100 * estimate[k] for k in ("value", "low", "high")}, form)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
