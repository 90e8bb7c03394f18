"""The command `expunge`: its verbs, and what happens when one of them fails, is interrupted, or nobody reads its output."""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Annotated, Any, TextIO

import typer

from .audit import audit
from .bench import bench, report
from .card import card
from .catalogue import list_, show
from .demo import demo
from .output import complain
from .progress import shown
from .spectrum import spectrum
from .train import shadows, train
from .unlearn import unlearn

FAILED, INTERRUPTED = 1, 130
VERBS: dict[str, Callable[..., None]] = {
    "demo": demo, "list": list_, "show": show, "train": train, "unlearn": unlearn, "shadows": shadows, "audit": audit, "card": card,
    "spectrum": spectrum, "bench": bench, "report": report,
}  # fmt: skip

app = typer.Typer(
    name="expunge",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # ranges such as [0, 1) are text
    pretty_exceptions_enable=False,  # a mistake of ours is reported with Python's own traceback
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"expunge {version('expunge')}")
        raise typer.Exit


@app.callback()
def expunge(
    _: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    """Make trained image classifiers forget chosen training images, and measure how well they did.

    Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """


def guarded(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with its progress shown, and its errors as one line and an exit code; a mistake of ours keeps its traceback."""

    @functools.wraps(verb)
    def run(**options: Any) -> None:
        from ..errors import ExpungeError

        try:
            with shown(), _short_warnings():
                verb(**options)
                sys.stdout.flush()
        except ExpungeError as error:
            complain("error", error)
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            keeps = options.get("store") and (options.get("protocol") or options.get("shadows") != 0)
            kept = (
                f"finished models are kept in {options['store']}; the same command continues"
                if keeps
                else "nothing was written; run the same command again"
            )
            complain("interrupted", kept)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _close_stdout()
            raise typer.Exit(FAILED) from None

    return run


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Shows the library's warnings as one line each, without the line of code that raised them."""

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
    ) -> None:
        if category.__module__.startswith("expunge."):
            complain(f"warning: {category.__name__}", message)
        else:
            usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        usual, warnings.showwarning = warnings.showwarning, show
        yield


def _close_stdout() -> None:
    """Nobody reads stdout any more: what Python flushes when it ends must not fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


for _name, _verb in VERBS.items():
    app.command(_name)(guarded(_verb))


def main() -> None:
    """The console command. Ends the process with the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "≥" shows "?" instead of failing
    code: int | str | None = 0
    try:
        app(prog_name="expunge")
    except SystemExit as end:
        code = end.code
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()
        code = FAILED
    sys.exit(code)
