"""Further measures of an audit by name: what models answer image by image, and what is left inside them. Each is an audit of its own file; here they become lines of one table.

To add one: a function of (models, split, test, reference, device) that returns `Measured` of the models that are not retrained, and its name in `MEASURES`. What stands beside the
value of a model is the same number of retrained ones, so that they can be compared.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from .. import progress
from ..checks import choose
from ..data.images import Samples
from ..data.split import Split
from ..errors import DataError
from ..metrics.agreement import agreement, jsd64
from ..metrics.estimate import Estimate, unsupported
from ..training.features import features_at, stages
from ..training.inference import logits_of
from .audited import unseen_groups
from .cka import cka_to_retrained
from .compared import RETRAINED, Models, cast, few, placed, plain, spaced, spread, spread_of_gaps
from .idi import IDI
from .over_unlearning import OverUnlearning
from .probes import Probes
from .prototypes import PrototypicalRelearning
from .relearn import RelearnTime
from .svc_mia import SVCMIA

RELEARNING_STEPS = 100  # for each model, order of batches and learning rate; beyond them a model counts as not having relearnt
MOST_IMAGES = 5_000  # of each group, for measures that compare images pair by pair or cost several passes


@final
@dataclass(frozen=True)
class Measured:
    """One number of one model.

    Attributes:
        measure: name of the measure. quantity: what the number is. like: what it is for a retrained model, in words.
        model: name of the model.
        value: the number.
        floor: the same number for each retrained model, where it is a comparison held against the other ones: their mean, and the smallest and the largest (no confidence interval).
            A value between these is no more than another seed of retraining does. It has no value where there are too few retrained models.
    """

    measure: str
    quantity: str
    like: str
    model: str
    value: Estimate
    floor: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the report."""
        numbers = {"value": plain(self.value), "floor": plain(self.floor)}
        return {name: getattr(self, name) for name in ("measure", "quantity", "like", "model")} | numbers


def measure(
    names: Sequence[str], models: Models, split: Split, test: Samples, *, reference: str = RETRAINED, device: str | torch.device = "auto"
) -> list[Measured]:
    """The lines of these measures for each model that is not retrained.

    Args:
        names: of `MEASURES`. models: "original", the retrained ones (one or several), and the unlearned ones by name.
        test: unseen images; where whole classes are forgotten, of these as well: they are a group of their own then, "forget_test".
        reference: the name of the retrained model; "retrained 2", … are retrained, too.

    Raises: as `check_measures`; DataError also where test images of a class are wanting, and as the measures say.

    Cost: see the measures; "relearn" and "idi" train, the others take a few passes over at most 5,000 images of each group ("probes" and "idi": 1,000 forget and as many retain samples;
        "prototypes": 100 forget samples of each class). Evenly spread ones are taken where there are more.

    Example:
        >>> sorted(MEASURES)
        ['agreement', 'cka', 'idi', 'over_unlearning', 'probes', 'prototypes', 'relearn', 'svc_mia']
    """
    found: list[Measured] = []
    chosen = check_measures(names, models, split, reference=reference)
    for done, name in enumerate(chosen):
        progress.report("measures", done, len(chosen), name)
        found += MEASURES[name](models, split, test, reference, device)
    progress.report("measures", len(chosen), len(chosen))
    return found


def check_measures(names: Sequence[str], models: Models, split: Split, *, reference: str = RETRAINED) -> list[str]:
    """The names, each once, if these measures can be made of these models and this split; costs nothing, so call it before anything is scored.

    Raises:
        MissingError: no measure of that name. ConfigError: no retrained model, or no original where a measure needs it.
        DataError: a measure of whole classes where single samples are forgotten, or no retain data where they are needed.

    Example:
        >>> from expunge import forget_random, load_data
        >>> one = nn.Identity()
        >>> check_measures(["cka", "agreement", "cka"], {"retrained": one}, forget_random(load_data("digits").train, 10))
        ['cka', 'agreement']
    """
    chosen = [choose("measure", name, MEASURES, "`expunge list measures` shows all.") for name in dict.fromkeys(names)]
    for name in chosen:
        if name in NEED_CLASSES and not split.forget_classes:
            raise DataError(
                f"{name} is a measure of whole classes; got a split of single samples. Leave it out, or make it with forget_classes."
            )
        if name in NEED_RETAIN and not split.has_retain:
            raise DataError(f"{name} reads retain samples; got a split without them. Leave it out.")
        cast(models, reference=reference, needs_original=name in NEED_ORIGINAL)
    return chosen


