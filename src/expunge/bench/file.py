"""A plan as a TOML file:

title = "AMUN against the field"
data = "cifar10"                                  # or a list: the grid has every combination of data, arch, recipe and forget
arch = "resnet18"
forget = { random = 0.1 }                         # a share or a number; { classes = ["deer"] }; { indices = [17, 42] }
seeds = 3
shadows = 128
attacks = ["rmia"]                                # with settings: "lira:variance=shrunk"
tuning = 6

[recipe]                                          # fields of Recipe
epochs = 30

[methods]                                         # settings that differ from the defaults; method = "amun" where the name is another
fine_tune = {}
amun_without_retain = { method = "amun", use_retain = false }

[scales.cpu]                                      # what is different at another scale, methods one by one: expunge bench plan.toml --scale cpu
n_train = 10_000
arch = "resnet_tiny"

[paper]                                           # shown beside the measured numbers, as it is
source = "AMUN, table 1"
amun = { forget = "95.5", test = "93.0" }
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..audits import AUDITS
from ..checks import choose
from ..data.images import Augment
from ..errors import ConfigError, MissingError
from ..methods import METHODS, Method, Retrain
from ..settings import from_table, named
from ..training.recipe import Recipe
from ..training.recipes import recipe
from .forget import Forget, ForgetClasses, ForgetRandom, ForgetSamples
from .plan import Plan

FORGET = ("random", "classes", "indices")
KEYS = [field.name for field in dataclasses.fields(Plan)]


def read_plan(path: str | Path, scale: str | None = None) -> Plan:
    """The plan of a TOML file, at one of the scales that it names.

    Raises:
        MissingError: no such file, scale, key, method, attack or setting. ConfigError: no TOML, or a value that does not fit.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp(), "plan.toml")
        >>> _ = file.write_text('data = "digits"\\narch = "small"\\nforget = { random = 50 }\\nrecipe = { epochs = 2 }\\nmethods = { fine_tune = { epochs = 1 } }')
        >>> read_plan(file).methods["fine_tune"].epochs
        1
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"no plan {str(path)!r}. Pass the path of a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"a plan must be a TOML file; got {path}, which is none: {error}. Correct it.") from None
    scales = table.pop("scales", {})
    _table(scales, "scales")
    if scale is not None:
        other = scales[choose("scale", scale, scales, f"{path} names its scales under [scales].")]
        table |= other | {"methods": table.get("methods", {}) | other.get("methods", {})}
    return _plan(table, path)


def _plan(table: dict[str, Any], path: Path) -> Plan:
    for name in table:
        choose("key of a plan", name, KEYS, f"See {path}.")
    for name in ("methods", "recipe", "forget"):
        if name not in table:
            raise ConfigError(f"a plan must say {name}; got none in {path}. Add it.")
    readers = {
        "methods": lambda methods: {name: _method(name, fields) for name, fields in _table(methods, "methods").items()},
        "recipe": lambda value: _each(_recipe, value),
        "forget": lambda value: _each(_forget, value),
        "attacks": lambda texts: [
            named(text, "audit", AUDITS, "`expunge list audits` shows all.") for text in ([texts] if isinstance(texts, str) else texts)
        ],
        "augment": lambda fields: from_table(Augment, _table(fields, "augment")),
    }
    return Plan(**{name: readers[name](value) if name in readers else value for name, value in table.items()})


def _method(name: str, fields: Any) -> Method:
    fields = dict(_table(fields, f"methods.{name}"))
    kind = fields.pop("method", name)
    cls = METHODS[choose("method", kind, METHODS, '`expunge list methods` shows all; another name of your own needs method = "…".')]
    if cls is Retrain:
        raise ConfigError(f"a plan retrains anyway; got {kind} among its methods. Leave it out.")
    published = fields.pop("published", None)
    given = (
        {}
        if published is None
        else dict(cls.published[choose("experiment", published, cls.published, f"`expunge show {kind}` has them all.")])
    )
    return from_table(cls, fields, given)


def _recipe(value: Any) -> Recipe:
    """A recipe by name, by its fields, or by both: { name = "amun", epochs = 20 }."""
    fields = {"name": value} if isinstance(value, str) else dict(_table(value, "recipe"))
    name = fields.pop("name", None)
    base = Recipe() if name is None else recipe(name)
    return from_table(Recipe, fields, {field.name: getattr(base, field.name) for field in dataclasses.fields(Recipe)})


def _forget(fields: Any) -> Forget:
    fields = dict(_table(fields, "forget"))
    kinds = [kind for kind in FORGET if kind in fields]
    if len(kinds) != 1 or set(fields) - {*kinds, "seed"} or ("seed" in fields and kinds != ["random"]):
        raise ConfigError(
            f'forget must be one of {{ random = 0.1 }}, {{ random = 5000, seed = 0 }}, {{ classes = ["…"] }} and {{ indices = [0, 1] }}; got {fields!r}.'
        )
    value = fields[kinds[0]]
    if kinds == ["random"]:
        amount = {"ratio" if isinstance(value, float) else "n": value}
        return ForgetRandom(**amount, seed=fields.get("seed", 0))
    return ForgetClasses(classes=value) if kinds == ["classes"] else ForgetSamples(indices=value)


def _each(read: Any, value: Any) -> Any:
    return [read(part) for part in value] if isinstance(value, list) else read(value)


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a table of settings, such as {{ lr = 0.01 }}; got {value!r}.")
    return value
