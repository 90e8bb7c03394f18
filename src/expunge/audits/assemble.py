"""From what models answer on the audited samples to the result of the audit: accuracies, membership scores, gaps, floors, verdicts and flags.

No model is needed here, so that a stored file of answers is audited as a model is.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..metrics.accuracy import accuracy_of, correct
from ..metrics.gap import GROUPS, GapInputs, gaps
from ..metrics.roc import auc, auc_difference, tpr_at_fpr
from ..metrics.signals import logit_margin
from ..provenance import provenance
from ..report.twins import is_other, is_reference
from .audited import MEMBERS, Audited
from .base import MembershipAudit, signal_of_models
from .class_answers import ClassAnswers, class_answers
from .groups import has_mates
from .health import health_flags
from .result import AttackRow, Audit, Flag, ModelRow
from .risk import Risk, calibrate_risk
from .told_apart import ClassLeakage
from .verdict import Verdict, area_contrast, class_contrasts, judge

LEAST_SHADOWS = 6  # for the risk of single samples


@dataclass(frozen=True, eq=False)
class Scored:
    """What one model says: whether each sample is right and its margin, by group; its membership scores, by attack."""

    right: dict[str, Tensor]
    margins: dict[str, Tensor]
    members: dict[str, Tensor]
    nonmembers: dict[str, Tensor]
    unseen: dict[str, Tensor]  # logits on "test", and on "forget_test" where classes are forgotten

    def gap_inputs(self) -> GapInputs:
        attack = list(self.members)[-1]
        return GapInputs(**self.right, forget_scores=self.members[attack], test_scores=self.nonmembers[attack])


def scored(logits: Mapping[str, Tensor], audited: Audited, attacks: Mapping[str, MembershipAudit]) -> Scored:
    """A model's answers, reduced to what the audit needs, from its logits (n, K) by group; scored in float32, as models are."""
    logits = {group: z.float() for group, z in logits.items()}
    both = torch.cat([logits[MEMBERS], logits[audited.nonmembers]])
    scores = {kind: a(both, audited.scored_labels, audited.shadow_logits, audited.included) for kind, a in attacks.items()}
    n = len(audited.labels[MEMBERS])
    return Scored(
        {g: correct(logits[g], labels) for g, labels in audited.labels.items()},
        {g: logit_margin(logits[g], labels) for g, labels in audited.labels.items()},
        {a: s[:n] for a, s in scores.items()},
        {a: s[n:] for a, s in scores.items()},
        {g: logits[g] for g in ("forget_test", "test") if g in audited.labels},
    )


def assemble(
    answers: Mapping[str, Scored],
    audited: Audited,
    attacks: Mapping[str, MembershipAudit],
    *,
    reference: str | None,
    fpr: float,
    flags: Sequence[Flag] = (),
    details: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    leakage: Sequence[ClassLeakage] = (),
    hashes: Mapping[str, str | None] | None = None,
    **extras: Any,
) -> Audit:
    """The result of the audit; arguments as in `expunge.audit`, `hashes` are of the models' weights, `extras` are fields of `Audit`."""
    base = None if reference is None else answers.get(reference)
    rows = [_attack_row(attack, name, a, base, fpr) for attack in attacks for name, a in answers.items()]
    facts = {"seconds": seconds or {}, "details": details or {}, "hash": hashes or {}}
    models = [_model_row(name, a, base, {fact: found.get(name) for fact, found in facts.items()}) for name, a in answers.items()]
    twins = [row.gaps.average for row in models if row.gaps and is_other(row.name, reference)]
    references = [name for name in answers if is_reference(name, reference)]
    _check_different({name: answers[name] for name in references})
    result = Audit(
        models=models, attacks=rows, reference=reference, floor=max(twins, key=lambda gap: gap.value) if twins else None, flags=list(flags),
        sizes=audited.sizes, provenance=provenance() | audited.identity, classes=_classes(audited, answers, references, leakage),
        verdicts=_verdicts(audited, answers, references), risks=_risks(audited, answers), **extras,
    )  # fmt: skip
    result.flags.extend(health_flags(result, audited.shadow_accuracy, [kind for kind, a in attacks.items() if a.needs_shadows]))
    return result


