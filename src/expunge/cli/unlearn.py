"""`expunge unlearn`: one method on one checkpoint."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .inputs import (
    check_as_trained,
    check_one,
    check_same_classes,
    check_same_data,
    check_writable,
    load_network,
    load_pair,
    make_split,
    metadata_of,
    read_indices,
    training_of,
)
from .options import Build, Data, Device, Force, ForgetClasses, ForgetIndices, ForgetRandom, Json, Output, Root, Seed, Size
from .output import percent, print_json, print_table
from .record import as_words, check_gone, data_of
from .train import accuracies

if TYPE_CHECKING:
    from torch import nn

    from ..data.images import Samples
    from ..data.split import Split
    from ..methods import Method
    from ..tuning import Tuning


def unlearn(
    *,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="What to unlearn with (`expunge list methods`).", show_default=False)],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The original: a checkpoint, or module:function that returns the trained model.",
            show_default=False,
        ),
    ],
    data: Data,
    output: Output,
    forget_indices: ForgetIndices = None,
    forget_classes: ForgetClasses = None,
    forget_random: ForgetRandom = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="A hyperparameter of the method; may be repeated. `expunge show METHOD` lists them.",
            show_default=False,
        ),
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(
            "--published",
            metavar="EXPERIMENT",
            help="Start from the hyperparameters of a published experiment (`expunge show METHOD`); --set overrides them.",
            show_default=False,
        ),
    ] = None,
    tune: Annotated[
        int | None,
        typer.Option(
            "--tune",
            metavar="N",
            help="First choose the method's step size, with at most N trials, by forgetting other samples and retraining without those once.",
            show_default=False,
        ),
    ] = None,
    no_retain: Annotated[
        bool,
        typer.Option(
            "--no-retain",
            help="The retain data are gone: use the forget samples alone, which the data may consist of. Without a --forget option: all the data given.",
        ),
    ] = False,
    without: Annotated[
        Path | None,
        typer.Option(
            "--without",
            metavar="FILE",
            help="The training samples at these positions have left by earlier requests: they are not used, and not learned again.",
            show_default=False,
        ),
    ] = None,
    build: Build = None,
    seed: Seed = 0,
    device: Device = "auto",
    root: Root = Path("data"),
    size: Size = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Remove training images from a trained model.

    Samples or whole classes; the new model is written to a checkpoint, and the model in --model stays as it is. A model that was unlearned before can be given
    again: its checkpoint keeps what each request named, and --without names the samples that are gone.

    Field values are numbers, words (true, false, none), or for fields that are objects their name with settings:
    --set epochs=5 --set use_retain=false --set attack=nearest_ddn:steps=100 --set schedule=step:every=1,gamma=0.1
    """
    options = {"forget_indices": forget_indices, "forget_classes": forget_classes, "forget_random": forget_random}
    if not no_retain or any(value is not None for value in options.values()):
        check_one(**options)
    check_writable(output, force)
    from ..costs import measure_cost
    from ..models import save_model
    from ..models.lineage import unlearning_record

    metadata = metadata_of(model)
    given = training_of(metadata, build)
    chosen = make_method(method, settings or [], given, no_retain, published)
    if chosen.scenario == "classes" and forget_classes is None:
        raise ConfigError(
            f"{method} forgets whole classes, and would take the images of the same class that stay along; got none named. Pass --forget-classes A,B (with --no-retain "
            "the data may hold them alone), or a method for samples (`expunge list methods`)."
        )
    if tune is not None or ((recipe := getattr(chosen, "recipe", None)) is not None and recipe is given.get("recipe")):
        check_as_trained(model, metadata)
    original = load_network(model, build)
    pair = load_pair(data, root, size)
    check_same_classes(model, metadata, pair.train.classes)
    if not no_retain:
        check_same_data(model, metadata, pair.train)
    gone = None if without is None else read_indices(without)
    check_gone(model, metadata, pair.train, gone, reads=chosen.reads_retain)
    split = make_split(pair.train, forget_indices, forget_classes, forget_random, no_retain, gone)
    found = None if tune is None else _tuned(chosen, original, split, pair.test, given, trials=tune, seed=seed, device=device)
    chosen = found.method if found else chosen
    with measure_cost() as cost:
        unlearned = chosen(original, split, seed=seed, device=device)
    groups = {"forget": split.forget, "test": pair.test}
    accuracy = {"original": accuracies(original, groups, device), "unlearned": accuracies(unlearned, groups, device)}
    record = unlearning_record(chosen, split, original, seed=seed, history=metadata, cost=cost, accuracy=accuracy["unlearned"])
    record |= {"data": data_of(metadata, data, pair, no_retain), "tuning": found and found.to_dict()}
    record["arguments"] = [method, *as_words(data=data, **options, without=without, set=settings, published=published, tune=tune, no_retain=no_retain, seed=seed, build=build, size=size)]  # fmt: skip
    save_model(unlearned, output, metadata=record, architecture=given["build"] if "architecture" in metadata else None)
    if json:
        print_json({
            "output": str(output), "method": str(chosen), "forgotten": len(split.forget_indices), "accuracy": accuracy,
            "seconds": round(cost.seconds, 3), "cost": cost.to_dict(), "tuning": found and found.to_dict(),
        })  # fmt: skip
    else:
        print(f"{found}\n" if found else "", end="")
        print_table(["accuracy on", *accuracy], [[group, *(percent(a[group]) for a in accuracy.values())] for group in groups])
        print(f"wrote {output} after {cost.seconds:.1f} s, {cost.passes(len(split.train)):.2g} passes over the data")


def _tuned(method: "Method", model: "nn.Module", split: "Split", test: "Samples", given: dict[str, Any], **options: Any) -> "Tuning":
    """What `--tune` finds; `given` is what is known of the original's training."""
    from ..tuning import tune

    if not {"build", "recipe"} <= set(given):
        raise ConfigError(
            "--tune trains a model anew, as the original was trained, and its checkpoint does not tell how; got no recipe. Train it with `expunge train`."
        )
    return tune(method, model, split, test, build=given["build"], recipe=given["recipe"], **options)


def make_method(name: str, settings: list[str], given: dict[str, Any], no_retain: bool = False, published: str | None = None) -> "Method":
    """The method with these settings; `build` and `recipe`, where it has them, are those of the checkpoint."""
    from ..checks import choose
    from ..methods import METHODS
    from ..settings import configured

    cls = METHODS[choose("method", name, METHODS, "`expunge list methods` shows all.")]
    fields = {name for name, field in cls.__dataclass_fields__.items() if field.default is dataclasses.MISSING}
    needed = {"build", "recipe"} & fields - {text.partition("=")[0].strip() for text in settings} - set(given)
    if needed:
        raise ConfigError(
            f"{name} needs {' and '.join(sorted(needed))} of the original, and its checkpoint does not tell; got none. "
            "Train the original with `expunge train`, or retrain with `expunge train … --without ids.csv`."
        )
    # What a method can do without is for the user to pass: --set build=mypkg.nets:build.
    given = {name: value for name, value in given.items() if name in fields}
    if published is not None:
        given = given | dict(cls.published[choose("experiment", published, cls.published, f"`expunge show {name}` has them all.")])
    method = configured(cls, settings, given)
    if no_retain and method.reads_retain and "use_retain" in cls.__dataclass_fields__:
        raise ConfigError(f"{name} reads retain samples unless it is told not to; got --no-retain. Add --set use_retain=false.")
    return method
