"""The audit: how close are these models to one that never saw the forget set?

Every model is scored on forget, retain and test images; membership attacks try to tell forget from test images; and each number is compared with that of the
retrained model on the same samples. Where whole classes are forgotten, test images of those classes are a group of their own: the non-members, and the images
whose answers are compared with the retrained models'. The function is the protocol: which groups, which pairing, which flags.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import progress
from .audits.base import MembershipAudit
from .audits.class_answers import ClassAnswers, class_answers
from .audits.factors import Factors
from .audits.health import health_flags
from .audits.lira import LiRA
from .audits.loss_threshold import LossThreshold
from .audits.result import AttackRow, Audit, Flag, ModelRow
from .audits.rmia import RMIA
from .audits.told_apart import ClassLeakage
from .checks import choose
from .data.images import Samples
from .data.split import Split
from .device import device_of, resolve_device
from .errors import ConfigError, DataError, HealthFlag
from .metrics.accuracy import accuracy_of, correct
from .metrics.gap import GROUPS, GapInputs, gaps
from .metrics.roc import auc, auc_difference, tpr_at_fpr
from .metrics.signals import logit_margin
from .provenance import provenance
from .report.twins import is_other, is_reference
from .spectral.spectrum import Spectrum
from .training.inference import check_model, logits_of
from .training.shadow import ShadowModels

Models = Mapping[str, nn.Module | Sequence[nn.Module]]


def audit(
    models: Models,
    split: Split,
    test: Samples,
    *,
    attacks: Sequence[MembershipAudit] | None = None,
    shadows: ShadowModels | None = None,
    reference: str = "retrained",
    fpr: float = 0.01,
    details: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    leakage: Sequence[ClassLeakage] = (),
    factors: Mapping[str, Factors] | None = None,
    spectra: Mapping[str, Spectrum] | None = None,
    title: str = "Audit of unlearning",
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
        reference: the name of the retrained model that gaps are to. Without a model named "retrained" there are no gaps.
        fpr: false-positive rate at which true positives are counted, in (0, 1).
        details, seconds, title: what the report should say about each model (its method, its cost), and its heading.
        leakage: U-LiRA of the forgotten classes, from `class_leakage`, to be shown beside what the models answer on them.
        factors: of AMUN's theorem, from `expunge.factors` on this split, by the name of the unlearned model: why it is near to retraining or far from it.
        spectra: from `expunge.spectrum`, by the name of the model: how far its layers can stretch a change of their input.
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
    named_attacks = _attacks(attacks, shadows)
    named = _flat(models)
    reference_name = reference if reference in named else None
    if reference_name is None and reference != "retrained":
        choose("model", reference, named, "reference= is the name of the retrained model.")
    pool = _Pool(split, test, shadows)
    _check_factors(factors or {}, named, split)
    for name in spectra or {}:
        choose("model", name, named, "spectra= takes the names of audited models.")
    flags: list[Flag] = []
    answers = {}
    for done, (name, model) in enumerate(named.items()):
        progress.report("scoring models", done, len(named), name)
        answers[name] = _score(name, model, pool, named_attacks, device, flags)
    progress.report("scoring models", len(named), len(named))
    base = answers.get(reference_name)
    rows = [_attack_row(attack, name, a, base, fpr) for attack in named_attacks for name, a in answers.items()]
    model_rows = [_model_row(name, a, base, (seconds or {}).get(name), (details or {}).get(name)) for name, a in answers.items()]
    twins = [row.gaps.average for row in model_rows if row.gaps and is_other(row.name, reference_name)]
    floor = max(twins, key=lambda gap: gap.value) if twins else None
    references = [name for name in answers if is_reference(name, reference_name)]
    classes = _classes(split, test, pool, answers, references, leakage)
    result = Audit(
        model_rows, rows, reference_name, floor, flags, pool.sizes, provenance() | pool.identity, title, classes, dict(factors or {}), dict(spectra or {}),
    )  # fmt: skip
    flags += health_flags(result, shadows, [kind for kind, a in named_attacks.items() if a.needs_shadows])
    return result


@dataclass(frozen=True, eq=False)
class _Answers:
    """What one model says: whether each sample is right, its margin, and its membership score by attack; by group of samples."""

    right: dict[str, Tensor]
    margins: dict[str, Tensor]
    members: dict[str, Tensor]
    nonmembers: dict[str, Tensor]
    unseen: dict[str, Tensor]  # logits on "test", and on "forget_test" where classes are forgotten

    def gap_inputs(self) -> GapInputs:
        attack = list(self.members)[-1]
        return GapInputs(**self.right, forget_scores=self.members[attack], test_scores=self.nonmembers[attack])


class _Pool:
    """The audited samples, and what shadow models say about them."""

    def __init__(self, split: Split, test: Samples, shadows: ShadowModels | None) -> None:
        if split.train.shape != test.shape or split.train.classes != test.classes:
            raise DataError(
                f"test images must be of the training set's kind: shape {split.train.shape} and its {len(split.train.classes)} classes; "
                f"got {test.shape} and {len(test.classes)} classes. Load both with one load_data call."
            )
        _check_unseen(split.train, test)
        retain = {"retain": split.retain} if split.has_retain else {}
        self.groups = {"forget": split.forget} | retain | _unseen(test, split)
        nonmembers = self.groups[self.nonmembers]
        self.labels = torch.cat([split.forget.labels, nonmembers.labels])
        self.shadow_logits = self.included = None
        if shadows is not None:
            columns = shadows.columns(split.forget, nonmembers)
            _check_columns(shadows, columns, self.labels)
            self.shadow_logits, self.included = shadows.logits[:, columns], shadows.included[:, columns]
        self.sizes = {name: len(group) for name, group in self.groups.items()} | {"shadow_models": len(shadows.logits) if shadows else 0}
        self.identity = {"training set": split.train.fingerprint[:16], "test set": test.fingerprint[:16]}

    @property
    def nonmembers(self) -> str:
        """The group that forget samples are compared with: like them, but never trained on."""
        return "forget_test" if "forget_test" in self.groups else "test"


def _unseen(test: Samples, split: Split) -> dict[str, Samples]:
    """The test set, with images of forgotten classes as a group of their own."""
    if not split.forget_classes:
        return {"test": test}
    forgotten = torch.isin(test.labels, torch.tensor(split.forget_classes))
    wanting = [test.classes[k] for k in split.forget_classes if not (test.labels == k).any()]
    if wanting or forgotten.all():
        raise DataError(
            f"test images must be of all classes, forgotten ones too: they show what models answer on a class that they should not know; "
            f"got none of {', '.join(map(repr, wanting)) or 'the other classes'}. Leave them in the test set."
        )
    return {"forget_test": test.subset(forgotten.nonzero().flatten()), "test": test.subset((~forgotten).nonzero().flatten())}


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


def _check_factors(factors: Mapping[str, Factors], models: Mapping[str, nn.Module], split: Split) -> None:
    for name, found in factors.items():
        choose("model", name, models, "factors= takes the names of audited models.")
        if not torch.equal(found.ids.sort().values, split.forget.ids.sort().values):
            raise DataError(
                f"factors must be of the audited split's {len(split.forget)} forget samples; got those of {name!r} of {len(found.ids)} samples, not the "
                "same ones. Measure them with expunge.factors(original, split, …)."
            )


def _attacks(attacks: Sequence[MembershipAudit] | None, shadows: ShadowModels | None) -> dict[str, MembershipAudit]:
    """The attacks by the name of their class, or by their repr where that is ambiguous."""
    if attacks is None:
        attacks = [LossThreshold(), LiRA(), RMIA()] if shadows else [LossThreshold()]
    wanting = [type(a).__name__ for a in attacks if a.needs_shadows and shadows is None]
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
    named = {}
    for name, value in models.items():
        several = list(value) if isinstance(value, Sequence) else [value]
        named |= {name if k == 0 else f"{name} {k + 1}": model for k, model in enumerate(several)}
    if not named:
        raise ConfigError("an audit needs at least one model; got none. Pass {'original': model, 'unlearned': …, 'retrained': …}.")
    return named


def _score(
    name: str, model: nn.Module, pool: _Pool, attacks: dict[str, MembershipAudit], device: str | torch.device, flags: list[Flag]
) -> _Answers:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HealthFlag)
        check_model(model, pool.groups["forget"])
    flags += [Flag(w.category.__name__, f"{name}: {w.message}") for w in caught if issubclass(w.category, HealthFlag)]
    home = device_of(model)
    try:
        model.to(resolve_device(device))
        logits = {group: logits_of(model, samples) for group, samples in pool.groups.items()}
    finally:
        model.to(home)
    labels = {group: samples.labels for group, samples in pool.groups.items()}
    audited = torch.cat([logits["forget"], logits[pool.nonmembers]])
    scores = {kind: a(audited, pool.labels, pool.shadow_logits, pool.included) for kind, a in attacks.items()}
    n = len(labels["forget"])
    return _Answers(
        {g: correct(logits[g], labels[g]) for g in logits},
        {g: logit_margin(logits[g], labels[g]) for g in logits},
        {a: s[:n] for a, s in scores.items()},
        {a: s[n:] for a, s in scores.items()},
        {g: logits[g] for g in ("forget_test", "test") if g in logits},
    )


def _classes(
    split: Split, test: Samples, pool: _Pool, answers: dict[str, _Answers], references: list[str], leakage: Sequence[ClassLeakage]
) -> list[ClassAnswers]:
    """What the models answer on each forgotten class."""
    logits = {name: torch.cat(list(a.unseen.values())) for name, a in answers.items()}
    labels = torch.cat([pool.groups[g].labels for g in next(iter(answers.values())).unseen])
    leaks = {found.name: found for found in leakage}
    names = {k: test.classes[k] for k in split.forget_classes}
    if leaks.keys() - set(names.values()):
        raise DataError(
            f"leakage must be of the forgotten classes, {', '.join(names.values())}; got {', '.join(leaks)}. Measure it with class_leakage on this split."
        )
    return [
        class_answers(logits, labels, k, split.forget_classes, test.classes, references, leakage=leaks.get(name))
        for k, name in names.items()
    ]


def _attack_row(kind: str, name: str, answers: _Answers, base: _Answers | None, fpr: float) -> AttackRow:
    members, nonmembers = answers.members[kind], answers.nonmembers[kind]
    gap = None if base in (None, answers) else auc_difference(members, nonmembers, base.members[kind], base.nonmembers[kind])
    return AttackRow(kind, name, auc(members, nonmembers), tpr_at_fpr(members, nonmembers, fpr), fpr, gap, members, nonmembers)


def _model_row(name: str, answers: _Answers, base: _Answers | None, seconds: float | None, details: str | None) -> ModelRow:
    accuracies = {group: accuracy_of(right) for group, right in answers.right.items()}
    measured = None if base in (None, answers) else gaps(answers.gap_inputs(), base.gap_inputs())
    return ModelRow(name, *map(accuracies.get, GROUPS), measured, answers.margins, seconds, details)
