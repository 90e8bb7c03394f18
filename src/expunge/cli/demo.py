"""`expunge demo`: the whole story in minutes, on handwritten digits that need no download."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Json, Store, Workers
from .output import complain, print_json, print_table
from .train import as_workers


def demo(
    *,
    classes: Annotated[
        bool, typer.Option("--classes", help="Forget a whole digit instead of single images, with the methods for classes.")
    ] = False,
    store: Store = Path("runs"),
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="Where the report goes; an older one is replaced.")] = Path(
        "demo.html"
    ),
    workers: Workers = "auto",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """The whole story in minutes on the digits that come with scikit-learn.

    Trains a model, retrained models and shadow models, forgets a tenth of the training images with AMUN (with and without retain data) and with fine-tuning, and audits
    all of them against retraining. With --classes all images of one digit leave instead, by TRW, DELETE, Boundary Shrink, Boundary Expanding and fine-tuning; the report
    shows what each model takes them for, and whether an attacker with many models can tell. A second run does no work again.
    """
    start = time.monotonic()
    from ..audits.tables import notes, tables
    from ..demo import Demo
    from ..demo_classes import ClassDemo
    from ..report import write

    story = ClassDemo() if classes else Demo()
    result = story.run(store, workers=as_workers(workers), device=device)
    write(result, html)
    if json:
        print_json(result)
        return
    for title, header, rows in tables(result):
        print_table(header, rows, title=title)
        print()
    print("\n".join(notes(result)))
    complain("done", f"in {time.monotonic() - start:.0f} s; the report is {html}, finished models are in {store}")
