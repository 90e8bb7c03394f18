"""Your own models and data by import path, as the command line names them: `mypkg.nets:build`."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from ..checks import choose
from ..errors import ConfigError, MissingError


def import_object(path: str) -> Any:
    """The object `name` of `module`, for a path "module:name"; modules in the current folder are found too.

    Args:
        path: an importable module, a colon, and a name in it (dots reach into classes).

    Raises:
        ConfigError: the path has another form.
        MissingError: there is no such module, or no such name in it.

    Example:
        >>> import_object("torchvision.models:resnet18").__name__
        'resnet18'
    """
    module_name, colon, names = path.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), *names.split("."))):
        raise ConfigError(
            f"an import path has the form 'package.module:name'; got {path!r}. For mypkg/nets.py with def build(): 'mypkg.nets:build'."
        )
    if os.getcwd() not in sys.path:  # stays there: worker processes inherit sys.path, and modules may import others later
        sys.path.insert(0, os.getcwd())
    found = _import(module_name)
    for name in names.split("."):
        if not hasattr(found, name):
            choose(
                f"object in {module_name!r}", name, [n for n in vars(found) if not n.startswith("_")], f"Define it, or correct {path!r}."
            )
        found = getattr(found, name)
    return found


def import_build(path: str) -> Callable[[], Any]:
    """The function module:name, which makes a model.

    Raises:
        ConfigError, MissingError: no such function.
    """
    build = import_object(path)
    if not callable(build):
        raise ConfigError(
            f"{path} must be a function that returns a model; got {type(build).__name__}. Define def build(): return … there."
        )
    return build


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it imports does not
        raise MissingError(
            f"no module named {error.name!r}; looked in {os.getcwd()} and the installed packages. "
            "Run from the folder that contains it, or install the package."
        ) from None
