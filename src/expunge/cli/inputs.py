"""From what is typed to what the library takes: data sets, models, forget sets, and files that may be written."""

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import DataError, MissingError, ModelError, StoreError
from .output import complain

if TYPE_CHECKING:
    from torch import nn

    from ..data.images import Samples
    from ..data.load import DataPair
    from ..data.split import Split
    from ..training.recipe import Recipe

IMPORT_PATH = re.compile(r"[\w.]+:[\w.]+")
DELIMITERS = re.compile(r"[,;\t]")
KINDS: dict[str, Any] = {
    "architecture": dict,
    "recipe": dict,
    "data": dict,
    "clipped": list,
    "history": list,
    "build": str,
    "settings": str,
    "seconds": int | float,
}


def load_pair(text: str, root: Path, size: str | None = None) -> "DataPair":
    """The training and the test set of a name, a path, or module:function.

    Raises:
        MissingError, DataError, ConfigError: as `load_data` and `import_object` do, or the function does not return a pair.
    """
    from ..data.from_dataset import from_dataset
    from ..data.load import DataPair, load_data
    from ..models import import_object

    if not is_import_path(text):
        return load_data(text, root=root, size=_size(size))
    pair = import_object(text)
    pair = pair() if callable(pair) else pair
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(f"{text} must return a pair (train, test) of data sets; got {type(pair).__name__}. Return both, as load_data does.")
    return DataPair(*map(from_dataset, pair))


def load_network(text: str, build: str | None = None) -> "nn.Module":
    """The model of a checkpoint file, or the one that module:function returns.

    Raises:
        MissingError, ModelError, StoreError: as `load_model` does.
    """
    from torch import nn

    from ..models import import_build, import_object, load_model

    if not is_import_path(text):
        metadata = metadata_of(text)
        if "architecture" not in metadata and build is None:
            recorded = metadata.get("build", "mypkg.nets:build")
            raise ModelError(f"{text} does not say how its model is made. Pass --build {recorded}, a function of yours that makes it.")
        return load_model(text, None if "architecture" in metadata or build is None else import_build(build))
    model = import_object(text)
    model = model if isinstance(model, nn.Module) else model()
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{text} must be, or return, a trained torch.nn.Module; got {type(model).__name__}. For a checkpoint file pass its path."
        )
    return model.eval()


def metadata_of(text: str) -> dict[str, Any]:
    """What a checkpoint says of itself; {} for module:function. What another tool or hand wrote under a name of ours in another form is left out."""
    from ..models import read_metadata

    if is_import_path(text):
        return {}
    return {name: value for name, value in read_metadata(text).items() if isinstance(value, KINDS.get(name, object))}


def training_of(metadata: dict[str, Any], build: str | None = None) -> dict[str, Any]:
    """ "build" and "recipe", as far as the metadata of a checkpoint (or --build) tell."""
    from ..models import Architecture, import_build

    known: dict[str, Any] = {}
    if "architecture" in metadata:
        try:
            known["build"] = Architecture.from_json(metadata["architecture"])
        except TypeError as error:
            raise ModelError(
                f"the checkpoint must name an architecture of this version; got other fields ({error}). Pass --build."
            ) from None
    elif build is not None:
        known["build"] = import_build(build)
    if "recipe" in metadata:
        known["recipe"] = recipe_of(metadata["recipe"])
    return known


def recipe_of(record: dict[str, Any]) -> "Recipe":
    """The recipe that `plain` made this record of.

    Raises:
        StoreError: its fields do not fit this version.
    """
    from ..spectral import CONTROLS
    from ..store import rebuild
    from ..training.recipe import Recipe
    from ..training.schedules import SCHEDULES

    return rebuild(record, {cls.__name__: cls for cls in (Recipe, *SCHEDULES.values(), *CONTROLS.values())})


def make_split(
    train: "Samples",
    indices: Path | None,
    classes: str | None,
    random: str | None,
    no_retain: bool = False,
    gone: list[int] | None = None,
) -> "Split":
    """The split of the one of three options that was given; with no_retain of its forget samples alone, and without an option of all samples.

    Args:
        gone: positions in `train` of samples that left before, and are in no part of the split.

    Raises:
        typer.BadParameter: a malformed option.
        DataError, MissingError: samples or classes that do not exist, or that are gone.
    """
    from ..data.split import forget_classes, forget_only, forget_random, forget_samples, samples_of

    named = None if indices is None else read_indices(indices)
    if gone is not None:
        train, named = _remaining(train, gone, named)
    if classes is not None:  # without retain data, there may be no samples but these
        names = read_classes(classes, train.classes)
        return forget_only(samples_of(train, names), names) if no_retain else forget_classes(train, names)
    if named is not None:
        split = forget_samples(train, named)
    elif random is not None:
        found = re.fullmatch(r"(\d+)(?::(\d+))?", random)
        if not found:
            raise typer.BadParameter(f"expected N or N:SEED, such as 500:1; got {random!r}.", param_hint="--forget-random")
        split = forget_random(train, int(found[1]), seed=int(found[2] or 0))
    else:
        return forget_only(train)
    return forget_only(split.forget) if no_retain else split


def _remaining(train: "Samples", gone: list[int], named: list[int] | None) -> tuple["Samples", list[int] | None]:
    """The samples that have not left, and the positions in them of those that are named by their positions in all."""
    import torch

    from ..checks import check_indices

    there = torch.ones(len(train), dtype=torch.bool)
    there[check_indices(gone, len(train), "positions in --without")] = False
    again = [] if named is None else [k for k in check_indices(named, len(train)).tolist() if not there[k]]
    if again or not there.any():
        raise DataError(
            f"samples that left by earlier requests cannot leave again; got {len(again) or len(gone)} of them (first: {(again or gone)[0]}). Take them out of one of the two files."
        )
    return train.subset(there.nonzero().flatten()), None if named is None else (there.cumsum(0) - 1)[torch.tensor(named)].tolist()