def _agreement(models: Models, split: Split, test: Samples, reference: str, device: str | torch.device) -> list[Measured]:
    """How far the answers on forget and on unseen images are from those of retrained models, above what these differ by among themselves (Jensen-Shannon)."""
    parts, lines = cast(models, reference=reference, needs_original=False), []
    for group, images in ({"forget": few(split.forget, MOST_IMAGES)} | _unseen(split, test)).items():
        references = torch.stack([_logits(model, images, device) for model in parts.retrained.values()])
        floor = spread_of_gaps(_distances(references))
        what = f"JSD to retrained on {group.replace('_', ' ')} images, above that between retrained, nats"
        for name, model in parts.audited.items():
            lines.append(Measured("agreement", what, "0", name, agreement(_logits(model, images, device), references).excess, floor))
    return lines


def _svc_mia(models: Models, split: Split, test: Samples, reference: str, device: str | torch.device) -> list[Measured]:
    """MIA-efficacy: the share of forget samples that the best threshold on confidence, between retain and test samples, takes for non-members."""
    parts = cast(models, reference=reference, needs_original=False)
    groups = {"retain": few(split.retain, MOST_IMAGES), "test": _unseen(split, test)["test"], "forget": few(split.forget, MOST_IMAGES)}

    def of(model: nn.Module) -> Estimate:
        answers = {group: (_logits(model, images, device), images.labels) for group, images in groups.items()}
        return SVCMIA()(answers["retain"], answers["test"], answers["forget"], features=["confidence"]).efficacy["confidence"]

    references = [of(model) for model in parts.retrained.values()]
    refused = [one for one in references if not one.supported]
    like = "n/a" if refused else f"{sum(one.value for one in references) / len(references):.3f}"
    floor = (
        unsupported(f"a retrained model has none: {refused[0].note}", len(references))
        if refused
        else spread([one.value for one in references])
    )
    what = "MIA-efficacy by confidence: forget samples taken for non-members"
    return [Measured("svc_mia", what, like, name, of(model), floor) for name, model in parts.audited.items()]


def _probes(models: Models, split: Split, test: Samples, reference: str, device: str | torch.device) -> list[Measured]:
    """Probe index: how much the layers of a model still tell of the forget set, between retrained models (0) and the original (1)."""
    result, parts = Probes()(models, split, reference=reference, device=device), cast(models, reference=reference)
    what = "probe index: what layers tell of the forget set; 1 = like the original"
    return [
        Measured("probes", what, "0", row.model, row.index, result.index_floor) for row in result.rows if row.model not in parts.retrained
    ]


def _idi(models: Models, split: Split, test: Samples, reference: str, device: str | torch.device) -> list[Measured]:
    """IDI: what critics of all layers behind each layer find of the forget set, between retrained models (0) and the original (1). Trains critics for all models."""
    result, parts = IDI()(models, split, reference=reference, device=device), cast(models, reference=reference)
    what = "IDI: what layers tell critics of the forget set; 1 = like the original"
    return [Measured("idi", what, "0", row.model, row.index, result.index_floor) for row in result.rows if row.model not in parts.retrained]


def _relearn(models: Models, split: Split, test: Samples, reference: str, device: str | torch.device) -> list[Measured]:
    """AIN: how many steps of training bring the forget set back, over those that retrained models take. Trains copies of all models."""
    audit = RelearnTime(measure="accuracy", max_steps=RELEARNING_STEPS)
    result = audit(models, few(split.forget, MOST_IMAGES), reference=reference, device=device)
    parts, what = cast(models, reference=reference), "AIN: steps to relearn the forget set, over those of retrained models"
    return [Measured("relearn", what, "1", row.model, row.ain, result.floor) for row in result.rows if row.model not in parts.retrained]


