"""One sentence for every bad input: what was expected, what was given, what to do.

A hyperparameter states its range once, where it is declared; the check, `expunge show` and the command line read it from there:

    @dataclass(frozen=True, kw_only=True)
    class FineTune(Method):
        epochs: int = setting(10, ge=1)
        lr: float = setting(0.01, gt=0)
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError, DataError, MissingError

BOUNDS = {
    "ge": ("≥", lambda x, b: x >= b),
    "gt": (">", lambda x, b: x > b),
    "le": ("≤", lambda x, b: x <= b),
    "lt": ("<", lambda x, b: x < b),
}


def setting(
    default: Any = dataclasses.MISSING,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[str, ...] | None = None,
    factory: Any = dataclasses.MISSING,
    later: bool = False,
) -> Any:
    """A dataclass field that knows its range; `check_settings` enforces it.

    `later` marks a field that older versions did not have, and whose default means what they did: a spec does not mention it then, so that
    results stored before are still found.
    """
    bounds = {name: bound for name, bound in {"ge": ge, "gt": gt, "le": le, "lt": lt}.items() if bound is not None}
    return dataclasses.field(default=default, default_factory=factory, metadata={"bounds": bounds, "choices": choices, "later": later})


def check_settings(config: Any) -> None:
    """Raises ConfigError for the first field of a dataclass that has the wrong type or lies outside its range."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _allowed(value, hints[field.name], field.metadata):
            raise ConfigError(
                f"{type(config).__name__}: {field.name} must be {describe(hints[field.name], field.metadata)}; got {value!r}."
            )


def describe(kind: Any, metadata: Any) -> str:
    """The range of a setting in words, for error messages and help texts."""
    if metadata.get("choices"):
        return "one of " + ", ".join(map(repr, metadata["choices"]))
    words = " or ".join(_name(k) for k in _kinds(kind))
    bounds = " and ".join(f"{BOUNDS[name][0]} {_bound(bound)}" for name, bound in metadata.get("bounds", {}).items())
    return f"{words} {bounds}".strip()


def _bound(bound: float) -> str:
    """In words that one can type again: 9.22337e+18 is not 2**63."""
    return f"2**{bound.bit_length() - 1}" if isinstance(bound, int) and bound > 2**20 else f"{bound:g}"


def _allowed(value: Any, kind: Any, metadata: Any) -> bool:
    if metadata.get("choices") and value not in metadata["choices"]:
        return False
    if not any(_is_kind(value, k) for k in _kinds(kind)):
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        return math.isfinite(value) and all(BOUNDS[name][1](value, bound) for name, bound in metadata.get("bounds", {}).items())
    return True


def _kinds(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, UnionType) else (kind,)


def _is_kind(value: Any, kind: Any) -> bool:
    kind = typing.get_origin(kind) or kind
    if kind is Any or not isinstance(kind, type):
        return True
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _name(kind: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "True or False", str: "a string", NoneType: "None"}
    return words.get(kind) or f"a {getattr(kind, '__name__', str(kind))}"


def is_integer(value: Any, at_least: int) -> bool:
    """Whether a value is an integer of this size or more; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def choose(kind: str, name: str, known: Iterable[str], remedy: str = "") -> str:
    """Returns `name` if it is known; otherwise raises MissingError with the nearest known name, or all of them, and a remedy if there is another than to pass one of these.

    Example:
        >>> choose("method", "amnu", ["amun", "fine_tune"], "`expunge list methods` shows all")
        Traceback (most recent call last):
        expunge.errors.MissingError: no method named 'amnu'; did you mean 'amun'? `expunge list methods` shows all
        >>> choose("norm", "max", ["l2", "linf"])
        Traceback (most recent call last):
        expunge.errors.MissingError: no norm named 'max'; known: l2, linf. Pass one of these.
    """
    known = list(known)
    if name in known:
        return name
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known[:20]) or 'none'}{', …' if len(known) > 20 else ''}."
    remedy = remedy or ("Pass one of these." if known and not close else "")
    raise MissingError(f"no {kind} named {name!r}; {hint} {remedy}".strip())


def check_made_from(what: str, remedy: str, **sources: tuple[str, str] | None) -> None:
    """Raises DataError unless something was made from the sources at hand.

    Args:
        what: how the message begins, such as "these importances are of the".
        remedy: how it ends.
        sources: by name, the hash that was noted and the hash of what is at hand; None = not checked.
    """
    for name, hashes in sources.items():
        if hashes is not None and hashes[0] != hashes[1]:
            raise DataError(f"{what} {name} {hashes[0][:16]}…; got the {name} {hashes[1][:16]}…. {remedy}")


def check_indices(indices: Any, n: int, what: str = "forget indices") -> Tensor:
    """Returns indices as a sorted int64 tensor; raises DataError unless they are unique integers in [0, n) and at least one."""
    try:
        indices = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError) as error:  # names, None, a set, lists of different lengths, numbers beyond 64 bits
        raise DataError(
            f"{what} must be a flat list of integers; got {str(indices)[:60]} ({str(error).splitlines()[0]}). Pass list(indices), positions as int."
        ) from None
    if indices.numel() == 0:
        raise DataError(f"{what} must name at least one sample; got none. Pass the positions of the samples in the training set.")
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex() or indices.ndim != 1:
        raise DataError(
            f"{what} must be a flat list of integers; got {str(indices.dtype).removeprefix('torch.')} of shape {tuple(indices.shape)}. "
            "From a boolean mask: pass torch.nonzero(mask).flatten()."
        )
    indices = indices.to("cpu", torch.int64)
    outside = (indices < 0) | (indices >= n)
    if outside.any():
        raise DataError(
            f"{what} must lie in [0, {n}); got {int(outside.sum())} outside (first: {int(indices[outside][0])}). Count positions from 0."
        )
    values, counts = indices.unique(return_counts=True)
    if len(values) < len(indices):
        repeated = values[counts > 1]
        raise DataError(
            f"{what} must be unique; got {len(indices) - len(values)} duplicates (first: {int(repeated[0])}). Pass torch.unique(indices)."
        )
    return values