def read_classes(text: str, known: tuple[str, ...]) -> list[str | int]:
    """The names and numbers in "deer,4"; a class whose name has a comma is written alone.

    Raises:
        typer.BadParameter: a name that is empty.
    """
    names = [text] if text in known else [name.strip() for name in text.split(",")]
    if not all(names):
        raise typer.BadParameter(
            f"expected names or numbers with commas between them, such as deer,4; got {text!r}.", param_hint="--forget-classes"
        )
    return [int(name) if name.isdecimal() and name not in known else name for name in names]


def check_one(**options: Any) -> None:
    """Raises a usage error unless exactly one of these options was given."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        names = ", ".join("--" + name.replace("_", "-") for name in options)
        raise typer.BadParameter(f"expected exactly one of {names}; got {'none' if not given else len(given)}.")


def read_indices(path: Path) -> list[int]:
    """The integers in the first column of a text file; a first line that is not a number is a header.

    Raises:
        MissingError: no such file. DataError: a line that is no integer or repeats one (it is named), or no integer at all.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise MissingError(
            f"no file of indices {str(path)!r}; looked in {os.getcwd()}. Write one position a line, counted from 0."
        ) from None
    except (UnicodeDecodeError, PermissionError) as error:
        raise DataError(f"{path} must be a readable text file; got: {error}. Write one position a line, counted from 0.") from None
    seen: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        cell = DELIMITERS.split(line)[0].strip().strip('"').strip()
        if not cell and not line.strip():
            continue
        if not re.fullmatch(r"[+-]?\d+", cell):
            if number == 1:
                continue
            raise DataError(
                f"{path}, line {number}: expected an integer in the first column; got {cell!r}. Write one position a line, counted from 0."
            )
        if int(cell) in seen:
            raise DataError(f"{path}, line {number}: {int(cell)} is already in line {seen[int(cell)]}. Name each sample once.")
        seen[int(cell)] = number
    if not seen:
        raise DataError(f"{path} must name at least one sample; got none. Write one position a line, counted from 0.")
    return list(seen)


def check_writable(path: Path | None, force: bool) -> None:
    """Raises StoreError, before the work begins, unless the file can be written after it without replacing what must stay."""
    if path is None:
        return
    if path.is_dir():
        raise StoreError(f"{path} must be a file; got a folder. Name the file in it.")
    if path.exists() and not force:
        raise StoreError(f"{path} exists. Pass --force to replace it, or another name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise StoreError(
            f"cannot write to the folder {path.parent}: {error.strerror}. Change its permissions, or write elsewhere."
        ) from None


def check_same_classes(text: str, metadata: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Raises DataError if the data name more or fewer classes than the model of a checkpoint tells apart, or the same in another order: labels would mean other
    classes. Warns if they name other classes."""
    names = (metadata.get("data") or {}).get("classes")
    names = tuple(names) if isinstance(names, list) else ()
    n = metadata.get("architecture", {}).get("n_classes", len(names) or len(classes))
    if n != len(classes):
        named = ", ".join(classes[:3]) + ", …" * (len(classes) > 3)
        raise DataError(
            f"the data must name the {n} classes of {text}, in its order; got {len(classes)} ({named}). Where a class has no images left, keep its empty folder, "
            "or its name in the array classes."
        )
    others = [f"{new!r} for {old!r}" for old, new in zip(names, classes, strict=False) if old != new]
    if others and sorted(map(str, names)) == sorted(classes):
        raise DataError(
            f"the data must name the classes of {text} in its order; got {', '.join(others[:3])}. Name them as the model was trained."
        )
    if others:
        complain(
            "warning", f"the data name other classes than {text} was trained on: {', '.join(others[:3])}. Labels may mean other things."
        )


def check_same_data(text: str, metadata: dict[str, Any], train: "Samples") -> None:
    """Warns if a checkpoint was trained on other data than those that are at hand: positions would name other samples."""
    recorded = (metadata.get("data") or {}).get("fingerprint")
    if recorded is not None and recorded != train.fingerprint:
        complain(
            "warning",
            f"{text} was trained on another training set ({metadata['data'].get('name')}) than is given: positions may name other samples.",
        )


def check_as_trained(text: str, metadata: dict[str, Any]) -> None:
    """Warns if a checkpoint was clipped after it was trained: models that are trained by its recipe are not."""
    if "clipped" in metadata:
        complain(
            "warning",
            f"{text} was clipped after it was trained, and models that follow its recipe will not be. Train it with --clip to compare it with them.",
        )


def warn_of_other_recipe(metadata: dict[str, Any], recipe: "Recipe | None") -> None:
    """Warns if shadow models for the audit of a checkpoint will be trained by another recipe than it was."""
    from ..audits.health import recipe_flags

    for flag in recipe_flags(training_of(metadata).get("recipe"), recipe):
        complain("warning", flag.message)


def is_import_path(text: str) -> bool:
    """Whether the text is module:name, and not the name of a file."""
    return bool(IMPORT_PATH.fullmatch(text)) and not os.path.exists(text)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not found:
        raise typer.BadParameter(f"expected HxW, such as 32x32; got {text!r}.", param_hint="--size")
    return int(found[1]), int(found[2])
