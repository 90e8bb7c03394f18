"""`expunge list` and `expunge show`: what there is, read from the registries."""

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Annotated, Any

import typer

from .card import is_checkpoint, show_checkpoint
from .options import Json, Store
from .output import percent, print_json, print_table

RUNS = "runs"
KINDS = {
    "methods": "method",
    "attacks": "attack",
    "audits": "audit",
    "measures": "measure",
    "datasets": "dataset",
    "architectures": "architecture",
    "controls": "control",
    "recipes": "recipe",
}
SHARE = 0.1  # of the training set that is forgotten, where costs are shown


def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help=f"{', '.join(KINDS)}, or {RUNS}; all but {RUNS} by default.", show_default=False)
    ] = None,
    store: Store = Path("runs"),
    json: Json = False,
) -> None:
    """List what there is: methods, attacks, audits, data, models.

    With `runs`: the models in a store, and how accurate they are.
    """
    from ..checks import choose

    if kind == RUNS:
        return _list_runs(store, json)
    if kind is not None:
        choose("list", kind, [*KINDS, RUNS], "`expunge list` shows all.")
    found = {
        name: [entry_of(name, *item) for item in sorted(registry.items())]
        for name, registry in registries().items()
        if kind in (None, name)
    }
    if json:
        return print_json(found if kind is None else found[kind])
    for position, (name, entries) in enumerate(found.items()):
        if kind is None:
            print(("\n" if position else "") + name.upper())
        print_table(list(entries[0]), [list(entry.values()) for entry in entries])


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `expunge list` shows, or a checkpoint.", show_default=False)],
    json: Json = False,
) -> None:
    """Explain one of them: what it does, and its settings.

    For a method, attack or audit, also the range and the default of each setting. A method and a recipe may share a name: then both. For a checkpoint, where it comes
    from: its data, and each change from training through every request.
    """
    from ..checks import choose

    if is_checkpoint(name) and all(name not in registry for registry in registries().values()):
        return show_checkpoint(name, json)
    named = [(key, kind, found) for kind, registry in registries().items() for key, found in registry.items()]
    *kinds, last = KINDS.values()
    choose(f"{', '.join(kinds)} or {last}", name, [key for key, _, _ in named], "`expunge list` shows all.")
    first, *others = [(kind, found) for key, kind, found in named if key == name]
    if json:
        from ..store import plain

        return print_json(
            plain(_description(name, *first) | ({"also": [_description(name, *other) for other in others]} if others else {}))
        )
    for position, (kind, found) in enumerate([first, *others]):
        print("\n" * (position > 0), end="")
        _explain(**_description(name, kind, found))


def _description(name: str, kind: str, found: Any) -> dict[str, Any]:
    settings = _settings(found() if kind == "recipes" else found)
    return {
        "name": name, "kind": KINDS[kind], "description": inspect.getdoc(found) or "", "settings": settings, "published": getattr(found, "published", {}),
    }  # fmt: skip


def _explain(name: str, kind: str, description: str, settings: list[dict[str, str]], published: dict[str, Any]) -> None:
    print(f"{name} ({kind})\n\n{description}")
    if settings:
        print()
        print_table(list(settings[0]), [list(setting.values()) for setting in settings])
    if published:
        print()
        print_table(
            ["published", "settings"], [[key, ", ".join(f"{k}={v!r}" for k, v in values.items())] for key, values in published.items()]
        )


def registries() -> dict[str, dict[str, Any]]:
    """Everything that has a name, by kind."""
    from ..attacks import ATTACKS
    from ..audits import AUDITS, MEASURES
    from ..data.load import DATASETS
    from ..methods import METHODS
    from ..models import ARCHITECTURES
    from ..spectral import CONTROLS
    from ..training.recipes import RECIPES

    return {
        "methods": METHODS, "attacks": ATTACKS, "audits": AUDITS, "measures": MEASURES, "datasets": DATASETS, "architectures": ARCHITECTURES, "controls": CONTROLS,
        "recipes": RECIPES,
    }  # fmt: skip


def entry_of(kind: str, name: str, found: Any) -> dict[str, str]:
    """One row: the columns depend on the kind alone."""
    entry = {"name": name}
    if kind == "methods":
        entry["retain data"] = found.retain if isinstance(found.retain, str) else "optional"  # a property: it depends on a setting
        entry["forgets"] = found.scenario
        entry["cost"] = _cost(found)
    if kind == "audits":
        entry["shadow models"] = "needed" if found.needs_shadows else "none"
    entry["what it does" if kind not in ("datasets", "architectures") else "what it is"] = (
        (inspect.getdoc(found) or "").split("\n")[0].rstrip(":")
    )
    if kind in ("methods", "attacks", "audits"):
        entry["paper"] = found.paper
    if kind == "recipes":
        made = found()
        entry |= {name.replace("_", " "): getattr(made, name) for name in ("epochs", "batch_size", "lr")} | {
            "schedule": repr(made.schedule)
        }
    return entry


def _cost(method: Any) -> str:
    """Passes over the training set with default settings."""
    required: dict[str, Any] = {f.name: None for f in dataclasses.fields(method) if f.default is f.default_factory is dataclasses.MISSING}
    if "build" in required:
        required["build"] = _no_model
    passes = method(**required).cost(SHARE)
    return f"{passes:.0f}" if passes >= 10 else f"{passes:.2g}"


def _no_model() -> Any:
    """In place of the user's function that builds a model."""
    raise NotImplementedError


def _settings(found: Any) -> list[dict[str, str]]:
    """Of a class the defaults, of a recipe the values."""
    from ..checks import describe

    if not dataclasses.is_dataclass(found):
        return []
    hints = typing.get_type_hints(found if isinstance(found, type) else type(found))
    value = "default" if isinstance(found, type) else "value"
    return [
        {
            "setting": f.name,
            "range": describe(hints[f.name], f.metadata),
            value: _default(f) if value == "default" else repr(getattr(found, f.name)),
        }
        for f in dataclasses.fields(found)
    ]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())


def _list_runs(store: Path, json: bool) -> None:
    from ..errors import MissingError
    from ..store import Store as Cells

    if not store.is_dir():
        raise MissingError(f"no store {str(store)!r}. Pass --store, the folder that `expunge shadows` was given.")
    runs: list[dict[str, Any]] = []
    for cell in Cells(store).cells():
        result = cell.result() if cell.done else {}
        runs.append({"kind": cell.kind, "key": cell.folder.name, "done": cell.done, "seed": cell.spec.get("seed")} | {
            name: result.get(name) for name in ("train_accuracy", "held_out_accuracy", "seconds")
        })  # fmt: skip
    if json:
        return print_json(runs)
    rows = [
        [
            r["kind"],
            r["key"],
            "yes" if r["done"] else "no",
            r["seed"],
            percent(r["train_accuracy"]),
            percent(r["held_out_accuracy"]),
            r["seconds"],
        ]
        for r in runs
    ]
    print_table(["kind", "key", "done", "seed", "own samples", "other samples", "seconds"], rows)
