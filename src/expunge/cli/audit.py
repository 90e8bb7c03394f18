"""`expunge audit`: the audit of checkpoints, by the frozen protocol if asked for, or of a file of answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .audited_models import check_origins, diagnosis_of, name_models, shadow_models, training_for
from .inputs import check_as_trained, check_one, check_writable, load_network, load_pair, make_split, metadata_of, read_classes, training_of
from .options import (
    DATA_HELP,
    Build,
    Device,
    Force,
    ForgetClasses,
    ForgetIndices,
    ForgetRandom,
    Json,
    Root,
    Seed,
    Size,
    Store,
    Workers,
    with_recipe,
)
from .output import print_table
from .train import as_workers

if TYPE_CHECKING:
    from ..audits.result import Audit


FPR = 0.01


@with_recipe
def audit(
    *,
    original: Annotated[
        str | None, typer.Option("--original", metavar="MODEL", help="The model that saw the forget set.", show_default=False)
    ] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="DATA", help=DATA_HELP, show_default=False)] = None,
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
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers",
            metavar="FILE",
            help="Instead of models and data, a file of what models answered: .npz with labels, groups and logits:NAME (or probabilities:NAME, predictions:NAME), or "
            ".csv with id, group, label, model and prediction or logit_0, …; see docs/protocol.md.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help="Follow a frozen protocol, standard-1: what it needs and is not given (retrained models, shadow models, a control) is trained in the store.",
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
    measure: Annotated[
        list[str] | None,
        typer.Option("--measure", metavar="NAME", help="A further measure (`expunge list measures`); may be repeated.", show_default=False),
    ] = None,
    fpr: Annotated[
        float, typer.Option("--fpr", metavar="X", help="False-positive rate at which true positives are counted, in (0, 1).")
    ] = FPR,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a self-contained page.", show_default=False)
    ] = None,
    save_answers: Annotated[
        Path | None,
        typer.Option(
            "--save-answers",
            metavar="FILE",
            help="Also write what the models answer (.npz), so that somebody else can audit it by --answers.",
            show_default=False,
        ),
    ] = None,
    build: Build = None,
    seed: Seed = 0,
    workers: Workers = "auto",
    device: Device = "auto",
    root: Root = Path("data"),
    size: Size = None,
    force: Force = False,
    json: Json = False,
    settings: dict[str, Any],
) -> None:
    """Measure what models still remember of a forget set.

    And how far unlearned models are from retrained ones. A MODEL is a checkpoint, or module:function that returns the trained model.
    --seed is that of the shadow models. The recipe's options are for shadow and retrained models, where the original's checkpoint does not tell how it was trained.
    """
    check_writable(html, force)
    check_writable(save_answers, force)
    if answers is not None:
        given = [original, data, unlearned, retrained, protocol, forget_indices, forget_random, build, settings, measure, save_answers]
        if any(given) or no_retain or shadows or factors or seed:
            raise typer.BadParameter(
                "expected --answers with --forget-classes, --fpr, --html and --json at most: the file has its models.",
                param_hint="--answers",
            )
        return _show(_of_answers(answers, forget_classes, fpr), html, json)
    if original is None or data is None:
        raise typer.BadParameter("expected --original and --data, or --answers.")
    if protocol and (shadows or fpr != FPR or seed or save_answers):
        raise ConfigError("a protocol has no knobs: --shadows, --fpr, --seed and --save-answers do not go with --protocol. Leave them out.")
    options = {"forget_indices": forget_indices, "forget_classes": forget_classes, "forget_random": forget_random}
    if not no_retain or any(value is not None for value in options.values()):
        check_one(**options)
    named = name_models(original, unlearned or [], retrained or [])
    metadata = {name: metadata_of(text) for name, text in named.items()}
    models = {name: load_network(text, build) for name, text in named.items()}
    pair = load_pair(data, root, size)
    split = make_split(pair.train, forget_indices, forget_classes, forget_random, no_retain)
    check_origins(named, metadata, split)
    where = {"store": store, "workers": as_workers(workers), "device": device}
    about: dict[str, Any] = {
        "details": {name: known["settings"] for name, known in metadata.items() if "settings" in known},
        "seconds": {name: known["seconds"] for name, known in metadata.items() if "seconds" in known},
    }
    training = {}
    if shadows or protocol:
        check_as_trained(named["original"], metadata["original"])
        training = training_for(metadata["original"], build, settings, "retrained and shadow models" if protocol else "shadow models")
    diagnosis: dict[str, Any] = (diagnosis_of(models, split, device) if factors else {}) | {"measures": measure or []}
    if protocol:
        result = _by_protocol(protocol, models, split, pair.test, **training, **where, **about, **diagnosis)
    else:
        from ..auditing import audit as run

        trained = shadow_models(training, pair, n=shadows, seed=seed, **where) if shadows else None
        recipe = training_of(metadata["original"]).get("recipe") if shadows else None
        result = run(models, split, pair.test, shadows=trained, recipe=recipe, fpr=fpr, device=device, **about, **diagnosis)
        if save_answers is not None:
            _save(save_answers, models, split, pair.test, shadows=trained, device=device)
    _show(result, html, json)


def _by_protocol(name: str, models: dict[str, Any], split: Any, test: Any, **options: Any) -> "Audit":
    from ..protocol import standard_audit
    from ..report.twins import is_reference

    retrained = [model for key, model in models.items() if is_reference(key, "retrained")]
    unlearned = {key: model for key, model in models.items() if key != "original" and not is_reference(key, "retrained")}
    return standard_audit(models["original"], unlearned, split, test, retrained=retrained, protocol=name, **options)


def _of_answers(path: Path, forget_classes: str | None, fpr: float) -> "Audit":
    from ..auditing import audit_answers
    from ..audits import read_answers

    found = read_answers(path, read_classes(forget_classes, ()) if forget_classes else ())
    return audit_answers(found.logits, found.audited, fpr=fpr, flags=found.flags)


def _save(path: Path, models: dict[str, Any], split: Any, test: Any, **options: Any) -> None:
    from ..auditing import answers_of
    from ..audits import save_answers

    found = answers_of(models, split, test, **options)
    save_answers(path, found.audited, found.logits)


def _show(result: "Audit", html: Path | None, json: bool) -> None:
    if html is not None:
        result.to_html(html)
    if json:
        print(result.to_json())
    else:
        _print(result, html)


def _print(result: "Audit", html: Path | None) -> None:
    for title, header, rows in result.tables():
        print_table(header, rows, title=title)
        print()
    print("\n".join(result.notes()))
    if html is not None:
        print(f"wrote {html}")
