"""The models that `expunge audit` is about: their names, where they come from, shadow models of their kind, and why unlearning went as it did."""

from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .inputs import check_same_classes, check_same_data, training_of, warn_of_other_recipe
from .output import complain

if TYPE_CHECKING:
    from torch import nn

    from ..data.load import DataPair
    from ..data.split import Split
    from ..training.shadow import ShadowModels


def name_models(original: str, unlearned: list[str], retrained: list[str]) -> dict[str, str]:
    """The models by name, as `expunge.audit` names them: "retrained", "retrained 2", …; NAME=MODEL for unlearned ones of that name.

    Raises:
        ConfigError: a name twice.

    Example:
        >>> name_models("o.pt", ["u.pt", "salun=s.pt"], ["a.pt", "b.pt"])
        {'original': 'o.pt', 'unlearned': 'u.pt', 'salun': 's.pt', 'retrained': 'a.pt', 'retrained 2': 'b.pt'}
    """
    from ..report.twins import numbered

    named = [("original", original)]
    without_name = 0
    for text in unlearned:
        name, equals, model = text.partition("=")
        if not equals:
            name, model = numbered("unlearned", without_name), text
            without_name += 1
        named.append((name.strip(), model))
    named += [(numbered("retrained", k), text) for k, text in enumerate(retrained)]
    names = [name for name, _ in named]
    for name in names:
        if not name or names.count(name) > 1:
            raise ConfigError(
                f"each model must have a name of its own; got {name!r} {names.count(name)} times. Name them: --unlearned mine=model.pt."
            )
    return dict(named)


def check_origins(named: dict[str, str], metadata: dict[str, dict[str, Any]], split: "Split") -> None:
    """Refuses checkpoints with other classes, and warns of ones from other data or without another forget set, than the audit is about."""
    from ..models.lineage import describe_split, forgotten, forgotten_or_none, which

    mine = forgotten_or_none(describe_split(split))
    for name, known in metadata.items():
        check_same_classes(named[name], known, split.train.classes)
        if split.has_retain:
            check_same_data(named[name], known, split.train)
        left_out = forgotten(known)
        if mine and left_out and which(mine, left_out) is None:
            n = sum(each.n for each in left_out)
            complain("warning", f"{named[name]} was made without {n} samples that are not the forget set of this audit.")


def training_for(metadata: dict[str, Any], build: str | None, settings: dict[str, Any], purpose: str) -> dict[str, Any]:
    """ "build" and "recipe" of the original, from its checkpoint or from options.

    Raises:
        ConfigError: neither tells.
    """
    from .train import make_recipe

    known = training_of(metadata, build)
    if settings:
        known["recipe"] = make_recipe(settings, known.get("recipe"))
    warn_of_other_recipe(metadata, known.get("recipe"))
    remedies = {"build": "--build", "recipe": "the recipe's options (--epochs, --lr, …)"}
    missing = [name for name in remedies if name not in known]
    if missing:
        raise ConfigError(
            f"{purpose} need the original's build and recipe; its checkpoint does not tell {' and '.join(missing)}. "
            f"Pass {' and '.join(remedies[name] for name in missing)}, or train the original with `expunge train`."
        )
    return known


def shadow_models(training: dict[str, Any], pair: "DataPair", **options: Any) -> "ShadowModels":
    """Shadow models of the original's kind."""
    from ..training.shadow import train_shadow_models

    return train_shadow_models(training["build"], *pair, recipe=training["recipe"], **options)


def diagnosis_of(models: "dict[str, nn.Module]", split: "Split", device: str) -> dict[str, Any]:
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
    unlearned: dict[str, nn.Module | None] = {
        name: model for name, model in models.items() if name != "original" and not is_reference(name, "retrained")
    }
    adversarial = NearestL2PGD()(original, split.forget)
    measured = {
        name: factors(original, split, adversarial, unlearned=model, retrained=retrained)
        for name, model in (unlearned or {"original": None}).items()  # without an unlearned model, the factors that do not need one
    }
    return {"factors": measured, "spectra": {name: spectrum(model, split.train.shape) for name, model in models.items()}}
