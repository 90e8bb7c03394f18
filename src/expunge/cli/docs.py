"""Writes docs/cli.md from what the verbs say of themselves, and the tables of README.md and docs/methods.md from the registries: `python -m expunge.cli.docs`, in the root of the repository."""

import re
import sys
from pathlib import Path
from typing import Any

from typer.main import get_command

from .app import app

PAGE = Path("docs/cli.md")
WITH_TABLES = (Path("README.md"), Path("docs/methods.md"))
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(?=<!-- end of table -->)", re.DOTALL)
INTRODUCTION = """\
# Command line

<!-- Written by `python -m expunge.cli.docs`. Change the help texts in src/expunge/cli instead. -->

{help}

Results go to stdout as tables, or with `--json` as [JSON](json.md); progress, warnings and errors go to stderr.
`expunge VERB --help` says what this page says.

| exit code | means |
|---|---|
| 0 | done |
| 1 | failed: one line on stderr says what was expected, what was given, and what to do |
| 2 | wrong usage: an unknown option, or one that is missing |
| 130 | interrupted; finished models in a store are kept, and the same command continues |

```console
$ expunge train digits small -o original.safetensors
$ expunge unlearn amun --model original.safetensors --data digits --forget-random 100 -o unlearned.safetensors
$ expunge unlearn retrain --model original.safetensors --data digits --forget-random 100 -o retrained.safetensors
$ expunge shadows digits --like original.safetensors --n 16
$ expunge audit --original original.safetensors --unlearned unlearned.safetensors --retrained retrained.safetensors \\
    --data digits --forget-random 100 --shadows 16 --html audit.html
$ expunge spectrum original.safetensors --clip 1.0 --data digits -o clipped.safetensors --html spectrum.html
```

Your own models and data are named by import path: `--data mypkg.data:load`, a function that returns (train, test);
`--build mypkg.nets:build`, a function that returns a fresh model; `--model mypkg.nets:trained`, one that returns the trained model.
"""


def page() -> str:
    """The whole page as Markdown."""
    group: Any = get_command(app)  # a group of commands, of click's own copy in typer
    summary = " ".join((group.help or "").split("\n\n")[0].split())
    return "\n".join([INTRODUCTION.format(help=summary), *(_verb(name, command) for name, command in group.commands.items())])


def with_tables(text: str) -> str:
    """A page with its tables as the registries have them now."""
    from .markdown_tables import TABLES

    return TABLE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n", text)


def _verb(name: str, command: Any) -> str:
    shown = [p for p in command.params if p.name != "help"]
    arguments = [_metavar(p) for p in shown if p.param_type_name == "argument"]
    needed = [f"{max(p.opts, key=len)} {_metavar(p)}" for p in shown if p.param_type_name == "option" and p.required]
    usage = " ".join(["expunge", name, *arguments, *needed, "[OPTIONS]"])
    text = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    rows = ["| option | meaning | default |", "|---|---|---|", *map(_row, shown)] if shown else []
    return "\n".join([f"## expunge {name}", "", text, "", "```", usage, "```", "", *rows, ""])


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{_metavar(parameter)}`"
    else:
        flags = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))
        name = flags if parameter.is_flag else f"{flags} `{_metavar(parameter)}`"
    default = "required" if parameter.required else _default(parameter)
    return f"| {name} | {parameter.help or ''} | {default} |".replace("  |", " |")


def _metavar(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _default(parameter: Any) -> str:
    value = parameter.default
    return "" if value is None or value is False or isinstance(value, list | tuple) else f"`{value}`"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
    (folder / PAGE).write_text(page(), encoding="utf-8")
    for path in WITH_TABLES:
        (folder / path).write_text(with_tables((folder / path).read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE} and the tables of {', '.join(map(str, WITH_TABLES))}")
