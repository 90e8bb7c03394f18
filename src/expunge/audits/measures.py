"""Further measures of an audit by name: what models answer image by image, and what is left inside them. Each is an audit of its own file; here they become lines of one table.

To add one: a function of (models, split, test) that returns `Measured`, and its name in `MEASURES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from .. import progress
from ..checks import choose
from ..data.images import Samples
from ..data.split import Split
from ..device import resolve_device
from ..errors import DataError
from ..metrics.agreement import agreement
from ..metrics.estimate import Estimate
from ..training.features import features_at, stages
from ..training.inference import logits_of
from .cka import cka_to_retrained
from .compared import Models, cast, placed, plain
from .over_unlearning import OverUnlearning
from .probes import Probes
from .prototypes import PrototypicalRelearning
from .relearn import RelearnTime
from .svc_mia import SVCMIA, efficacy_floor

RELEARNING_STEPS = 100  # for each model, order of batches and learning rate; beyond them a model counts as not having relearnt
MOST_IMAGES = 5_000  # of each group, for measures that compare images pair by pair or cost several passes


@final
@dataclass(frozen=True)
class Measured:
    """One number of one model.

    Attributes:
        measure: name of the measure. quantity: what the number is. like: what it is for a retrained model, in words.
        model: name of the model.
        value: the number. floor: the same between retrained models, where the measure has one.
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


def measure(names: Sequence[str], models: Models, split: Split, test: Samples, *, device: str | torch.device = "auto") -> list[Measured]:
    """The lines of these measures for each model that is not retrained.

    Args:
        names: of `MEASURES`. models: "original", "retrained" (one or several), and the unlearned ones by name.
        test: unseen images; where whole classes are forgotten, of these as well.

    Raises:
        MissingError: no measure of that name. ConfigError: no original or no retrained model.
        DataError: a measure of whole classes where single samples are forgotten, or no retain data where they are needed.

    Cost: see the measures; "relearn" trains, the others take a few passes over at most 5,000 images of each group.

    Example:
        >>> sorted(MEASURES)
        ['agreement', 'cka', 'over_unlearning', 'probes', 'prototypes', 'relearn', 'svc_mia']
    """
    found: list[Measured] = []
    chosen = [choose("measure", name, MEASURES, "`expunge list measures` shows all.") for name in dict.fromkeys(names)]
    for name in chosen:
        if name in NEED_CLASSES and not split.forget_classes:
            raise DataError(
                f"{name} is a measure of whole classes; got a split of single samples. Leave it out, or make it with forget_classes."
            )
        if name in NEED_RETAIN and not split.has_retain:
            raise DataError(f"{name} reads retain samples; got a split without them. Leave it out.")
    for done, name in enumerate(chosen):
        progress.report("measures", done, len(chosen), name)
        found += MEASURES[name](models, split, test, device)
    progress.report("measures", len(chosen), len(chosen))
    return found


def _agreement(models: Models, split: Split, test: Samples, device: str | torch.device) -> list[Measured]:
    """How far the answers on forget and on test images are from those of retrained models, above what these differ by among themselves (Jensen-Shannon)."""
    parts, lines = cast(models, needs_original=False), []
    for group, images in {"forget": _few(split.forget), "test": _few(test)}.items():
        references = torch.stack([_logits(model, images, device) for model in parts.retrained])
        for name, model in _audited(parts.named, len(parts.retrained)).items():
            result = agreement(_logits(model, images, device), references)
            lines.append(
                Measured(
                    "agreement",
                    f"JSD to retrained on {group} images, above that between retrained, nats",
                    "0",
                    name,
                    result.excess,
                    result.floor,
                )
            )
    return lines


def _svc_mia(models: Models, split: Split, test: Samples, device: str | torch.device) -> list[Measured]:
    """MIA-efficacy: the share of forget samples that the best threshold on confidence, between retain and test samples, takes for non-members."""
    parts = cast(models, needs_original=False)
    groups = {"retain": _few(split.retain), "test": _few(test), "forget": _few(split.forget)}

    def of(model: nn.Module) -> Any:
        answers = {group: (_logits(model, images, device), images.labels) for group, images in groups.items()}
        return SVCMIA()(answers["retain"], answers["test"], answers["forget"], features=["confidence"])

    references = [of(model) for model in parts.retrained]
    usual = sum(one.efficacy["confidence"].value for one in references) / len(references)
    floor = efficacy_floor(references)
    return [
        Measured("svc_mia", "MIA-efficacy by confidence: forget samples taken for non-members", f"{usual:.3f}", name, of(model).efficacy["confidence"], floor)
        for name, model in _audited(parts.named, len(parts.retrained)).items()
    ]  # fmt: skip


