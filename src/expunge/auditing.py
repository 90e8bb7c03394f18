"""The audit: how close are these models to one that never saw the forget set?

Every model is scored on forget, retain and test images; membership attacks try to tell forget from test images; and each number is compared with that of the
retrained model on the same samples. Where whole classes are forgotten, test images of those classes are a group of their own: the non-members, and the images
whose answers are compared with the retrained models'. The function is the protocol: which groups, which pairing, which flags.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import progress
from .audits.answers_file import Answers
from .audits.assemble import assemble, scored
from .audits.audited import Audited, unseen_groups
from .audits.base import MembershipAudit
from .audits.compared import Models, one_by_one
from .audits.factors import Factors
from .audits.health import recipe_flags
from .audits.lira import LiRA
from .audits.loss_threshold import LossThreshold
from .audits.measures import check_measures, measure
from .audits.result import Audit, Flag
from .audits.rmia import RMIA
from .audits.told_apart import ClassLeakage
from .checks import choose
from .data.images import Samples, places
from .data.split import Split
from .device import device_of, resolve_device
from .errors import ConfigError, DataError, HealthFlag, ModelError
from .metrics.signals import check_logits
from .models.checkpoint import model_hash
from .models.lineage import describe_split
from .report import thumbnail
from .spectral.spectrum import Spectrum
from .training.inference import check_model, logits_of
from .training.recipe import Recipe
from .training.shadow import ShadowModels


def audit(
    models: Models,
    split: Split,
    test: Samples,
    *,
    attacks: Sequence[MembershipAudit] | None = None,
    shadows: ShadowModels | None = None,
    recipe: Recipe | None = None,
    reference: str = "retrained",
    fpr: float = 0.01,
    details: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    leakage: Sequence[ClassLeakage] = (),
    factors: Mapping[str, Factors] | None = None,
    spectra: Mapping[str, Spectrum] | None = None,
    measures: Sequence[str] = (),
    title: str = "Audit of unlearning",
    protocol: str | None = None,
    device: str | torch.device = "auto",
) -> Audit:
    """Compares models with the retrained one on forget, retain and test images, with intervals, a null floor and health flags.

    Args:
        models: by name. "original", and the reference, are understood as such; a list of models under one name (several retrained ones, say) becomes "retrained",
            "retrained 2", … Two or more retrained models give the null floor: what the audit says about two models that are both right.
        split: what was forgotten, over the original's training set. If whole classes were, the result's `classes` says what models answer on them.
        test: images that no model was trained on, of the same kind: the non-members. Where whole classes are forgotten, it must have images of them too.
        attacks: membership attacks; default: loss threshold, and LiRA and RMIA if there are shadow models. The last one enters the average gap.
            Several of one class, with other settings, are told apart by their repr instead of the class name.
        shadows: models trained on random halves of `split.train` and `test`, from `train_shadow_models`.
        recipe: how the original was trained, where that is known: shadow models of another recipe are flagged.
        reference: the name of the retrained model that gaps are to. Without a model named "retrained" there are no gaps.
        fpr: false-positive rate at which true positives are counted, in (0, 1).
        details, seconds, title: what the report should say about each model (its method, its cost), and its heading.
        leakage: U-LiRA of the forgotten classes, from `class_leakage`, to be shown beside what the models answer on them.
        factors: of AMUN's theorem, from `expunge.factors` on this split, by the name of the unlearned model: why it is near to retraining or far from it.
        spectra: from `expunge.spectrum`, by the name of the model: how far its layers can stretch a change of their input.
        measures: names of further measures, such as "agreement" or "probes" (`audits.MEASURES`, `expunge list measures`); they need retrained models.
        protocol: the name that the result should carry; set by `standard_audit`, which follows it.
        device: where models are scored; they stay where they are.

    Raises:
        ConfigError: no model, the same attack twice, or an attack that needs shadow models without any.
        MissingError: `reference`, or a name in `factors` or `spectra`, is none of the models.
        DataError: shadow models or factors of other data, or too few shadow models; test images that are training images, or none of a forgotten class.
        ModelError: a model's outputs do not fit the labels.

    Cost: one forward pass of each model over `split.train` and `test`; the attacks are a sort. Where classes are forgotten, also K − 1 support vector machines a model.

    Example:
        >>> from expunge import *
        >>> train, test = load_data("digits")
        >>> build, recipe, split = architecture("small", train), Recipe(epochs=2), forget_random(train, 100)
        >>> model = train_model(build, train, recipe)
        >>> retrained = Retrain(build=build, recipe=recipe)(model, split)
        >>> result = audit({"original": model, "retrained": retrained}, split, test)
        >>> 0 <= result["LossThreshold", "original"].auc_low <= result["LossThreshold", "original"].auc <= 1
        True
    """
    named = _flat(models)
    reference_name = _reference(reference, named)
    audited, groups = _audited(split, test, shadows)
    named_attacks = _attacks(attacks, shadows is not None)
    _check_extras(split, named, factors or {}, spectra or {}, leakage)
    if measures:
        check_measures(measures, named, split, reference=reference)
    flags = recipe_flags(recipe, shadows.recipe if shadows else None)
    answers = {}
    for done, (name, model) in enumerate(named.items()):
        progress.report("scoring models", done, len(named), name)
        answers[name] = scored(_logits(name, model, groups, device, flags), audited, named_attacks)
    progress.report("scoring models", len(named), len(named))
    result = assemble(
        answers, audited, named_attacks, reference=reference_name, fpr=fpr, flags=flags, details=details, seconds=seconds, leakage=leakage,
        title=title, protocol=protocol, hashes={name: _hash(model) for name, model in named.items()}, forget=describe_split(split),
        factors=dict(factors or {}), spectra=dict(spectra or {}), measures=measure(measures, named, split, test, reference=reference, device=device) if measures else [],
    )  # fmt: skip
    _show_exposed(result, split.forget)
    return result


def _show_exposed(result: Audit, forget: Samples) -> None:
    """Adds pictures and class names of the most exposed forget samples, where images are grey or in colour."""
    exposed = torch.tensor(result.most_exposed(), dtype=torch.int64)
    positions = places(forget.ids, exposed) if len(exposed) else exposed
    if len(positions) and forget.shape[0] in (1, 3):
        for sample, image in zip(exposed.tolist(), forget.fetch(positions).cpu(), strict=True):
            result.thumbnails[sample] = thumbnail(image.clamp(0, 1))
    result.labels.update({s: forget.classes[int(forget.labels[p])] for s, p in zip(exposed.tolist(), positions.tolist(), strict=True)})


def answers_of(
    models: Models, split: Split, test: Samples, *, shadows: ShadowModels | None = None, device: str | torch.device = "auto"
) -> Answers:
    """What models answer on the samples of an audit, for `save_answers`: somebody else can then audit them without models, images or training code.

    The arguments, and what is raised, are those of `audit`; `audit_answers(found.logits, found.audited)` gives its result.

    Cost: one forward pass of each model over `split.train` and `test`. In memory: K numbers for each model and sample.

    Example:
        >>> import expunge
        >>> train, test = expunge.load_data("digits")
        >>> model, split = expunge.architecture("small", train)(), expunge.forget_random(train, 20)
        >>> found = expunge.answers_of({"original": model}, split, test)
        >>> {group: tuple(logits.shape) for group, logits in found.logits["original"].items()}
        {'forget': (20, 10), 'retain': (980, 10), 'test': (797, 10)}
    """
    audited, groups = _audited(split, test, shadows)
    flags: list[Flag] = []
    logits = {name: _logits(name, model, groups, device, flags) for name, model in _flat(models).items()}
    return Answers(audited, logits, flags)


def audit_answers(
    answers: Mapping[str, Mapping[str, Tensor]],
    audited: Audited,
    *,
    attacks: Sequence[MembershipAudit] | None = None,
    reference: str = "retrained",
    fpr: float = 0.01,
    flags: Sequence[Flag] = (),
    title: str = "Audit of unlearning",
) -> Audit:
    """The audit of models that are not here: from what they answer on the audited samples.

    Args:
        answers: logits (n, K) of each model, by its name ("original", "unlearned", "retrained", "retrained 2", …) and by group of `audited.labels`.
        audited: the samples. See `read_answers`, which reads both from a file.
        flags: to be listed beside the audit's own.

    The other arguments, and what is raised, are those of `audit`.

    Example:
        >>> from expunge.audits import Audited
        >>> labels = torch.arange(40) % 2
        >>> audited = Audited(labels={"forget": labels, "test": labels}, classes=("cat", "dog"))
        >>> sure = torch.nn.functional.one_hot(labels, 2) * torch.rand(40, 1)
        >>> audit_answers({"original": {"forget": sure + 1.0 * labels[:, None] - 0.5, "test": sure}}, audited).sizes["forget"]
        40
    """
    named_attacks = _attacks(attacks, audited.shadow_logits is not None)
    if not answers:
        raise ConfigError(
            "an audit needs at least one model; got none. Pass {'original': logits by group, 'unlearned': …, 'retrained': …}."
        )
    reference_name = _reference(reference, answers)
    found = {}
    for name, logits in answers.items():
        for group, labels in audited.labels.items():
            if group not in logits:
                raise DataError(f"every model must answer the samples of each group; got none of {name!r} for {group!r}. Add them.")
            check_logits(logits[group], labels, f"logits of {name} on {group}")
        found[name] = scored(logits, audited, named_attacks)
    return assemble(found, audited, named_attacks, reference=reference_name, fpr=fpr, flags=flags, title=title)


def _reference(reference: str, named: Mapping[str, object]) -> str | None:
    if reference not in named and reference != "retrained":
        choose("model", reference, named, "reference= is the name of the retrained model.")
    return reference if reference in named else None


def audited_samples(split: Split, test: Samples, shadows: ShadowModels | None) -> Audited:
    """The samples of an audit: arguments, and what is raised, as in `audit`."""
    return _audited(split, test, shadows)[0]


def _audited(split: Split, test: Samples, shadows: ShadowModels | None) -> tuple[Audited, dict[str, Samples]]:
    """The audited samples, without pixels and with them."""
    if split.train.shape != test.shape or split.train.classes != test.classes:
        raise DataError(
            f"test images must be of the training set's kind: shape {split.train.shape} and its {len(split.train.classes)} classes; "
            f"got {test.shape} and {len(test.classes)} classes. Load both with one load_data call."
        )
    _check_unseen(split.train, test)
    unseen = unseen_groups(test.labels, split.forget_classes, test.classes)
    groups: dict[str, Samples] = {"forget": split.forget}
    if split.has_retain:
        groups["retain"] = split.retain
    groups |= {name: test.subset(positions) if len(unseen) > 1 else test for name, positions in unseen.items()}
    seen: dict[str, Any] = {}
    if shadows is not None:
        nonmembers = groups["forget_test" if "forget_test" in groups else "test"]
        columns = shadows.columns(split.forget, nonmembers)
        _check_columns(shadows, columns, torch.cat([split.forget.labels, nonmembers.labels]))
        seen = {
            "shadow_logits": shadows.logits[:, columns],
            "included": shadows.included[:, columns],
            "shadow_accuracy": shadows.accuracy.excluded,
        }
    audited = Audited(
        labels={name: samples.labels for name, samples in groups.items()}, classes=tuple(test.classes), forget_classes=tuple(split.forget_classes),
        forget_ids=split.forget.ids, identity={"training set": split.train.fingerprint[:16], "test set": test.fingerprint[:16]}, **seen,
    )  # fmt: skip
    return audited, groups


def _check_unseen(train: Samples, test: Samples) -> None:
    """Members that pass for non-members would make every model look unlearned. Finds those that come from one and the same set."""
    seen = int(torch.isin(test.ids, train.ids).sum()) if train.root is test.root else 0
    if seen or test.fingerprint == train.fingerprint:
        raise DataError(
            f"test images must be ones that no model was trained on; got {seen or len(test)} of the training set among {len(test)}. "
            "Pass the other part of the load_data call, or a subset that the training set does not share."
        )


def _check_columns(shadows: ShadowModels, columns: Tensor, labels: Tensor) -> None:
    if (columns < 0).any() or not torch.equal(shadows.labels[columns], labels):
        raise DataError(
            f"shadow models must be trained on halves of the audited training and test set; got models of {shadows.n_train} training and "
            f"{len(shadows.labels) - shadows.n_train} test samples with other labels. Train them with train_shadow_models(build, split.train, test, …)."
        )


def _check_extras(
    split: Split,
    named: Mapping[str, nn.Module],
    factors: Mapping[str, Factors],
    spectra: Mapping[str, Spectrum],
    leakage: Sequence[ClassLeakage],
) -> None:
    for name, found in factors.items():
        choose("model", name, named, "factors= takes the names of audited models.")
        if not torch.equal(found.ids.sort().values, split.forget.ids.sort().values):
            raise DataError(
                f"factors must be of the audited split's {len(split.forget)} forget samples; got those of {name!r} of {len(found.ids)} samples, not the "
                "same ones. Measure them with expunge.factors(original, split, …)."
            )
    for name in spectra:
        choose("model", name, named, "spectra= takes the names of audited models.")
    forgotten = [split.train.classes[k] for k in split.forget_classes]
    leaks = [found.name for found in leakage]
    if set(leaks) - set(forgotten):
        raise DataError(
            f"leakage must be of the forgotten classes, {', '.join(forgotten)}; got {', '.join(leaks)}. Measure it with class_leakage on this split."
        )


def _attacks(attacks: Sequence[MembershipAudit] | None, shadows: bool) -> dict[str, MembershipAudit]:
    """The attacks by the name of their class, or by their repr where that is ambiguous."""
    if attacks is None:
        attacks = [LossThreshold(), LiRA(), RMIA()] if shadows else [LossThreshold()]
    wanting = [type(a).__name__ for a in attacks if a.needs_shadows and not shadows]
    if not attacks or wanting:
        raise ConfigError(
            f"{' and '.join(wanting)} need shadow models; got none. Pass shadows=train_shadow_models(…), or attacks=[LossThreshold()]."
            if wanting else "an audit needs at least one attack; got none. Leave `attacks` out for the default."
        )  # fmt: skip
    kinds = [type(a).__name__ for a in attacks]
    named = {repr(a) if kinds.count(kind) > 1 else kind: a for kind, a in zip(kinds, attacks, strict=True)}
    if len(named) < len(kinds):
        raise ConfigError(f"attacks must differ in class or settings; got {attacks!r}. Leave out the repeated ones.")
    return named


def _flat(models: Models) -> dict[str, nn.Module]:
    named = one_by_one(models)
    if not named:
        raise ConfigError("an audit needs at least one model; got none. Pass {'original': model, 'unlearned': …, 'retrained': …}.")
    return named


def _hash(model: nn.Module) -> str | None:
    """Of its weights; None where a model holds more than tensors, which must not cost the audit."""
    try:
        return model_hash(model)
    except ModelError:
        return None


def _logits(name: str, model: nn.Module, groups: Mapping[str, Samples], device: str | torch.device, flags: list[Flag]) -> dict[str, Tensor]:
    """What a model answers on each group; flags that are raised meanwhile are noted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HealthFlag)
        check_model(model, groups["forget"])
    flags += [Flag(w.category.__name__, f"{name}: {w.message}") for w in caught if issubclass(w.category, HealthFlag)]
    home = device_of(model)
    try:
        model.to(resolve_device(device))
        return {group: logits_of(model, samples) for group, samples in groups.items()}
    finally:
        model.to(home)