def _prototypes(models: Models, split: Split, test: Samples, reference: str, device: str | torch.device) -> list[Measured]:
    """How much of a forgotten class five of its images bring back through the last layer alone, against retrained models."""
    unseen = unseen_groups(test.labels, split.forget_classes, test.classes)
    asked = test.subset(torch.cat([where[spaced(len(where), MOST_IMAGES)] for where in unseen.values()]))
    result = PrototypicalRelearning()(models, split, asked, reference=reference, device=device)
    gaps = {row.model: row.net_difference for row in result.rows}
    what = "accuracy recovered by five images, less what it takes from other classes, minus that of retrained"
    return _against_retrained("prototypes", what, gaps, cast(models, reference=reference, needs_original=False).retrained)


def _over_unlearning(models: Models, split: Split, test: Samples, reference: str, device: str | torch.device) -> list[Measured]:
    """OU@ε: how far the answers near forget images are from the original's without the forgotten classes, against retrained models."""
    result = OverUnlearning(max_images=MOST_IMAGES)(models, split, reference=reference, device=device)
    gaps = {row.model: row.difference for row in result.rows}
    what = "OU@ε: how far answers near forget images are from the original's, minus that of retrained, nats"
    return _against_retrained("over_unlearning", what, gaps, cast(models, reference=reference).retrained)


def _cka(models: Models, split: Split, test: Samples, reference: str, device: str | torch.device) -> list[Measured]:
    """CKA: whether each layer arranges the forget images as retrained models do."""
    parts, images = cast(models, reference=reference, needs_original=False), few(split.forget, MOST_IMAGES)
    layers = stages(next(iter(parts.retrained.values())), images)

    def features(model: nn.Module) -> Mapping[str, torch.Tensor]:
        with placed(model, device) as there:
            return features_at(there, layers, images)

    references = [features(model) for model in parts.retrained.values()]
    return [
        Measured("cka", f"CKA to retrained at {layer} on forget images, less that among retrained", "0", name, found.gap, found.gap_floor)
        for name, model in parts.audited.items()
        for layer, found in cka_to_retrained(features(model), references).items()
    ]


MEASURES: dict[str, Callable[[Models, Split, Samples, str, str | torch.device], list[Measured]]] = {
    "agreement": _agreement,
    "cka": _cka,
    "idi": _idi,
    "over_unlearning": _over_unlearning,
    "probes": _probes,
    "prototypes": _prototypes,
    "relearn": _relearn,
    "svc_mia": _svc_mia,
}
NEED_CLASSES, NEED_RETAIN = {"prototypes", "over_unlearning"}, {"idi", "probes", "svc_mia"}
NEED_ORIGINAL = {"idi", "over_unlearning", "probes", "relearn"}


def _against_retrained(name: str, what: str, gaps: Mapping[str, Estimate | None], retrained: Mapping[str, nn.Module]) -> list[Measured]:
    """Lines of gaps to the mean of the retrained models, beside those of each retrained model to the others."""
    others = [gap.value for model, gap in gaps.items() if model in retrained and gap is not None]
    floor = spread(others) if others else unsupported("needs two retrained models, got 1", n=1)
    return [Measured(name, what, "0", model, gap, floor) for model, gap in gaps.items() if model not in retrained and gap is not None]


def _unseen(split: Split, test: Samples) -> dict[str, Samples]:
    """Unseen images by group: "test", and where whole classes are forgotten, those of these classes as "forget_test"."""
    groups = unseen_groups(test.labels, split.forget_classes, test.classes)
    return {name: few(test.subset(where), MOST_IMAGES) for name, where in groups.items()}


def _distances(references: torch.Tensor) -> torch.Tensor:
    """The mean JSD between each two of M models, from their logits (M, N, K)."""
    m = len(references)
    found = torch.zeros(m, m, dtype=torch.float64)
    for i, j in itertools.combinations(range(m), 2):
        found[i, j] = found[j, i] = jsd64(references[i], references[j]).mean()
    return found


def _logits(model: nn.Module, images: Samples, device: str | torch.device) -> torch.Tensor:
    with placed(model, device) as there:
        return logits_of(there, images)
