"""What page and tables say of the factors of AMUN's theorem: which there are, in which order, which direction is good, and what each one means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .cells import Cell, _cell, area, area_gap, number, percent

Plain = Mapping[str, Any]
QUANTITY, SHARE, LOSS, SIGNED = "quantity", "share", "loss", "signed"


@dataclass(frozen=True)
class Factor:
    """One factor: where it is in `Factors.to_dict()`, its name, "smaller" or "larger" as the good direction ("" where neither is), and one sentence."""

    key: str
    name: str
    better: str
    meaning: str
    kind: str


GROUPS: dict[str, tuple[Factor, ...]] = {
    "The adversarial set": (
        Factor("found", "examples found", "larger", "The share of forget images with an adversarial example; the others are in no number below.", SHARE),
        Factor("distance", "mean distance δ", "smaller", "How far an image lies from its example (L2): the nearer, the less has to change.", QUANTITY),
        Factor("median_distance", "median distance", "smaller", "Half of the examples are nearer; far below the mean, the mean is made by a few distant ones.", QUANTITY),
    ),
    "Smoothness of the original": (
        Factor("bound", "Lipschitz bound L", "smaller", "How many times a change of the image can come back in the logits: an upper bound, usually far above the truth.", QUANTITY),
        Factor("norm", "largest spectral norm of a layer", "smaller", "The layer that stretches most; the one to clip first.", QUANTITY),
        Factor("stretch", "L δ", "smaller", "What the theorem charges for the way from an image to its example.", QUANTITY),
    ),
    "Transfer to retrained models": (
        Factor("same", "same wrong label", "larger", "How often a retrained model, right on the image, gives its example the very label that unlearning teaches.", SHARE),
        Factor("any", "any wrong label", "", "The same with any wrong label: far above the line before, examples fool retrained models but teach other labels than theirs.", SHARE),
    ),
    "The loss terms of C": (
        Factor("original_adversarial", "+ ℓ(f_O(x_adv), y)", "larger", "The original on the examples with the true label: how clearly the attack succeeded.", LOSS),
        Factor("unlearned_adversarial", "+ ℓ(f_U(x_adv), y_adv)", "larger", "The unlearned model on what it was taught: near 0, it was trained on the examples for too long.", LOSS),
        Factor("retrained_clean", "− ℓ(f_R(x), y)", "smaller", "The retrained models on forget images: large where they do not generalise to them.", LOSS),
        Factor("retrained_adversarial", "− ℓ(f_R(x_adv), y_adv)", "smaller", "The retrained models on the examples with their wrong label: small where examples transfer.", LOSS),
        Factor("c", "C", "larger", "The two terms with + minus the two with −; what the theorem takes off L δ.", SIGNED),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One factor with a cell for each model."""

    factor: Factor
    cells: list[Cell]


@dataclass(frozen=True)
class Section:
    """All of it, ready for factors.html."""

    models: list[str]
    groups: list[tuple[str, list[Line]]]
    bases: list[str]


def section(factors: Mapping[str, Plain] | None) -> Section | None:
    """The section, or None where no factors were measured.

    Args:
        factors: `Factors.to_dict()` of each unlearned model, by name.
    """
    if not factors:
        return None
    bases = {name: basis(found) for name, found in factors.items()}
    alike = len(set(bases.values())) == 1
    return Section(
        list(factors),
        [(title, [Line(f, [_cell_of(f, found) for found in factors.values()]) for f in group]) for title, group in GROUPS.items()],
        [f"Measured on {next(iter(bases.values()))}"] if alike else [f"{name}: {text}" for name, text in bases.items()],
    )


def value_of(factor: Factor, found: Plain) -> dict[str, Any]:
    """A factor as a plain estimate, with None for the ends of what has no interval: a bound is one end already."""
    if factor.key == "bound":
        return {"value": found["bound"]["value"], "low": None, "high": None, "note": found["bound"]["reason"] or None}
    if factor.key == "norm":
        layer = found["layer"]
        return {"value": layer and layer["norm"], "low": None, "high": None, "note": layer["name"] if layer else "no affine layer was seen"}
    return dict(found["estimates"][factor.key])


def basis(found: Plain) -> str:
    """What the numbers rest on, in words.

    Example:
        >>> basis({"n": 100, "n_used": 98, "n_wrong": 2, "n_retrained": 3})
        '98 of 100 forget images (2 left out, which the original gets wrong itself); mean of 3 retrained models'
    """
    wrong = f" ({found['n_wrong']} left out, which the original gets wrong itself)" if found["n_wrong"] else ""
    few = {0: "no retrained model", 1: "one retrained model, so that intervals leave out how these differ"}
    against = few.get(found["n_retrained"], f"mean of {found['n_retrained']} retrained models")
    return f"{found['n_used']} of {found['n']} forget images{wrong}; {against}"


def _cell_of(factor: Factor, found: Plain) -> Cell:
    estimate = value_of(factor, found)
    if factor.kind == QUANTITY:
        return _cell(estimate, lambda x: number(x, 3))
    return {SHARE: percent, LOSS: area, SIGNED: area_gap}[factor.kind](estimate)
