"""ROC curves and histograms as SVG that is written straight into the page.

No name of a model or class ever enters a figure: headings and legends are HTML, so that escaping happens in one place and text wraps on a
phone. Colours are CSS variables, so that the page decides between light, dark and paper: matplotlib draws with stand-in colours, which are
replaced afterwards.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .twins import is_reference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROLES = ("ink", "muted", "grid")
N_COLOURS = 7  # --model-0 is the reference's; the others follow the Okabe-Ito palette
STAND_INS = {f"#0000{k + 1:02x}": role for k, role in enumerate((*ROLES, *(f"model-{k}" for k in range(N_COLOURS))))}
COLOURS = {role: colour for colour, role in STAND_INS.items()}
DASHES = {"solid": "", "dashed": "5 2", "dotted": "1.5 1.8", "dashdot": "6 2 1.5 2"}
SIZE = 3.0  # inches: 8 pt text is 11 px high in a panel of 300 px
MAX_POINTS = 250  # of a curve; more are not seen


@dataclass(frozen=True)
class Look:
    """How a model is drawn, everywhere on the page."""

    colour: str  # a key of COLOURS
    line: str  # a key of DASHES

    @property
    def dash(self) -> str:
        return DASHES[self.line]


def looks(names: list[str], reference: str | None) -> dict[str, Look]:
    """A colour and a line for each model: blue for the reference and its repetitions, other colours in turn; a new line when they run out.

    Example:
        >>> looks(["original", "retrained", "retrained 2"], "retrained")["retrained 2"]
        Look(colour='model-0', line='dashed')
    """
    lines, chosen, used = list(DASHES), {}, {True: 0, False: 0}
    for name in names:
        same = is_reference(name, reference)
        k, n = used[same], 1 if same else N_COLOURS - 1
        chosen[name] = Look("model-0" if same else f"model-{1 + k % n}", lines[k // n % len(lines)])
        used[same] += 1
    return chosen


def roc_figure(curves: list[tuple[Look, dict[str, Any]]], start: float, fpr: float | None, prefix: str) -> str:
    """The SVG of ROC curves on log axes.

    Args:
        curves: look and {"fpr", "tpr", "low", "high"} for each model; low and high may be missing.
        start: where both axes begin, in (0, 1): one sample of the larger group.
        fpr: the false-positive rate of the table, as a thin line; None = no line.
        prefix: makes the ids of this figure its own in the page.
    """

    def draw(axes: "Axes") -> None:
        floor = start / 10  # below the axis: the logarithm of a rate of 0
        axes.set(xscale="log", yscale="log", xlim=(start, 1), ylim=(start, 1.12))
        axes.plot([start, 1], [start, 1], color=COLOURS["muted"], linewidth=1.0, linestyle=(0, (1, 2)))
        if fpr is not None and fpr > start:
            axes.axvline(fpr, color=COLOURS["muted"], linewidth=0.6)
        for look, curve in curves:
            chosen = _thin(curve["fpr"], start)
            x = np.maximum(np.asarray(curve["fpr"], float)[chosen], floor)
            y, low, high = (
                None if curve.get(k) is None else np.maximum(np.asarray(curve[k], float)[chosen], floor) for k in ("tpr", "low", "high")
            )
            assert y is not None  # every curve has its rates
            if low is not None and high is not None:
                axes.fill_between(x, low, high, step="post", color=COLOURS[look.colour], alpha=0.11, linewidth=0)
            axes.step(x, y, where="post", color=COLOURS[look.colour], linewidth=1.4, linestyle=_line(look))
        ticks = [10.0**k for k in range(int(np.ceil(np.log10(start) - 1e-9)), 1)]
        labels = [f"{100 * tick:.6g}%" for tick in ticks]
        axes.set_xticks(ticks, labels)
        axes.set_yticks(ticks, labels)
        axes.minorticks_off()
        axes.grid(color=COLOURS["grid"], linewidth=0.6)
        _labels(axes, "test images wrongly accused (FPR)", "forget images found (TPR)")

    return _svg(draw, prefix, height=SIZE)


def histogram_figure(look: Look, histogram: dict[str, Any], limits: tuple[float, float], top: float, prefix: str) -> str:
    """The SVG of one model's histograms: forget filled in the model's colour, test as a line, retain (if given) as a dotted line.

    Args:
        look: of the model.
        histogram: {"edges", "forget", "retain", "test"}: k + 1 edges, k densities each; retain may be None.
        limits, top: the common x range and highest density of all panels, so that they can be compared.
        prefix: makes the ids of this figure its own in the page.
    """

    def draw(axes: "Axes") -> None:
        axes.set(xlim=limits, ylim=(0, 1.06 * top))
        edges = histogram["edges"]
        axes.stairs(histogram["forget"], edges, fill=True, color=COLOURS[look.colour], alpha=0.32, linewidth=0)
        axes.stairs(histogram["forget"], edges, color=COLOURS[look.colour], linewidth=1.2)
        if histogram.get("retain") is not None:
            axes.stairs(histogram["retain"], edges, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (1.5, 1.8)))
        axes.stairs(histogram["test"], edges, color=COLOURS["ink"], linewidth=1.1)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
        if limits[0] < 0 < limits[1]:
            axes.axvline(0, color=COLOURS["grid"], linewidth=0.8, zorder=0)
        _labels(axes, "logit margin φ (further right: surer)", None)

    return _svg(draw, prefix, height=0.62 * SIZE)


def _labels(axes: "Axes", x: str, y: str | None) -> None:
    axes.set_xlabel(x, color=COLOURS["ink"], fontsize=8)
    if y:
        axes.set_ylabel(y, color=COLOURS["ink"], fontsize=8)
    axes.tick_params(colors=COLOURS["muted"], labelsize=8, length=0, pad=4)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom" or (side == "left" and y is not None))
        spine.set(color=COLOURS["muted"], linewidth=0.8)


def _svg(draw: Callable[["Axes"], None], prefix: str, height: float) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    # DejaVu Sans comes with matplotlib: the same layout on every machine. The page sets its own font on the text.
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.family": "DejaVu Sans",
        "text.usetex": False,
        "axes.unicode_minus": True,
    }
    defaults = {
        name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"
    }  # which rc_context would not restore
    with matplotlib.rc_context(defaults | settings):
        figure = Figure(figsize=(SIZE, height))
        left, bottom = (0.19, 0.46 / height) if height == SIZE else (0.03, 0.44 / height)
        draw(figure.add_axes((left, bottom, (0.93 if height == SIZE else 0.97) - left, 0.97 - bottom)))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(file.getvalue(), prefix)


def _inline(text: str, prefix: str) -> str:
    """A file made by matplotlib as a fragment of HTML: no prolog, no page-wide style, ids of its own, the page's colours and size."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = text.replace("<svg ", '<svg class="plot" aria-hidden="true" focusable="false" ', 1)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text)
    text = re.sub(r" *\n *", " ", text)
    return re.sub(r"#0000[0-9a-f]{2}\b", lambda colour: f"var(--{STAND_INS[colour[0]]})" if colour[0] in STAND_INS else colour[0], text)


def _thin(fpr: list[float], start: float) -> np.ndarray:
    """Positions of at most about MAX_POINTS points, evenly spaced on the log axis: the last one at or below each step, and both ends."""
    rates = np.asarray(fpr, float)
    if len(rates) <= MAX_POINTS:
        return np.arange(len(rates))
    steps = np.geomspace(start / 2, 1, MAX_POINTS)
    chosen = np.searchsorted(rates, steps, side="right") - 1
    return np.unique(np.concatenate([[0], chosen[chosen >= 0], [len(rates) - 1]]))


def _line(look: Look) -> str | tuple[int, tuple[float, ...]]:
    return (0, tuple(float(x) for x in look.dash.split())) if look.dash else "solid"