def _probes(models: Models, split: Split, test: Samples, device: str | torch.device) -> list[Measured]:
    """Probe index: how much the layers of a model still tell of the forget set, between retrained models (0) and the original (1)."""
    result = Probes()(models, split, device=device)
    return [
        Measured(
            "probes",
            "probe index: what layers tell of the forget set; 1 = like the original",
            "0",
            row.model,
            row.index,
            result.index_floor,
        )
        for row in result.rows
        if row.model in _audited(cast(models).named, len(cast(models).retrained))
    ]


def _relearn(models: Models, split: Split, test: Samples, device: str | torch.device) -> list[Measured]:
    """AIN: how many steps of training bring the forget set back, over those that retrained models take. Trains copies of all models."""
    result = RelearnTime(measure="accuracy", max_steps=RELEARNING_STEPS)(models, split.forget, device=device)
    parts = cast(models)
    return [
        Measured("relearn", "AIN: steps to relearn the forget set, over those of retrained models", "1", row.model, row.ain, result.floor)
        for row in result.rows
        if row.model in parts.unlearned
    ]


def _prototypes(models: Models, split: Split, test: Samples, device: str | torch.device) -> list[Measured]:
    """How much of a forgotten class five of its images bring back through the last layer alone, against retrained models."""
    result, parts = PrototypicalRelearning()(models, split, test, device=device), cast(models)
    return [
        Measured("prototypes", "accuracy recovered by five images, less what it takes from other classes, minus that of retrained", "0", row.model, row.net_difference, result.net_floor)
        for row in result.rows
        if row.model == "original" or row.model in parts.unlearned
    ]  # fmt: skip


def _over_unlearning(models: Models, split: Split, test: Samples, device: str | torch.device) -> list[Measured]:
    """OU@ε: how far the answers near forget images are from the original's without the forgotten classes, against retrained models."""
    result, parts = OverUnlearning()(models, split, device=device), cast(models)
    return [
        Measured("over_unlearning", "OU@ε: how far answers near forget images are from the original's, minus that of retrained, nats", "0", row.model, row.difference, result.floor)
        for row in result.rows
        if row.model in parts.unlearned
    ]  # fmt: skip


def _cka(models: Models, split: Split, test: Samples, device: str | torch.device) -> list[Measured]:
    """CKA: whether each layer arranges the forget images as retrained models do."""
    parts, images = cast(models, needs_original=False), _few(split.forget)
    layers = stages(parts.retrained[0], images)

    def features(model: nn.Module) -> Mapping[str, torch.Tensor]:
        with placed(model, device) as there:
            return features_at(there, layers, images)

    references = [features(model) for model in parts.retrained]
    return [
        Measured("cka", f"CKA to retrained at {layer} on forget images, less that among retrained", "0", name, found.gap, found.floor)
        for name, model in _audited(parts.named, len(parts.retrained)).items()
        for layer, found in cka_to_retrained(features(model), references).items()
    ]


MEASURES: dict[str, Callable[[Models, Split, Samples, str | torch.device], list[Measured]]] = {
    "agreement": _agreement,
    "cka": _cka,
    "over_unlearning": _over_unlearning,
    "probes": _probes,
    "prototypes": _prototypes,
    "relearn": _relearn,
    "svc_mia": _svc_mia,
}
NEED_CLASSES, NEED_RETAIN = {"prototypes", "over_unlearning"}, {"probes", "svc_mia"}


def _audited(named: dict[str, nn.Module], n_retrained: int) -> dict[str, nn.Module]:
    """All but the retrained models, which `Cast.named` has last."""
    return dict(list(named.items())[: len(named) - n_retrained])


def _few(samples: Samples) -> Samples:
    """At most MOST_IMAGES of them, evenly spread."""
    n = len(samples)
    return samples if n <= MOST_IMAGES else samples.subset(torch.linspace(0, n - 1, MOST_IMAGES).long())


def _logits(model: nn.Module, images: Samples, device: str | torch.device) -> torch.Tensor:
    with placed(model, resolve_device(device)) as there:
        return logits_of(there, images)