def _verdicts(audited: Audited, answers: Mapping[str, Scored], references: Sequence[str]) -> list[Verdict]:
    """Of every model that is not itself a retrained one."""
    theirs = [answers[name] for name in references]
    found = []
    for name, mine in answers.items() if theirs else ():
        if name not in references:
            areas = [
                area_contrast(attack, *((one.members[attack], one.nonmembers[attack]) for one in (mine, *theirs)))
                for attack in mine.members
            ]
            unseen = [one.unseen["forget_test"] for one in (mine, *theirs)] if audited.forget_classes else []
            shares = class_contrasts(*unseen, labels=audited.labels["forget_test"], names=audited.classes) if unseen else []
            found.append(judge(name, [*areas, *shares], n_references=len(theirs), labels_only=audited.labels_only))
    return found


def _check_different(references: Mapping[str, Scored]) -> None:
    """One retrained model that is there twice would seem to show that retraining always gives the same."""
    for (one, a), (other, b) in itertools.combinations(references.items(), 2):
        if all(torch.equal(a.margins[g], b.margins[g]) for g in a.margins):
            raise DataError(
                f"retrained models must differ in their seeds; got {one} and {other}, which answer everything alike. Leave one of them out, or train it with another seed."
            )


def _risks(audited: Audited, answers: Mapping[str, Scored]) -> dict[str, Risk]:
    """Of each forget sample under each model; not where whole classes are forgotten: a class is known without any image being known by heart."""
    shadow_logits, included = audited.shadow_logits, audited.included
    if shadow_logits is None or included is None or audited.n_shadows < LEAST_SHADOWS or audited.forget_classes:
        return {}
    labels, n = audited.scored_labels, len(audited.labels[MEMBERS])
    shadow = signal_of_models(logit_margin, shadow_logits, labels)
    ids = torch.cat([audited.ids, -1 - torch.arange(len(labels) - n)])
    risk_of = calibrate_risk(shadow, included, drop_mates=has_mates(included))
    return {
        name: risk_of(torch.cat([mine.margins[MEMBERS], mine.margins[audited.nonmembers]]), ids).first(n) for name, mine in answers.items()
    }


def _classes(audited: Audited, answers: Mapping[str, Scored], references: list[str], leakage: Sequence[ClassLeakage]) -> list[ClassAnswers]:
    """What the models answer on each forgotten class."""
    logits = {name: torch.cat(list(a.unseen.values())) for name, a in answers.items()}
    labels = torch.cat([audited.labels[g] for g in next(iter(answers.values())).unseen])
    leaks = {found.name: found for found in leakage}
    return [
        class_answers(
            logits, labels, k, audited.forget_classes, audited.classes, references, leakage=leaks.get(audited.classes[k])
        )
        for k in audited.forget_classes
    ]  # fmt: skip


def _attack_row(kind: str, name: str, answers: Scored, base: Scored | None, fpr: float) -> AttackRow:
    members, nonmembers = answers.members[kind], answers.nonmembers[kind]
    gap = None if base in (None, answers) else auc_difference(members, nonmembers, base.members[kind], base.nonmembers[kind])
    return AttackRow(kind, name, auc(members, nonmembers), tpr_at_fpr(members, nonmembers, fpr), fpr, gap, members, nonmembers)


def _model_row(name: str, answers: Scored, base: Scored | None, facts: Mapping[str, Any]) -> ModelRow:
    accuracies = {group: accuracy_of(right) for group, right in answers.right.items()}
    measured = None if base in (None, answers) else gaps(answers.gap_inputs(), base.gap_inputs())
    forget, forget_test, retain, test = map(accuracies.get, GROUPS)
    assert forget is not None and test is not None  # every audit has these groups
    return ModelRow(name, forget, forget_test, retain, test, measured, answers.margins, **facts)
