"""U-LiRA on whole methods: many models are trained, each is unlearned, and an attacker learns from all but one of them to judge the last.

The settings of a method are the same for all models, and its seed differs. Everything goes through the store of the shadow models.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from . import progress
from .audits.decisions import neighbour_of
from .audits.mia_nn import MIANN
from .audits.told_apart import ClassLeakage, ULiRAResult
from .audits.u_lira import u_lira_class, u_lira_floor
from .audits.u_lira_pool import u_lira_pool
from .checks import check_indices
from .data.images import Samples
from .data.pool import pool
from .data.split import forget_samples
from .device import resolve_device
from .errors import ConfigError, DataError
from .methods.base import Method
from .metrics.estimate import Estimate
from .metrics.signals import logit_margin
from .store import Store
from .stored import unlearn_stored
from .training.class_shadows import ClassShadows
from .training.inference import logits_of
from .training.shadow import ShadowModels

UNTOUCHED = "original"  # the row without a method: the ceiling
FLOOR_MODELS = 6  # retrained models that a floor needs
STAGE = "unlearning shadow models"


def class_leakage(
    methods: Mapping[str, Method], shadows: ClassShadows, *, fpr: float = 0.01, device: str | torch.device = "auto"
) -> list[ClassLeakage]:
    """U-LiRA for whole classes: can unlearned models be told from models that never saw the class?

    Every original is unlearned by every method, and compared, image by image, with the retrained models. One result for each forgotten class.

    Args:
        methods: by name; "original" is taken.
        shadows: from `train_class_shadows`.
        fpr: false-positive rate at which true positives are counted, in (0, 1].
        device: where models are unlearned and scored.

    Raises:
        ConfigError: a method named "original", or fpr outside its range.
        DataError: a method cannot forget these classes, or the test set has no image of a forgotten class, or fewer than 4 of a remaining one.
        ModelError: a method diverged. StoreError: the store cannot be written.

    Cost: `len(shadows)` runs of each method, taken from the store where they are done.

    Paper: Hayes et al., SaTML 2025, arXiv:2403.01218; the protocol for classes is ours after Kodge et al., TMLR 2024.

    Example:
        >>> import tempfile, expunge
        >>> train, test = (data.subset(range(60)) for data in expunge.load_data("digits"))
        >>> build, recipe = expunge.architecture("small", train), expunge.Recipe(epochs=1)
        >>> with tempfile.TemporaryDirectory() as store:
        ...     shadows = expunge.train_class_shadows(
        ...         build, expunge.forget_classes(train, [3]), test, n=3, recipe=recipe, store=store, executor="serial"
        ...     )
        ...     found = class_leakage({"TRW": expunge.TRW(epochs=1)}, shadows)
        >>> [leakage.name for leakage in found]
        ['3']
    """
    _check_names(methods)
    views = [_ClassView(shadows, k) for k in shadows.split.forget_classes]
    originals = shadows.original_logits
    results = [{UNTOUCHED: view.compare([view.margins(z[view.positions]) for z in originals], fpr)} for view in views]
    for done, (name, method) in enumerate(methods.items()):
        margins: list[list[dict[str, Tensor]]] = [[] for _ in views]
        for m, seed in enumerate(shadows.seeds):
            progress.report(STAGE, done * len(shadows) + m, len(methods) * len(shadows), name)
            with progress.silent():
                model = unlearn_stored(
                    method, shadows.original(m), shadows.split, build=shadows.build, store=shadows.store, seed=seed, device=device
                ).model.to(resolve_device(device))
                for view, found in zip(views, margins, strict=True):
                    found.append(view.margins(logits_of(model, view.images)))
        for view, found, result in zip(views, margins, results, strict=True):
            result[name] = view.compare(found, fpr)
    progress.report(STAGE, len(methods) * len(shadows), len(methods) * len(shadows))
    classes = shadows.split.train.classes
    return [
        ClassLeakage(classes[view.forgotten], classes[view.neighbour], rows, view.floors(), len(shadows))
        for view, rows in zip(views, results, strict=True)
    ]


class _ClassView:
    """One forgotten class: its images, seen and unseen, its neighbour, and what retrained models say of them."""

    def __init__(self, shadows: ClassShadows, forgotten: int) -> None:
        split, test, everything = shadows.split, shadows.test, shadows.retrained_logits
        self.forgotten = forgotten
        exam = MIANN().exam(test.labels, split.forget_classes, everything[:, len(split.train) :], forgotten)
        self.neighbour = neighbour_of(exam.references)
        samples = pool(split.train, test)
        self.positions = (samples.labels == forgotten).nonzero().flatten()  # training images first
        self.n_seen = int((self.positions < len(split.train)).sum())
        self.images = samples.subset(self.positions)
        self.retrained = _stacked([self.margins(logits[self.positions]) for logits in everything])

    def margins(self, logits: Tensor) -> dict[str, Tensor]:
        """The margins of the class and of its neighbour, on seen and on unseen images, from a model's logits on `images`."""
        margins: dict[str, Tensor] = {}
        for name, k in (("own", self.forgotten), ("neighbour", self.neighbour)):
            every = logit_margin(logits, torch.full((len(logits),), k))
            margins |= {f"{name} train": every[: self.n_seen], f"{name} unseen": every[self.n_seen :]}
        return margins

    def compare(self, models: Sequence[dict[str, Tensor]], fpr: float) -> dict[str, ULiRAResult]:
        """The margins of models that knew the class against those of the retrained ones."""
        return {key: u_lira_class(own, self.retrained[key], fpr=fpr) for key, own in _stacked(models).items()}

    def floors(self) -> dict[str, Estimate]:
        """The same between retrained models, where there are enough."""
        return {key: u_lira_floor(margins) for key, margins in self.retrained.items() if len(margins) >= FLOOR_MODELS}


