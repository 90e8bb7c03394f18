"""What the page says of the most exposed forget images: which are shown, with which picture, and how sure an attacker is of each under every model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import cells
from .cells import Cell, Scale
from .thumbnails import Picture, picture
from .twins import in_figures

MOST = 24  # images; a page is no database
AXIS = Scale(0.0, 1.0)
PRIOR = 0.5


@dataclass(frozen=True)
class Risk:
    """One model on one image."""

    model: str
    cell: Cell
    style: str


@dataclass(frozen=True)
class Example:
    """One forget image."""

    id: str
    name: str | None  # of its class
    picture: Picture | None
    risks: list[Risk]


@dataclass(frozen=True)
class Section:
    """All of it, ready for risks.html."""

    n: int | None  # forget images from which these were chosen
    by: str | None
    level: str
    examples: list[Example]
    has_pictures: bool


def section(risks: Mapping[str, Any] | None, result: Mapping[str, Any]) -> Section | None:
    """The section, or None where no risks were measured.

    Args:
        risks: "risks" of an audit's plain values, the most exposed image first.
        result: the audit's plain values: which retrained models are many of a kind, and not shown one by one.
    """
    if not risks or not risks["examples"]:
        return None
    examples = [_example(example, result) for example in risks["examples"][:MOST]]
    return Section(
        risks.get("n"), risks.get("by"), cells.rate(risks.get("level") or 0.95), examples, any(example.picture for example in examples)
    )


def _example(example: Mapping[str, Any], result: Mapping[str, Any]) -> Example:
    label = example.get("label")
    return Example(
        str(example["id"]),
        None if label is None else str(label),
        picture(example.get("image")),
        [
            Risk(model, cells.probability(risk), AXIS.style(risk, chance=PRIOR))
            for model, risk in example["risks"].items()
            if in_figures(model, result)
        ],
    )
