"""What the page says of the layers' largest singular values: a row for each layer, a mark for each model on one log axis.

Names of layers come from the user's model: they are HTML, never part of a figure, so that they are escaped in one place and wrap. The marks are placed in
percent, so that the picture is as wide as the page allows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .axes import LogAxis, Tick
from .cells import Cell, number
from .figures import Look

SHOWN = 3  # values of a layer that are printed; the others are in the page's JSON
SPACE, MARGIN = 9, 10  # pixels between the marks of two models, and around them
LONG = 12  # rows: longer tables repeat the axis below
SHAPES = {  # of a mark, by the line that the model has in the curves; 8 pixels wide, around (0, 0)
    "solid": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "dashed": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0zM-2 0a2 2 0 1 1 4 0a2 2 0 1 1 -4 0z",  # a ring
    "dotted": "M-3.5 -3.5h7v7h-7z",
    "dashdot": "M0 -4.7L4.7 0L0 4.7L-4.7 0z",
}
ARROW = "M-5 0L3 -4.2V4.2z"  # of what is too small for the axis


@dataclass(frozen=True)
class Model:
    """One model: how it is drawn, and what follows for the whole network."""

    name: str
    colour: str
    shape: str
    bound: str  # "" where there is none,
    reason: str  # and why


@dataclass(frozen=True)
class Mark:
    """σ₁ of one layer in one model, in percent of the axis; low and high are its error where the iteration stopped early."""

    model: Model
    shape: str
    place: float
    y: float  # pixels from the middle of the row
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One layer."""

    layer: str
    shape: str
    marks: list[Mark]
    cells: list[Cell]  # in the order of the models


@dataclass(frozen=True)
class Section:
    """All of it, ready for spectrum.html."""

    models: list[Model]
    rows: list[Row]
    ticks: list[Tick]
    limit: Tick | None
    height: int  # of a row at least, in pixels
    long: bool
    beyond: bool
    unseen: list[str]


def section(spectra: Mapping[str, Mapping[str, Any]] | None, look: Mapping[str, Look], limit: float | None = None) -> Section | None:
    """The section, or None where there are no spectra.

    Args:
        spectra: `Spectrum.to_dict()` of each model, by name. Models may differ in their layers.
        look: how each of these models is drawn, as `looks` chooses it.
        limit: c, the bound that layers were clipped to, > 0; None = no line.
    """
    if not spectra:
        return None
    models = [Model(name, look[name].colour, SHAPES[look[name].line], *_bound(found)) for name, found in spectra.items()]
    layers = {name: {layer["name"]: layer for layer in found["layers"]} for name, found in spectra.items()}
    every = [layer for mine in layers.values() for layer in mine.values()]
    axis = LogAxis.of([layer["values"][0] for layer in every] + ([limit] if limit else []))
    rows = []
    for name in _in_order(layers):
        there = [(k, model, layers[model.name][name]) for k, model in enumerate(models) if name in layers[model.name]]
        shapes = dict.fromkeys(dimensions(layer["input_shape"]) for _, _, layer in there)
        marks = [_mark(model, layer, axis, SPACE * (k - (len(models) - 1) / 2)) for k, model, layer in there]
        rows.append(Row(name, ", ".join(shapes), marks, [cell(layers[model.name].get(name)) for model in models]))
    return Section(
        models,
        rows,
        axis.ticks,
        Tick(number(limit), axis.place(limit)) if limit else None,
        SPACE * (len(models) - 1) + 2 * MARGIN,
        len(rows) > LONG,
        any(mark.shape == ARROW for row in rows for mark in row.marks),
        list(dict.fromkeys(name for found in spectra.values() for name in found["unseen"])),
    )


def cell(layer: Mapping[str, Any] | None) -> Cell:
    """σ₁, with the next values in small print, and the errors where the iteration stopped early.

    Example:
        >>> cell({"values": [2.0, 1.5], "error_estimate": [1e-6, 1e-6], "converged": True})
        Cell(value='2.000', interval='σ₂ 1.500', note='')
    """
    if layer is None:
        return Cell("–")
    first, *others = values_with_errors(layer)[:SHOWN]
    return Cell(first, ", ".join(f"σ{'₂₃'[k]} {text}" for k, text in enumerate(others)))


def values_with_errors(layer: Mapping[str, Any]) -> list[str]:
    """All values of a layer as text, with " ± " their error estimates unless the iteration has converged."""
    errors = [""] * len(layer["values"]) if layer["converged"] else [f" ± {number(error, 1)}" for error in layer["error_estimate"]]
    return [number(value, zeros=True) + error for value, error in zip(layer["values"], errors, strict=True)]


def dimensions(shape: Iterable[int]) -> str:
    """A shape as one reads it: 3×32×32."""
    return "×".join(map(str, shape))


def _mark(model: Model, layer: Mapping[str, Any], axis: LogAxis, y: float) -> Mark:
    value, error = layer["values"][0], layer["error_estimate"][0]
    ends = (None, None) if layer["converged"] else (axis.place(value - error), axis.place(value + error))
    return Mark(model, ARROW if axis.beyond(value) else model.shape, axis.place(value), y, *ends)


def _bound(found: Mapping[str, Any]) -> tuple[str, str]:
    return ("", found["reason"]) if found["bound"] is None else (number(found["bound"], 3), "")


def _in_order(layers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of all models' layers, each model's in its own order; those that a later model adds come after the one before them."""
    order: list[str] = []
    for mine in layers.values():
        position = 0
        for name in mine:
            if name in order:
                position = order.index(name) + 1
            else:
                order.insert(position, name)
                position += 1
    return order
