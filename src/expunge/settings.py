"""Hyperparameters as text: `--set epochs=5 --set use_retain=false --set attack=nearest_ddn:steps=100`.

What the fields are, and their types, is read from the dataclass. Text that is not a value of the field's type is passed on as text, so
that the library's own check names the field, its range and what was given.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, ClassVar, Protocol, TypeVar

from .checks import choose
from .errors import ConfigError


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=_Dataclass)
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def configured(cls: type[T], texts: Sequence[str], given: Mapping[str, Any] | None = None) -> T:
    """The dataclass with the fields that `texts` ("field=value") set; `given` fills others by name, as far as the class has them.

    Raises:
        ConfigError: not of the form field=value, a field twice, one without a value, or a value outside its range.
        MissingError: a field, schedule or attack that does not exist.

    Example:
        >>> from expunge import Recipe
        >>> configured(Recipe, ["epochs=3", "nesterov=false"]).nesterov
        False
    """
    chosen: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ConfigError(
                f"a setting has the form field=value; got {text!r}. For {_title(cls)}: {', '.join(cls.__dataclass_fields__)}."
            )
        if name in chosen:
            raise ConfigError(f"each setting must be given once; got {name} twice. Leave one out.")
        chosen[name] = value
    return from_table(cls, chosen, given)


def from_table(cls: type[T], table: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> T:
    """The dataclass with these fields, values or text that means one; `given` fills others by name, as far as the class has them.

    Raises: as `configured`.

    Example:
        >>> from expunge import Recipe
        >>> from_table(Recipe, {"epochs": 3, "schedule": "step:every=2"}).schedule
        Step(every=2, gamma=0.1, first=None)
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints, chosen = typing.get_type_hints(cls), {}
    for name, value in table.items():
        choose(f"setting of {_title(cls)}", name, fields, f"`expunge show {_title(cls)}` explains them.")
        chosen[name] = value_of(value, hints[name]) if isinstance(value, str) else _as_float(value, hints[name])
    values = {name: value for name, value in (given or {}).items() if name in fields} | chosen
    for field in fields.values():
        if field.name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_title(cls)} needs a value for {field.name}; got none. Pass it as {field.name}=….")
    return cls(**values)


def value_of(text: str, kind: Any) -> Any:
    """The value that `text` means for a field of type `kind`; the text itself if it means none."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, UnionType) else (kind,)
    if NoneType in kinds and text.lower() in ("none", ""):
        return None
    for each in kinds:
        value = _value_of(text, each)
        if value is not text:
            return value
    return text


def _as_float(value: Any, kind: Any) -> Any:
    """5 where 5.0 is meant: a spec tells them apart."""
    kinds = typing.get_args(kind) or (kind,)
    return float(value) if type(value) is int and float in kinds and int not in kinds else value


def _title(cls: type) -> str:
    return getattr(cls, "name", cls.__name__)


def _value_of(text: str, kind: Any) -> Any:
    if kind is bool:
        return WORDS.get(text.lower(), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    if kind == tuple[int, ...]:
        parts = [part.strip() for part in text.split(",")]
        return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else text
    reader = _readers().get(kind)
    return reader(text) if reader else text


def _readers() -> dict[Any, Callable[[str], Any]]:
    """How to read fields that are objects themselves."""
    from .attacks import ATTACKS, AdversarialSet, NearestAttack
    from .models import import_build
    from .spectral.control import SpectralControl
    from .training.masks import WeightMask, load_mask
    from .training.recipe import Build, Recipe
    from .training.schedules import SCHEDULES, Schedule

    return {
        Schedule: lambda text: named(text, "schedule", SCHEDULES, "Write it as step:every=40,gamma=0.1."),
        Recipe: _recipe,
        NearestAttack: lambda text: named(text, "attack", ATTACKS, "`expunge list attacks` shows all."),
        AdversarialSet: AdversarialSet.load,
        WeightMask: load_mask,
        Build: import_build,
        SpectralControl: _control,
    }


def _recipe(text: str) -> Any:
    """The recipe of "name" or "name:field=value,…"."""
    from .training.recipe import Recipe
    from .training.recipes import recipe

    name, _, fields = text.partition(":")
    return configured(Recipe, _fields(fields), vars(recipe(name)))


def _control(text: str) -> Any:
    """The control of "name" or "name:field=value,…"; a number alone is the bound of `Clip`."""
    from .spectral import CONTROLS
    from .spectral.clip import Clip

    bound = _value_of(text, float)
    return Clip(max_norm=bound) if isinstance(bound, float) else named(text, "control", CONTROLS, "`expunge list controls` shows all.")


def named(text: str, what: str, known: Mapping[str, type], remedy: str) -> Any:
    """The object of the registry `known` that "name" or "name:field=value,field=value" means."""
    name, _, fields = text.partition(":")
    return configured(known[choose(what, name, known, remedy)], _fields(fields))


def _fields(text: str) -> list[str]:
    """The parts "field=value" of a text; a comma inside a value, as in "milestones=91,136", is before no field."""
    return [part for part in re.split(r",(?=[^,=]*=|$)", text) if part]
