"""What the page says of an audit's verdicts: the word, the sentence to quote, and for each contrast where its interval lies against the margin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from . import cells
from .cells import Cell, Estimate, Scale

WORDS = {
    "indistinguishable": ("alike", "≈"),
    "distinguishable": ("apart", "≠"),
    "cannot tell": ("unsure", "?"),
}  # class in style.css, and symbol
REACH = 3  # margins on either side of 0: the band is the middle third of every strip, whatever the margin
KINDS = {  # how a difference and its margin are printed
    "area": (cells.area_gap, lambda margin: f"±{margin:g}"),
    "share": (cells.points, lambda margin: f"±{100 * margin:g} points"),
}


@dataclass(frozen=True)
class Contrast:
    """One difference to retraining, ready to print and to draw."""

    name: str
    cell: Cell
    unit: str  # after the number; "" where it has none
    standing: str  # in words, where the interval lies; "" where there is none
    style: str  # places of band, line and interval, as in `Scale.style`; "" where there is nothing to draw
    dot: bool  # whether the value itself is on the strip
    cut: tuple[str, ...]  # the ends ("low", "high") that lie beyond the strip


@dataclass(frozen=True)
class Card:
    """The verdict on one model."""

    model: str
    word: str
    look: str
    symbol: str
    text: str
    contrasts: list[Contrast]
    needs: list[str]


def cards(verdicts: Sequence[Mapping[str, Any]] | None) -> list[Card]:
    """One card for each verdict, in their order.

    Args:
        verdicts: "verdicts" of an audit's plain values; None or empty where there are none. "contrasts" and "needs" of one may be missing.

    Raises:
        DataError: the word of a verdict is none of `WORDS`.
    """
    return [_card(verdict) for verdict in verdicts or []]


def _card(verdict: Mapping[str, Any]) -> Card:
    word = verdict["word"]
    if word not in WORDS:
        raise DataError(f"the word of a verdict must be one of {', '.join(map(repr, WORDS))}; got {word!r}. Pass audit.to_dict().")
    return Card(
        verdict["model"],
        word,
        *WORDS[word],
        verdict["text"],
        [_contrast(contrast) for contrast in verdict.get("contrasts") or []],
        list(verdict.get("needs") or []),
    )


def _contrast(contrast: Mapping[str, Any]) -> Contrast:
    gap, margin, kind = contrast["gap"], contrast.get("margin"), contrast["kind"]
    number, allowed = KINDS[kind]
    cell, unit = number(gap), "points" if kind == "share" and gap and gap["value"] is not None else ""
    if not margin or not gap or None in (ends := (gap["low"], gap["value"], gap["high"])):
        return Contrast(contrast["name"], cell, unit, "", "", False, ())
    axis = Scale(-REACH * margin, REACH * margin)
    marks = axis.style(gap, zero=0.0, **{"from": -margin, "to": margin})
    cut = tuple(end for end, beyond in (("low", ends[0] < axis.low), ("high", ends[2] > axis.high)) if beyond)
    return Contrast(contrast["name"], cell, unit, _standing(gap, margin, allowed(margin)), marks, axis.low <= ends[1] <= axis.high, cut)


def _standing(gap: Estimate, margin: float, allowed: str) -> str:
    """Where an interval lies: what the strip shows, for those who cannot see it."""
    if -margin <= gap["low"] and gap["high"] <= margin:
        return f"inside {allowed}"
    if gap["low"] > margin or gap["high"] < -margin:
        return f"outside {allowed}"
    return f"reaches beyond {allowed}" + (", leaves out 0" if gap["low"] > 0 or gap["high"] < 0 else "")