def _stacked(models: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([margins[key] for margins in models]) for key in models[0]}


def _check_names(methods: Mapping[str, Method]) -> None:
    if UNTOUCHED in methods:
        raise ConfigError(
            f"no method may be named {UNTOUCHED!r}, the name of the models before unlearning; got {list(methods)}. Rename it."
        )


def sample_leakage(
    methods: Mapping[str, Method],
    shadows: ShadowModels,
    train: Samples,
    test: Samples,
    candidates: Sequence[int] | Tensor,
    *,
    store: Store,
    fpr: float = 0.01,
    device: str | torch.device = "auto",
) -> dict[str, ULiRAResult]:
    """U-LiRA for single samples, by the pool design: which of the candidates did this model see, and then forget?

    Each shadow model was trained on half of the candidates and is made to forget exactly those; the other half it never saw. So one training and one run of each method
    a model give, for every candidate, M / 2 models that forgot it and M / 2 that never knew it.

    Args:
        methods: by name; "original" is taken.
        shadows: from `train_shadow_models(…, balanced=candidates)`.
        train, test: the sets that they were trained on halves of.
        candidates: positions in `train`, an even number; not too few (a hundred), and few beside the rest.
        store: where unlearned models are kept.
        fpr: false-positive rate at which true positives are counted, in (0, 1).

    Returns:
        One result a method, and first "original": the shadow models before unlearning. 0.5 is what retraining would give.

    Raises:
        ConfigError: a method named "original", or fpr outside its range.
        DataError: the shadow models are of other data, fewer than 6, not in a store, or do not hold half of the candidates each.
        ModelError: a method diverged. StoreError: the store cannot be written.

    Cost: M runs of each method.

    Example:
        >>> import pathlib, tempfile, expunge
        >>> from expunge.store import Store
        >>> train, test = (data.subset(range(60)) for data in expunge.load_data("digits"))
        >>> build, recipe = expunge.architecture("small", train), expunge.Recipe(epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store, candidates = Store(pathlib.Path(folder)), range(20)
        ...     shadows = expunge.train_shadow_models(
        ...         build, train, test, n=6, recipe=recipe, store=store, balanced=candidates, executor="serial"
        ...     )
        ...     found = sample_leakage({"fine-tuned": expunge.FineTune(epochs=1)}, shadows, train, test, candidates, store=store)
        >>> list(found)
        ['original', 'fine-tuned']
    """
    _check_names(methods)
    everything, candidates = pool(train, test), check_indices(candidates, len(train), "candidates")
    if shadows.n_train != len(train) or not torch.equal(shadows.labels, everything.labels):
        raise DataError(
            f"shadow models must be trained on halves of these training and test samples; got models of {shadows.n_train} and "
            f"{len(shadows.labels) - shadows.n_train} for {len(train)} and {len(test)}, or other labels. Pass the sets that train_shadow_models was given."
        )
    included, labels = shadows.included[:, candidates], train.labels[candidates]
    if shadows.build is None or (included.sum(1) * 2 != len(candidates)).any():
        raise DataError(
            f"every shadow model must be in a store, and trained on half of the candidates; got {sorted(set(included.sum(1).tolist()))} of {len(candidates)}. "
            "Train them with train_shadow_models(…, balanced=candidates)."
        )

    def margins(model: nn.Module) -> Tensor:
        return logit_margin(logits_of(model.to(resolve_device(device)), train.subset(candidates)), labels)

    before = torch.stack([logit_margin(logits, labels) for logits in shadows.logits[:, candidates]])
    results = {UNTOUCHED: u_lira_pool(before, included, fpr=fpr)}
    for done, (name, method) in enumerate(methods.items()):
        after = []
        for m in range(len(shadows)):
            progress.report(STAGE, done * len(shadows) + m, len(methods) * len(shadows), name)
            known = shadows.included[m].nonzero().flatten()
            split = forget_samples(everything.subset(known), torch.isin(known, candidates).nonzero().flatten())
            with progress.silent():
                unlearned = unlearn_stored(method, shadows.model(m), split, build=shadows.build, store=store, seed=m, device=device)
                after.append(margins(unlearned.model))
        results[name] = u_lira_pool(torch.stack(after), included, fpr=fpr)
    progress.report(STAGE, len(methods) * len(shadows), len(methods) * len(shadows))
    return results
