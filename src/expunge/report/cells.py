"""Numbers as people read them: a value, its interval under it, the reason when there is none, and the same as a strip to compare by eye."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

Estimate = dict[str, Any]  # {"value", "low", "high", "n", "note"}; value is None where the data cannot support one
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Cell:
    """One number in a table, ready to print."""

    value: str
    interval: str = ""
    note: str = ""


def percent(estimate: Estimate | None) -> Cell:
    """An accuracy or rate in percent.

    Example:
        >>> percent({"value": 0.931, "low": 0.9, "high": 0.95, "n": 100, "note": None})
        Cell(value='93.1', interval='90.0 to 95.0', note='')
    """
    return _cell(estimate, hundredfold)


def points(estimate: Estimate | None) -> Cell:
    """A signed gap in percentage points.

    Example:
        >>> points({"value": -0.02, "low": -0.05, "high": 0.01, "n": 100, "note": None})
        Cell(value='−2.0', interval='−5.0 to +1.0', note='')
    """
    return _cell(estimate, lambda x: _signed(100 * x, 1))


def area(estimate: Estimate | None) -> Cell:
    """An AUC, in [0, 1]."""
    return _cell(estimate, lambda x: f"{x:.3f}")


def probability(estimate: Estimate | None) -> Cell:
    """A probability, in [0, 1], to two digits: of one image, no more can be known."""
    return _cell(estimate, lambda x: f"{x:.2f}")


def area_gap(estimate: Estimate | None) -> Cell:
    """A signed difference of AUCs."""
    return _cell(estimate, lambda x: _signed(x, 3))


def hundredfold(fraction: float) -> str:
    """A difference without interval or sign, in percentage points."""
    return f"{round(100 * fraction, 1) + 0.0:.1f}".replace("-", "−")  # no "−0.0"


def rate(fraction: float) -> str:
    """A fraction in percent without needless zeros.

    Example:
        >>> rate(0.001)
        '0.1%'
    """
    return f"{round(100 * fraction, 6):g}%"


def duration(seconds: float | None) -> str:
    """A time as one reads it.

    Example:
        >>> duration(1.234), duration(75), duration(8000)
        ('1.2 s', '1 min 15 s', '2 h 13 min')
    """
    if seconds is None:
        return "not measured"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class Scale:
    """The common axis of the strips in one column."""

    low: float
    high: float

    def style(self, estimate: Estimate | None, **marks: float | None) -> str:
        """CSS variables that place an estimate and other marks on the strip, in percent of its width; marks alone without a value."""
        places = dict(marks)
        if estimate is not None and estimate["value"] is not None:
            places |= {key: estimate[key] for key in ("low", "value", "high")}
        return "; ".join(f"--{key}: {self._place(x):.2f}%" for key, x in places.items() if x is not None)

    def _place(self, x: float) -> float:
        return min(100.0, max(0.0, 100 * (x - self.low) / (self.high - self.low)))


def scale(estimates: Sequence[Estimate | None], *also: float) -> Scale:
    """An axis that holds every interval and the values in `also`, with a little air."""
    values = [x for e in estimates if e for x in (e["low"], e["value"], e["high"]) if x is not None] + list(also)
    low, high = min(values), max(values)
    air = 0.04 * (high - low) or 0.01
    return Scale(low - air, high + air)


def _cell(estimate: Estimate | None, text: Callable[[float], str]) -> Cell:
    if estimate is None:
        return Cell("n/a")
    note = estimate.get("note") or ""
    if estimate["value"] is None:
        return Cell("n/a", note=note)
    low: Any = estimate.get("low")
    high: Any = estimate.get("high")
    open_end = not (_ends(low) and _ends(high))
    return Cell(text(estimate["value"]), interval(low, high, text) if open_end else f"{text(low)} to {text(high)}", note)


def interval(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    """An interval in brackets; an end that is None or infinite is open, and without both there is none.

    Example:
        >>> interval(1.2, None, "{:.2f}".format), interval(None, 3, "{:.2f}".format), interval(1.2, 3, "{:.2f}".format), interval(None, None, str)
        ('[1.20, ∞)', '(−∞, 3.00]', '[1.20, 3.00]', '')
    """
    if not _ends(low) and not _ends(high):
        return ""
    return f"{f'[{text(low)}' if _ends(low) else '(−∞'}, {f'{text(high)}]' if _ends(high) else '∞)'}"


def _ends(x: float | None) -> TypeGuard[float]:
    return x is not None and math.isfinite(x)


def _signed(x: float, digits: int) -> str:
    x = round(x, digits) + 0.0  # no "−0.0"
    return f"{x:+.{digits}f}".replace("-", "−") if x else f"{x:.{digits}f}"


def number(value: float, digits: int = 4, zeros: bool = False) -> str:
    """A number ≥ 0 in so many significant digits, without an "e"; with zeros at its end or without.

    Example:
        >>> number(0.70091), number(20.0), number(20.0, zeros=True), number(123456.0)
        ('0.7009', '20', '20.00', '1.235 × 10⁵')
    """
    mantissa, e, exponent = f"{value:{'#' * zeros}.{digits}g}".partition("e")
    mantissa = mantissa.removesuffix(".")
    if not e:
        return mantissa
    power = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
    return power if mantissa == "1" else f"{mantissa} × {power}"
