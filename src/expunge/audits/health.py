"""What makes the numbers of an audit less certain than they look; each flag has a section in docs/flags.md."""

import dataclasses

from ..metrics.roc import auc_difference
from ..report.twins import is_other
from ..training.recipe import Recipe
from .mia_nn import LEAST_IMAGES
from .result import Audit, Flag


def health_flags(result: Audit, shadow_accuracy: float | None, strong: list[str], *, tolerance: float = 0.05) -> list[Flag]:
    """The flags of an audit whose rows are there.

    Args:
        shadow_accuracy: of the shadow models on samples that they were not trained on.
        strong: names of the attacks that read shadow models.
        tolerance: how far the held-out accuracies of shadow and retrained models may be apart, a fraction.
    """
    flags = []
    weak = [row.attack for row in result.attacks if row.attack not in strong][:1]
    if result.floor is None:
        flags.append(
            Flag("NoNullFloor", "fewer than two retrained models, so that chance cannot be told from a gap. Pass 'retrained': [a, b, …].")
        )
    for row in result.attacks:
        if not row.tpr.supported:
            flags.append(Flag("TooFewNonMembers", f"{row.tpr.note}. Add test images, or ask for a larger fpr."))
            break
    if result.classes and result.classes[0].short:  # the same for all forgotten classes
        few = result.classes[0].short
        flags.append(
            Flag(
                "TooFewTestImages",
                f"MIA-NN needs {LEAST_IMAGES} test images of every remaining class; {', '.join(few[:3])}{', …' * (len(few) > 3)} "
                "got fewer, and it was left out. Add test images.",
            )
        )
    names = [row.name for row in result.models]
    if (
        "original" in names and not result.classes
    ):  # a model knows a class that it was trained on, whether it knows single images by heart or not
        rows = [row for row in result.attacks if row.model == "original"]
        best = max(rows, key=lambda row: row.auc)
        if best.auc_low <= 0.5 or all(row.gap and row.gap.low <= 0 <= row.gap.high for row in rows):
            flags.append(
                Flag(
                    "ModelNeverMemorised",
                    f"no attack tells the original's forget set from test images, or the original from retraining (best: {best.attack}, AUC {best.area}).",
                )
            )
        for attack in strong if weak else ():
            easy, hard = result[weak[0], "original"], result[attack, "original"]
            if auc_difference(easy.members, easy.nonmembers, hard.members, hard.nonmembers).low > 0:
                flags.append(
                    Flag(
                        "WeakBeatsStrong",
                        f"{weak[0]} (AUC {easy.auc:.3f}) beats {attack} (AUC {hard.auc:.3f}) on the original: more shadow models, or of the target's recipe, are needed.",
                    )
                )
    if shadow_accuracy is not None and result.reference:
        ours, theirs = result.model(result.reference).test.value, shadow_accuracy
        if abs(ours - theirs) > tolerance:
            flags.append(
                Flag(
                    "ShadowsUnlikeTarget",
                    f"shadow models have a held-out accuracy of {theirs:.1%}, {result.reference} has {ours:.1%}: train them with the target's recipe and architecture.",
                )
            )
    for model in result.models:
        if model.gaps and is_other(model.name, result.reference) and not model.gaps.auc.low <= 0 <= model.gaps.auc.high:
            flags.append(
                Flag(
                    "RetrainDiffersAcrossSeeds",
                    f"{model.name} differs from {result.reference} in AUC by {model.gaps.auc:+.3f}: compare with the mean of several retrained models.",
                )
            )
    return flags


def recipe_flags(target: Recipe | None, shadows: Recipe | None) -> list[Flag]:
    """A flag if shadow models were trained by another recipe than the audited model, as far as both are known: they remember more than it does, or less.

    The precision of matrix products does not count: it is how a recipe is computed, not what it does.

    Example:
        >>> recipe_flags(Recipe(epochs=200), Recipe(epochs=161))[0].message
        'the shadow models have another recipe than the original: epochs=161 (original: 200). Train them by its recipe.'
    """
    if target is None or shadows is None:
        return []
    names = [field.name for field in dataclasses.fields(Recipe) if field.name != "precision"]
    differing = [
        f"{name}={theirs!r} (original: {ours!r})" for name in names if (ours := getattr(target, name)) != (theirs := getattr(shadows, name))
    ]
    if not differing:
        return []
    return [
        Flag(
            "ShadowsUnlikeTarget",
            f"the shadow models have another recipe than the original: {', '.join(differing)}. Train them by its recipe.",
        )
    ]
