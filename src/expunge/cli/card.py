"""`expunge card`: the section of a model card about unlearning; and what `expunge show` says of a checkpoint."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import read_indices
from .output import print_json, print_table

if TYPE_CHECKING:
    from ..models.lineage import Change

SUFFIXES = (".safetensors", ".pt", ".pth")


def card(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="What `expunge unlearn` (or `train --without`) wrote.", show_default=False)
    ],
    *,
    audit: Annotated[
        list[Path] | None,
        typer.Option(
            "--audit",
            metavar="FILE",
            help="An audit of this model: the page of `expunge audit --html`, or what --json printed; may be repeated. Another model's is refused.",
            show_default=False,
        ),
    ] = None,
    list_ids: Annotated[
        list[Path] | None,
        typer.Option(
            "--list-ids",
            metavar="FILE",
            help="Also list the forgotten ids, which are in this file (as for --forget-indices) and must have the checkpoint's hash; may be repeated.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The card to write: a new file, or one of yours, of which only the section is replaced, or added at the end. Default: print it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the model card section of an unlearned model.

    Markdown for a README.md, as Hugging Face has it: what was forgotten, of which data, from which model and how, what the audit found, what that is not, and the commands
    that repeat it. Without --audit it says that nobody measured.
    """
    from ..report.model_card import model_card

    section = model_card(checkpoint, audit or [], path=output, ids=[read_indices(path) for path in list_ids or []])
    print(section if output is None else f"wrote {output}")


def is_checkpoint(name: str) -> bool:
    """Whether a name that `show` got is that of a checkpoint."""
    return Path(name).suffix in SUFFIXES or Path(name).is_file()


def show_checkpoint(path: str, json: bool) -> None:
    """Prints what a checkpoint says of itself: its data and architecture, and each change that made it; text of strangers without what a terminal would act on."""
    from ..models import read_metadata
    from ..models.lineage import breaks, changes
    from ..report.markdown import visible

    metadata = read_metadata(path)
    if json:
        return print_json(metadata)
    found = changes(metadata)
    print(f"{visible(path)} (checkpoint)\n")
    print_table(["what", "value"], [[visible(name), visible(value)] for name, value in _facts(metadata)] or [["metadata", "none"]])
    for k, change in enumerate(found):
        print(f"\n{k + 1}. {change.kind}" + (", but not from the model of the change before, by the hashes" if k in breaks(found) else ""))
        print_table(["what", "value"], [[visible(name), visible(value, 2000)] for name, value in _of_change(change)])


def _facts(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What holds for the whole model, and what other tools wrote."""
    data = metadata.get("data")
    told = ("history", "data", "forget", "without", "accuracy", "provenance", "cost", "tuning", "arguments", "clipped", "method", "settings", "paper", "seed", "original", "seconds")  # fmt: skip
    if isinstance(data, dict):
        classes = data.get("classes")
        yield from ((f"data: {key.replace('_', ' ')}", value) for key, value in data.items() if key != "classes")
        if isinstance(classes, list):
            yield "classes", ", ".join(map(str, classes))
    yield from ((name, value) for name, value in metadata.items() if name not in told or (name == "data" and not isinstance(value, dict)))


def _of_change(change: "Change") -> Iterator[tuple[str, Any]]:
    """What a change tells of itself, in the order in which one asks."""
    yield from (
        (name, value) for name, value in (("method", change.method), ("settings", change.settings), ("paper", change.paper)) if value
    )
    if change.forgotten:
        what = change.forgotten
        yield (
            "forgot",
            f"{what.n:,} images" + (f" of {what.of:,}" if what.of else "") + (f": {', '.join(what.classes)}" if what.classes else ""),
        )
        yield "hash of their ids", what.digest
    facts = {
        "from the model": change.original,
        "to the model": change.result,
        "seed": change.seed,
        "seconds": change.seconds,
        "passes over the data": change.passes,
    }
    yield from ((name, value) for name, value in facts.items() if value is not None)
    yield from ((f"accuracy on {group}", f"{100 * share:.1f} %") for group, share in change.accuracy)
    yield from change.made_with
    if change.arguments:
        yield "arguments", shlex.join(change.arguments)
