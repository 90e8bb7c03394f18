"""The frozen protocol: one audit without knobs, so that two audits of that name can be compared, and what is missing for it is trained.

`standard-1` asks whether unlearned models can be told from retrained ones by membership attacks that learn from shadow models. Its anchors are the original (which knows the
forget set), at least three retrained models (which do not, and differ from one another: the null floor), and a control, the original fine-tuned to
give random labels on the forget set, which an audit that can see anything must tell from retraining.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from .auditing import audit
from .audits.base import MembershipAudit
from .audits.factors import Factors
from .audits.lira import LiRA
from .audits.loss_threshold import LossThreshold
from .audits.measures import check_measures
from .audits.result import Audit, Flag
from .audits.rmia import RMIA
from .audits.verdict import DISTINGUISHABLE
from .checks import choose
from .data.images import Samples
from .data.pool import pool
from .data.split import Split
from .errors import ConfigError, DataError
from .methods.base import Method
from .methods.random_label import RandomLabel
from .models.checkpoint import model_hash
from .spectral.spectrum import Spectrum
from .store import Store
from .stored import unlearn_stored
from .training.fleet import TrainTask, load_trained, train_fleet
from .training.recipe import Build, Recipe
from .training.shadow import ShadowModels, train_shadow_models

CONTROL = "control"
ANCHORS = ("original", "retrained", CONTROL)


@final
@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What an audit of this name does; a change of any field needs a new name.

    Attributes:
        n_retrained: retrained models at least. n_shadows: shadow models.
        attacks: the last one enters the average gap.
        control: a method that an audit must see through.
        fpr: false-positive rate at which true positives are counted.
        seed: of shadow models and control; retrained models have the seeds after it.

    Example:
        >>> rules = PROTOCOLS["standard-1"]
        >>> rules.n_retrained, rules.n_shadows, rules.control.name
        (3, 32, 'random_label')
    """

    name: str
    n_retrained: int
    n_shadows: int
    attacks: tuple[MembershipAudit, ...]
    control: Method
    fpr: float
    seed: int


PROTOCOLS = {
    "standard-1": Protocol(
        name="standard-1", n_retrained=3, n_shadows=32, attacks=(LossThreshold(), LiRA(), RMIA()), control=RandomLabel(), fpr=0.01, seed=0
    )
}


