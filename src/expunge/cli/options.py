"""Options that several verbs share, each written once."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

DATA_HELP = "A data set (`expunge list datasets`), an .npz file, a folder of images, or module:function that returns (train, test)."

Data = Annotated[str, typer.Option("--data", metavar="DATA", help=DATA_HELP, show_default=False)]
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP, show_default=False)]
Root = Annotated[Path, typer.Option("--root", metavar="FOLDER", help="The folder of named data sets, or to download them to.")]
Size = Annotated[
    str | None,
    typer.Option("--size", metavar="HxW", help="Resize the images of a folder to this height and width in pixels.", show_default=False),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The checkpoint to write (safetensors).", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Decides everything random; on a CPU the same seed gives the same bits.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")]
Workers = Annotated[
    str, typer.Option("--workers", metavar="N", help="Processes that train side by side on a CPU; auto = one for each core.")
]
Store = Annotated[Path, typer.Option("--store", metavar="FOLDER", help="The folder of finished models, which are not trained again.")]
Build = Annotated[
    str | None,
    typer.Option(
        "--build",
        metavar="MODULE:NAME",
        help="Your function that makes the model, where a checkpoint does not say how.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else there.")]
ForgetIndices = Annotated[
    Path | None,
    typer.Option(
        "--forget-indices",
        metavar="FILE",
        help="Forget the training samples at these positions, from 0: one a line, or a CSV's first column.",
        show_default=False,
    ),
]
ForgetClasses = Annotated[
    str | None,
    typer.Option(
        "--forget-classes", metavar="A,B", help="Forget these classes: names or numbers, with commas between them.", show_default=False
    ),
]
ForgetRandom = Annotated[
    str | None,
    typer.Option(
        "--forget-random",
        metavar="N[:SEED]",
        help="Forget N samples chosen at random; the same seed chooses the same ones.",
        show_default=False,
    ),
]

# Type and help of an option for each field of Recipe. Not read from the class, because importing that takes seconds; a test compares them.
RECIPE: dict[str, tuple[type, str]] = {
    "epochs": (int, "Passes over the training set. [30]"),
    "lr": (float, "Peak step size of SGD. [0.1]"),
    "batch_size": (int, "Samples in a step. [128]"),
    "momentum": (float, "In [0, 1). [0.9]"),
    "weight_decay": (float, "On all parameters. [0.0005]"),
    "nesterov": (bool, "Use Nesterov's momentum. [no-nesterov]"),
    "label_smoothing": (float, "Share of the uniform distribution in the labels, in [0, 1). [0.0]"),
    "schedule": (
        str,
        "Learning rate over time: constant, cosine:warmup=0.1, step:every=40,gamma=0.1, multi_step:milestones=91,136 or triangular:peak=0.2. [cosine:warmup=0.1]",
    ),
    "augment": (bool, "Vary the images as the data set says. [augment]"),
    "precision": (str, "auto, float32 or bfloat16. [auto]"),
    "clip": (
        str,
        "Keep the layers' singular values below a bound: a control such as clip:max_norm=1.0 (`expunge list controls`), or the bound alone. [none]",
    ),
}
OPTIONS = {"recipe": (str, "A recipe by name (`expunge list recipes`), which the options below change."), **RECIPE}
METAVARS = {int: "N", float: "X", str: "NAME"}


def with_recipe(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with --recipe and one option for each field of Recipe; it gets those that were given as the dict `settings`."""

    @functools.wraps(verb)
    def run(**options: Any) -> None:
        given = {name: options.pop(name) for name in OPTIONS}
        verb(**options, settings={name: value for name, value in given.items() if value is not None})

    signature = inspect.signature(verb)
    own = [p for name, p in signature.parameters.items() if name != "settings"]
    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name)) for name in OPTIONS]
    signature = signature.replace(parameters=[*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *extra])
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    vars(run)["__signature__"] = signature
    return run


def _option(name: str) -> Any:
    kind, text = OPTIONS[name]
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        return Annotated[bool | None, typer.Option(f"{flag}/{flag.replace('--', '--no-')}", help=text, show_default=False)]
    return Annotated[kind | None, typer.Option(flag, metavar=METAVARS[kind], help=text, show_default=False)]
