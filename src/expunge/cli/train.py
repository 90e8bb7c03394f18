"""`expunge train` and `expunge shadows`: models from scratch."""

import dataclasses
import time
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import (
    check_as_trained,
    check_writable,
    is_import_path,
    load_pair,
    metadata_of,
    read_indices,
    training_of,
    warn_of_other_recipe,
)
from .options import Build, DataArgument, Device, Force, Json, Output, Root, Seed, Size, Store, Workers, with_recipe
from .output import percent, print_json, print_table
from .record import as_words, data_of, name_of

if TYPE_CHECKING:
    from torch import nn

    from ..data.images import Samples
    from ..training.recipe import Recipe

ARCH_HELP = "An architecture (`expunge list architectures`), or module:function of yours that returns a fresh model."
Without = Annotated[
    Path | None,
    typer.Option(
        "--without", metavar="FILE", help="Leave out the training samples at these positions: a retrained model.", show_default=False
    ),
]


@with_recipe
def train(
    *,
    data: DataArgument,
    arch: Annotated[str, typer.Argument(metavar="ARCH", help=ARCH_HELP, show_default=False)],
    output: Output,
    without: Without = None,
    seed: Seed = 0,
    device: Device = "auto",
    root: Root = Path("data"),
    size: Size = None,
    force: Force = False,
    json: Json = False,
    settings: dict[str, Any],
) -> None:
    """Train a model, and write it to a checkpoint.

    An original, or with --without a retrained model. The checkpoint knows its architecture, recipe, seed and data, so that later verbs
    need not be told.
    """
    check_writable(output, force)
    from ..data.split import forget_samples
    from ..models import save_model
    from ..models.lineage import describe_split
    from ..provenance import provenance
    from ..store import plain
    from ..training.recipe import train_model

    recipe = make_recipe(settings)
    gone = None if without is None else read_indices(without)
    pair = load_pair(data, root, size)
    split = None if gone is None else forget_samples(pair.train, gone)
    build = make_build(arch, pair.train)
    start = time.perf_counter()
    model = train_model(build, split.retain if split else pair.train, recipe, seed=seed, device=device)
    seconds = round(time.perf_counter() - start, 3)
    groups = {"retain": split.retain, "forget": split.forget} if split else {"train": pair.train}
    accuracy = accuracies(model, groups | {"test": pair.test}, device)
    metadata = {
        "recipe": plain(recipe), "seed": seed, "data": data_of({}, data, pair),
        "without": split and describe_split(split), "accuracy": accuracy, "seconds": seconds, "provenance": provenance(),
        "arguments": [name_of(data), arch, *as_words(without=without, seed=seed, size=size, **_as_flags(settings))],
    }  # fmt: skip
    own = is_import_path(arch)
    save_model(model, output, metadata=metadata | ({"build": arch} if own else {}), architecture=None if own else build)
    if json:
        print_json({"output": str(output), "accuracy": accuracy, "seconds": seconds})
    else:
        print_table(["accuracy on", ""], [[group, percent(value)] for group, value in accuracy.items()])
        print(f"wrote {output} after {seconds:.1f} s")


@with_recipe
def shadows(
    *,
    data: DataArgument,
    arch: Annotated[str | None, typer.Argument(metavar="[ARCH]", help=f"{ARCH_HELP} Or leave it to --like.", show_default=False)] = None,
    n: Annotated[
        int, typer.Option("--n", metavar="N", help="How many models, even: the more, the sharper the audit. 64 is usual, 16 a start.")
    ] = 64,
    store: Store = Path("runs"),
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="CHECKPOINT",
            help="Take architecture and recipe from this checkpoint: the one to be audited.",
            show_default=False,
        ),
    ] = None,
    build: Build = None,
    seed: Seed = 0,
    workers: Workers = "auto",
    device: Device = "auto",
    root: Root = Path("data"),
    size: Size = None,
    json: Json = False,
    settings: dict[str, Any],
) -> None:
    """Train, or continue to train, shadow models.

    Each learns a random half of training and test set together. Interrupt it whenever you like: the same command continues, and several
    at once share the work.
    """
    if (arch is None) == (like is None):
        raise typer.BadParameter("expected ARCH or --like, and not both: the architecture of the model to be audited.")
    from ..training.shadow import train_shadow_models

    metadata = {} if like is None else metadata_of(like)
    check_as_trained(like or "", metadata)
    base = training_of(metadata, build) if like is not None else {}
    recipe = make_recipe(settings, base.get("recipe"))
    warn_of_other_recipe(metadata, recipe)
    pair = load_pair(data, root, size)
    if like is not None and "build" not in base:
        raise typer.BadParameter(
            f"{like} does not say how its model is made; pass ARCH instead of --like, or --build.", param_hint="--like"
        )
    network = base["build"] if arch is None else make_build(arch, pair.train)
    trained = train_shadow_models(network, *pair, n=n, recipe=recipe, store=store, seed=seed, workers=as_workers(workers), device=device)
    result: dict[str, Any] = {
        "models": len(trained),
        "store": str(store),
        "train_accuracy": trained.accuracy.included,
        "held_out_accuracy": trained.accuracy.excluded,
    }
    if json:
        print_json(result)
    else:
        print_table(
            ["accuracy on", ""], [["own half", percent(result["train_accuracy"])], ["other half", percent(result["held_out_accuracy"])]]
        )
        print(f"{len(trained)} shadow models are in {store}")


def make_recipe(settings: dict[str, Any], base: "Recipe | None" = None) -> "Recipe":
    """The recipe that the settings name, or `base`, or the default one, with the other settings in place of its own."""
    from ..settings import value_of
    from ..training.recipe import Recipe
    from ..training.recipes import recipe

    if "recipe" in settings:
        base, settings = recipe(settings["recipe"]), {name: value for name, value in settings.items() if name != "recipe"}
    hints = typing.get_type_hints(Recipe)
    read = {name: value_of(value, hints[name]) if isinstance(value, str) else value for name, value in settings.items()}
    return dataclasses.replace(base or Recipe(), **read)


def _as_flags(settings: dict[str, Any]) -> dict[str, Any]:
    """The recipe's options, with --no-NAME for what was switched off."""
    return {f"no_{name}" if value is False else name: True if isinstance(value, bool) else value for name, value in settings.items()}


def make_build(arch: str, train: "Samples") -> Any:
    """The architecture of this name for these data, or the user's function."""
    from ..models import architecture, import_build

    return import_build(arch) if is_import_path(arch) else architecture(arch, train)


def as_workers(text: str) -> int | str:
    """ "auto" or a number; whatever else is left to the library's check."""
    return int(text) if text.isdecimal() else text


def accuracies(model: "nn.Module", groups: dict[str, "Samples"], device: str) -> dict[str, float]:
    """The share of right answers in each group."""
    from ..device import resolve_device
    from ..metrics.accuracy import accuracy
    from ..training.inference import logits_of

    model = model.to(resolve_device(device))
    return {name: accuracy(logits_of(model, samples), samples.labels).value for name, samples in groups.items()}
