"""What a result depends on, as JSON that two runs, two machines and two versions of Python write alike.

A spec is any nesting of frozen dataclasses, dicts, lists, tuples, numbers, strings, importable functions and tensors. `canonical` writes
it down, `key` names a folder after it, and `rebuild` makes the dataclasses again from the JSON. The file never says what to import: the
caller gives the classes that may occur.

    Cosine(warmup=0.1)        {"class": "Cosine", "warmup": 0.1}
    AMUN(epochs=10)           {"class": "AMUN", "revision": 1, "epochs": 10, …}      raising the ClassVar `revision` makes results stale
    mypkg.nets.build          {"callable": "mypkg.nets:build"}
    torch.arange(3)           {"sha256": "…", "shape": [3], "dtype": "int64"}        for identity only: it cannot be rebuilt
"""

import dataclasses
import functools
import hashlib
import json
import math
import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import StoreError

KEY_LENGTH = 24  # hex digits: 96 bits, so that a billion cells share a name with probability 1e-11
TAGS = ("class", "callable", "sha256")  # first names of the forms above; a dict of the user's must not look like one


def canonical(obj: Any) -> str:
    """The JSON text of a spec: one line, sorted names, shortest floats; equal for equal specs whatever the order of their dicts.

    Args:
        obj: dataclasses, dicts with string names, lists, tuples, finite numbers, strings, None, importable callables, tensors.

    Raises:
        StoreError: something that would not mean the same in another process: NaN, a lambda, an object without fields.

    Example:
        >>> canonical({"lr": 0.1, "epochs": (1, 2)})
        '{"epochs":[1,2],"lr":0.1}'
    """
    return one_line(plain(obj))


def one_line(content: Any) -> str:
    """The canonical text of what is JSON already."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key(spec: Any) -> str:
    """The name of a spec: the first 24 hex digits of the SHA-256 of its canonical JSON.

    Example:
        >>> key({"lr": 0.1}) == key({"lr": 0.1}) != key({"lr": 0.2})
        True
    """
    return text_key(canonical(spec))


def text_key(text: str) -> str:
    """The key of a spec whose canonical JSON is `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def plain(obj: Any, where: str = "spec") -> Any:  # noqa: PLR0911  one return for each kind of thing
    """The spec as nested dicts, lists, strings and numbers, which json can write and `rebuild` can read."""
    if isinstance(obj, np.generic):
        obj = obj.item()
    if obj is None or isinstance(obj, bool | int | str) or (isinstance(obj, float) and math.isfinite(obj)):
        return obj
    if isinstance(obj, float):
        raise StoreError(f"{where} must be a finite number; got {obj}. Write None where a number does not exist.")
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return _dataclass(obj, where)
    if isinstance(obj, Mapping):
        return {_name(name, where): plain(value, f"{where}.{name}") for name, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain(value, f"{where}[{i}]") for i, value in enumerate(obj)]
    if isinstance(obj, Tensor | np.ndarray):
        return _tensor(torch.as_tensor(obj))
    if isinstance(obj, functools.partial):
        return {"callable": _path(obj.func, where), "args": plain(obj.args, where), "kwargs": plain(obj.keywords, where)}
    if callable(obj):
        return {"callable": _path(obj, where)}
    raise StoreError(
        f"{where} must be made of dataclasses, dicts, lists, numbers, strings, functions and tensors; got {type(obj).__name__}. "
        "Make it a frozen dataclass."
    )


def rebuild(obj: Any, classes: Mapping[str, Any]) -> Any:
    """The spec that `plain` made this JSON of. Lists come back as tuples, as frozen dataclasses hold them.

    Args:
        obj: what `json.loads` returned.
        classes: the dataclasses by class name, and callables by "module:name", that may occur. Nothing is imported.

    Raises:
        StoreError: a name that is not among `classes`, fields that do not fit, another revision, or the digest of a tensor.

    Example:
        >>> from expunge.training.schedules import Cosine
        >>> rebuild(plain(Cosine(warmup=0.2)), {"Cosine": Cosine})
        Cosine(warmup=0.2)
    """
    if isinstance(obj, list):
        return tuple(rebuild(value, classes) for value in obj)
    if not isinstance(obj, dict):
        return obj
    tag = next((tag for tag in TAGS if tag in obj), None)
    if tag is None:
        return {name: rebuild(value, classes) for name, value in obj.items()}
    if tag == "sha256":
        raise StoreError("a spec holds only the digest of a tensor, not its values; cannot rebuild it. Rebuild the parts beside it.")
    if obj[tag] not in classes:
        raise StoreError(
            f"the spec names {obj[tag]!r}, which is not among {sorted(classes)}. Install the version that wrote it, or pass the class."
        )
    fields = {name: rebuild(value, classes) for name, value in obj.items() if name not in (tag, "revision")}
    if tag == "callable":
        return functools.partial(classes[obj[tag]], *fields["args"], **fields["kwargs"]) if "args" in obj else classes[obj[tag]]
    return _construct(classes[obj["class"]], fields, obj.get("revision"))


def _construct(cls: type, fields: dict[str, Any], revision: int | None) -> Any:
    current = _revision(cls)
    if "revision" not in _field_names(cls):
        if revision != current:
            raise StoreError(
                f"{cls.__name__} was stored at revision {revision}; this version has revision {current}. Run it again for a current result."
            )
    else:
        fields["revision"] = revision
    try:
        return cls(**fields)
    except TypeError as error:
        raise StoreError(
            f"the stored fields of {cls.__name__} do not fit this version: {error}. Run it again, or install the version that wrote it."
        ) from error


def _dataclass(obj: Any, where: str) -> dict[str, Any]:
    fields = {
        f.name: plain(getattr(obj, f.name), f"{where}.{f.name}") for f in dataclasses.fields(obj) if f.init and not _as_before(f, obj)
    }
    revision = _revision(type(obj))
    return {"class": type(obj).__name__} | ({} if revision is None else {"revision": revision}) | fields


def _as_before(field: dataclasses.Field[Any], obj: Any) -> bool:
    """Whether a field that came later (`setting(later=True)`) has the value that means what older versions did."""
    return bool(field.metadata.get("later")) and getattr(obj, field.name) == field.default


def _field_names(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def _revision(cls: type) -> int | None:
    revision = getattr(cls, "revision", None)
    return revision if isinstance(revision, int) and "revision" not in _field_names(cls) else None


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str) or name in TAGS:
        raise StoreError(f"names in {where} must be strings other than {', '.join(TAGS)}; got {name!r}. Choose another name.")
    return name


def _tensor(tensor: Tensor) -> dict[str, Any]:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return {"sha256": hashlib.sha256(data).hexdigest(), "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _path(function: Callable[..., Any], where: str) -> str:
    """ "module:name" of a function or class that another process can import under that name."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    try:
        found = operator.attrgetter(name)(sys.modules[module])
    except (AttributeError, KeyError, TypeError):
        found = None
    if found is not function:
        raise StoreError(
            f"{where} must be a function or class that another process can import; got {name or type(function).__name__}. "
            "Define it at the top level of a module; give it settings by functools.partial or as a frozen dataclass with __call__."
        )
    return f"{module}:{name}"