def standard_audit(
    original: nn.Module,
    unlearned: nn.Module | Mapping[str, nn.Module],
    split: Split,
    test: Samples,
    *,
    build: Build,
    recipe: Recipe,
    store: Store | str | Path = "runs",
    retrained: Sequence[nn.Module] = (),
    shadows: ShadowModels | None = None,
    protocol: str = "standard-1",
    details: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    factors: Mapping[str, Factors] | None = None,
    spectra: Mapping[str, Spectrum] | None = None,
    measures: Sequence[str] = (),
    title: str = "Audit of unlearning",
    workers: int | str = "auto",
    device: str | torch.device = "auto",
) -> Audit:
    """The audit by a frozen protocol, with a verdict on each model. What it needs and is not there is trained in the store; interrupt it and run it again to continue.

    Args:
        original: the model before unlearning. unlearned: one model, or several by name. How they were made does not matter.
        split: what was forgotten, with the retain data: the yardstick is a model that is trained on them.
        test: images that no model was trained on; where whole classes are forgotten, of these as well.
        build: returns a freshly initialised model of the original's architecture. recipe: how the original was trained, as far as that is known.
        store: where retrained models, shadow models and the control are kept.
        retrained: models that were retrained already, each with a seed of its own; more than the protocol asks for make the verdict sharper.
        shadows: shadow models of these data, if they are there already; at least as many as the protocol asks for.
        protocol: its name.
        details, seconds, factors, spectra, measures, title: as in `audit`; they change nothing in the verdicts.
        workers: processes that train side by side on a CPU. device: where models are trained and scored.

    Returns:
        The audit; `verdicts` has one for every model that was not retrained.

    Raises:
        ConfigError: an unlearned model by the name of an anchor, or none.
        MissingError: no protocol of that name.
        DataError: the retain data are gone, or too few shadow models; and what `audit` raises.
        ModelError: `build` makes another architecture than the original's, or a model diverged. StoreError: the store cannot be written.

    Flags: those of `audit`; ControlUndetected.

    Cost: with "standard-1" 32 trainings on half of the data and 3 on the retain set, once for a data set and forget set; then `audit`.

    Example:
        >>> PROTOCOLS["standard-1"].n_shadows, PROTOCOLS["standard-1"].n_retrained
        (32, 3)
    """
    rules = PROTOCOLS[choose("protocol", protocol, PROTOCOLS, "expunge.PROTOCOLS lists them.")]
    named = dict(unlearned) if isinstance(unlearned, Mapping) else {"unlearned": unlearned}
    _check(named, split, shadows, rules)
    if measures:
        check_measures(measures, {"original": original, "retrained": original} | named, split)
    store = store if isinstance(store, Store) else Store(Path(store))
    where: dict[str, Any] = {"workers": workers, "device": device}
    trained = _retrained(split, test, build, recipe, store, rules, retrained, **where)
    if shadows is None:
        shadows = train_shadow_models(build, split.train, test, n=rules.n_shadows, recipe=recipe, store=store, seed=rules.seed, **where)
    control = unlearn_stored(rules.control, original, split, build=build, store=store, seed=rules.seed, device=device)
    result = audit(
        {"original": original} | named | {CONTROL: control.model, "retrained": [*retrained, *trained]}, split, test,
        attacks=rules.attacks, shadows=shadows, recipe=recipe, fpr=rules.fpr, protocol=rules.name, title=title, factors=factors, spectra=spectra, measures=measures, device=device,
        details={CONTROL: f"the original, made to answer forget samples at random: {rules.control!r}"} | dict(details or {}),
        seconds={CONTROL: control.seconds} | dict(seconds or {}),
    )  # fmt: skip
    if result.verdict(CONTROL).word != DISTINGUISHABLE:
        result.flags.append(
            Flag(
                "ControlUndetected",
                "this audit does not tell a model that was made to answer forget samples at random from a retrained one: it would not see smaller faults either.",
            )
        )
    return result


def _retrained(
    split: Split, test: Samples, build: Build, recipe: Recipe, store: Store, rules: Protocol, given: Sequence[nn.Module], **where: Any
) -> list[nn.Module]:
    """The retrained models that are wanting, with seeds from 1 on; one that is among those given is passed over."""
    known, seed = {model_hash(model) for model in given}, rules.seed
    found: list[nn.Module] = []
    while len(given) + len(found) < rules.n_retrained:
        seeds = range(seed + 1, seed + 1 + rules.n_retrained - len(given) - len(found))
        tasks = [
            TrainTask(build=build, recipe=recipe, positions=split.retain.positions, seed=s, kind="retrained", name=f"retrained model {s}")
            for s in seeds
        ]
        models = [load_trained(cell, build) for cell in train_fleet(tasks, pool(split.train, test), store, **where)]
        found += [model for model in models if model_hash(model) not in known]
        seed = seeds[-1]
    return found


def _check(named: Mapping[str, nn.Module], split: Split, shadows: ShadowModels | None, rules: Protocol) -> None:
    taken = sorted(set(named) & set(ANCHORS))
    if taken or not named:
        raise ConfigError(
            f"unlearned models must be at least one, and not be called {', '.join(ANCHORS)}, which are the anchors; got {', '.join(named) or 'none'}. "
            "Pass {'mine': model}."
        )
    if not split.has_retain:
        raise DataError(
            f"protocol {rules.name} retrains models on the retain data; got a split without them. Make it with forget_samples on the whole "
            "training set, or use expunge.audit with models that were retrained elsewhere."
        )
    if shadows is not None and len(shadows) < rules.n_shadows:
        raise DataError(
            f"protocol {rules.name} needs {rules.n_shadows} shadow models; got {len(shadows)}. Train more: train_shadow_models(…, n={rules.n_shadows})."
        )
