"""`expunge audit`: the standard protocol on checkpoints."""

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
    describe_split,
    load_network,
    load_pair,
    make_split,
    metadata_of,
    same_forget_set,
    training_of,
)
from .options import Build, Data, Device, Force, ForgetClasses, ForgetIndices, ForgetRandom, Json, Root, Seed, Size, Store, Workers
from .output import complain, print_table
from .train import as_workers

if TYPE_CHECKING:
    from torch import nn

    from ..audits.result import Audit
    from ..data.load import DataPair
    from ..data.split import Split
    from ..training.shadow import ShadowModels


def audit(
    *,
    original: Annotated[str, typer.Option("--original", metavar="MODEL", help="The model that saw the forget set.", show_default=False)],
    data: Data,
    unlearned: Annotated[
        list[str] | None,
        typer.Option(
            "--unlearned", metavar="[NAME=]MODEL", help="A model to be audited; may be repeated, with a name for each.", show_default=False
        ),
    ] = None,
    retrained: Annotated[
        list[str] | None,
        typer.Option(
            "--retrained",
            metavar="MODEL",
            help="A model trained without the forget set; two or more give the null floor.",
            show_default=False,
        ),
    ] = None,
    forget_indices: ForgetIndices = None,
    forget_classes: ForgetClasses = None,
    forget_random: ForgetRandom = None,
    no_retain: Annotated[
        bool,
        typer.Option(
            "--no-retain", help="The retain data are gone: audit without them. The training data may be the forget samples alone."
        ),
    ] = False,
    shadows: Annotated[
        int,
        typer.Option(
            "--shadows", metavar="N", help="Shadow models for the strong attacks, even; those that the store lacks are trained. 0 = none."
        ),
    ] = 0,
    store: Store = Path("runs"),
    factors: Annotated[
        bool,
        typer.Option(
            "--factors",
            help="Also say why unlearning went well or badly: the factors of AMUN's theorem, and the layers' singular values. Costs an adversarial example of "
            "each forget sample (up to some 150 forward and backward passes), and seconds for each model.",
        ),
    ] = False,
    fpr: Annotated[
        float, typer.Option("--fpr", metavar="X", help="False-positive rate at which true positives are counted, in (0, 1).")
    ] = 0.01,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a self-contained page.", show_default=False)
    ] = None,
    build: Build = None,
    seed: Seed = 0,
    workers: Workers = "auto",
    device: Device = "auto",
    root: Root = Path("data"),
    size: Size = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure what models still remember of a forget set.

    And how far unlearned models are from retrained ones. A MODEL is a checkpoint, or module:function that returns the trained model.
    --seed is that of the shadow models.
    """
    options = {"forget_indices": forget_indices, "forget_classes": forget_classes, "forget_random": forget_random}
    if not no_retain or any(value is not None for value in options.values()):
        check_one(**options)
    check_writable(html, force)
    from ..auditing import audit as run

    named = name_models(original, unlearned or [], retrained or [])
    metadata = {name: metadata_of(text) for name, text in named.items()}
    models = {name: load_network(text, build) for name, text in named.items()}
    pair = load_pair(data, root, size)
    split = make_split(pair.train, *options.values(), no_retain)
    _check_origins(named, metadata, split)
    if shadows:
        check_as_trained(named["original"], metadata["original"])
    trained = (
        _shadows(metadata["original"], build, pair, n=shadows, store=store, seed=seed, workers=as_workers(workers), device=device)
        if shadows
        else None
    )
    diagnosis = _diagnosis(models, split, device) if factors else {}
    result = run(
        models, split, pair.test, shadows=trained, fpr=fpr, device=device, **diagnosis,
        details={name: known["settings"] for name, known in metadata.items() if "settings" in known},
        seconds={name: known["seconds"] for name, known in metadata.items() if "seconds" in known},
    )  # fmt: skip
    if html is not None:
        result.to_html(html)
    if json:
        print(result.to_json())
    else:
        _print(result, html)


def name_models(original: str, unlearned: list[str], retrained: list[str]) -> dict[str, str]:
    """The models by name, as `expunge.audit` names them: "retrained", "retrained 2", …; NAME=MODEL for unlearned ones of that name.

    Raises:
        ConfigError: a name twice.

    Example:
        >>> name_models("o.pt", ["u.pt", "salun=s.pt"], ["a.pt", "b.pt"])
        {'original': 'o.pt', 'unlearned': 'u.pt', 'salun': 's.pt', 'retrained': 'a.pt', 'retrained 2': 'b.pt'}
    """
    named = [("original", original)]
    without_name = 0
    for text in unlearned:
        name, equals, model = text.partition("=")
        if not equals:
            without_name += 1
            name, model = _numbered("unlearned", without_name), text
        named.append((name.strip(), model))
    named += [(_numbered("retrained", k), text) for k, text in enumerate(retrained, start=1)]
    names = [name for name, _ in named]
    for name in names:
        if not name or names.count(name) > 1:
            raise ConfigError(
                f"each model must have a name of its own; got {name!r} {names.count(name)} times. Name them: --unlearned mine=model.pt."
            )
    return dict(named)


def _numbered(name: str, k: int) -> str:
    return name if k == 1 else f"{name} {k}"


def _check_origins(named: dict[str, str], metadata: dict[str, dict[str, Any]], split: "Split") -> None:
    """Refuses checkpoints with other classes, and warns of ones from other data or without another forget set, than the audit is about."""
    for name, known in metadata.items():
        check_same_classes(named[name], known, split.train.classes)
        if split.has_retain:
            check_same_data(named[name], known, split.train)
        left_out = known.get("forget") or known.get("without")
        if left_out and not same_forget_set(left_out, describe_split(split)):
            complain("warning", f"{named[name]} was made without {left_out['n']} samples that are not the forget set of this audit.")


def _shadows(metadata: dict[str, Any], build: str | None, pair: "DataPair", **options: Any) -> "ShadowModels":
    from ..training.shadow import train_shadow_models

    known = training_of(metadata, build)
    missing = [name for name in ("build", "recipe") if name not in known]
    if missing:
        raise ConfigError(
            f"shadow models need the original's build and recipe; its checkpoint does not tell {' and '.join(missing)}. "
            "Train the original with `expunge train`, or leave out --shadows."
        )
    return train_shadow_models(known["build"], *pair, recipe=known["recipe"], **options)


def _diagnosis(models: "dict[str, nn.Module]", split: "Split", device: str) -> dict[str, Any]:
    """The factors of each unlearned model and the spectra of all models, as `expunge.audit` takes them."""
    from ..attacks import NearestL2PGD
    from ..device import resolve_device
    from ..diagnosis import factors
    from ..report.twins import is_reference
    from ..spectral.spectrum import spectrum

    for model in models.values():
        model.to(resolve_device(device))
    original = models["original"]
    retrained = [model for name, model in models.items() if is_reference(name, "retrained")] or None
    unlearned = {name: model for name, model in models.items() if name != "original" and not is_reference(name, "retrained")}
    adversarial = NearestL2PGD()(original, split.forget)
    measured = {
        name: factors(original, split, adversarial, unlearned=model, retrained=retrained)
        for name, model in (unlearned or {"original": None}).items()  # without an unlearned model, the factors that do not need one
    }
    return {"factors": measured, "spectra": {name: spectrum(model, split.train.shape) for name, model in models.items()}}


def _print(result: "Audit", html: Path | None) -> None:
    for title, header, rows in result.tables():
        print_table(header, rows, title=title)
        print()
    print("\n".join(result.notes()))
    if html is not None:
        print(f"wrote {html}")
