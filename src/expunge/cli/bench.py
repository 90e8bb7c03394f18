"""`expunge bench` and `expunge report`: run a plan, and show what its store has."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import check_writable
from .options import Device, Force, Json, Root, Workers
from .output import percent, print_json, print_table
from .progress import LiveTable
from .train import as_workers

if TYPE_CHECKING:
    from ..bench import Results

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan: a TOML file (docs/benchmarks.md).", show_default=False)]
Scale = Annotated[
    str | None, typer.Option("--scale", metavar="NAME", help="One of the scales that the plan names, such as cpu.", show_default=False)
]
Cells = Annotated[Path, typer.Option("--store", metavar="FOLDER", help="The folder of all models and results.")]
Sort = Annotated[str, typer.Option("--sort", metavar="COLUMN", help="Order the methods by this column.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a self-contained page.", show_default=False)]
Markdown = Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Also write the tables as Markdown.", show_default=False)]
GAP = "average gap"


def bench(
    *,
    plan: PlanFile,
    scale: Scale = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to do, what is stored, and about how long the rest takes.")
    ] = False,
    store: Cells = Path("runs"),
    workers: Workers = "auto",
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            metavar="NAME",
            help="Where work is done: pool, serial, ray or slurm, with settings as in ray:num_gpus=0.25.",
        ),
    ] = "pool",
    device: Device = "auto",
    root: Root = Path("data"),
    sort: Sort = GAP,
    html: Html = None,
    markdown: Markdown = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Run a plan: every method on every original, compared with retraining.

    Interrupt it whenever you like: the same command goes on where it was, and several at once share the work on one store. Finished models are never made again, in
    this plan or another.
    """
    check_writable(html, force)
    check_writable(markdown, force)
    from ..bench import read_plan
    from ..checks import choose

    found = read_plan(plan, scale)
    choose("column", sort, found.columns())
    if dry_run:
        status = found.status(store, root=root, device=device)
        return print_json(status.to_dict()) if json else print(status)
    with LiveTable() as live:
        results = found.run(
            store,
            root=root,
            workers=as_workers(workers),
            device=device,
            executor=_executor(executor),
            watch=lambda r: live.show(_standing(r)),
        )
    _show(results, sort, html, markdown, json)


def report(
    *,
    plan: PlanFile,
    scale: Scale = None,
    store: Cells = Path("runs"),
    root: Root = Path("data"),
    sort: Sort = GAP,
    html: Html = None,
    markdown: Markdown = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Show what a plan has found, also while it runs.

    Trains nothing: what is not in the store yet is said to be missing.
    """
    check_writable(html, force)
    check_writable(markdown, force)
    from ..bench import read_plan

    _show(read_plan(plan, scale).results(store, root=root), sort, html, markdown, json)


def _show(results: "Results", sort: str, html: Path | None, markdown: Path | None, json: bool) -> None:
    results.check_column(sort)
    if html is not None:
        results.to_html(html)
    if markdown is not None:
        results.to_markdown(markdown, sort)
    if json:
        return print(results.to_json())
    for point in results.points:
        title, header, rows = point.table(sort)
        print_table(header, rows, title=title)
        print()
    print("\n".join(results.notes()))
    for path in filter(None, (html, markdown)):
        print(f"wrote {path}")


def _standing(results: "Results") -> tuple[list[str], list[list[str]]]:
    """The live table: how far each method is."""
    rows = []
    for point in results.points:
        for row in point.rows[2:]:
            gap = row.columns.get(GAP)
            tuned = row.tuned and f"{row.tuned['field']} = {row.tuned['best']:.3g}"
            rows.append([point.title, row.name, tuned or "", str(row.seeds), percent(gap.value) if gap else row.problem or ""])
    return ["", "method", "tuned", "seeds", GAP], rows


def _executor(text: str) -> Any:
    """The executor of "name" or "name:field=value,…"."""
    from ..settings import named
    from ..training.executors import EXECUTORS

    return named(text, "executor", EXECUTORS, "Write it as ray:num_gpus=0.25.")
