"""One combination of a plan's grid with everything made that its cells need: data, architecture, split, tasks."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from ..auditing import audited_samples
from ..audits.audited import Audited, unseen_groups
from ..audits.base import MembershipAudit
from ..data.images import Augment, ImageData, Samples
from ..data.load import load_data
from ..data.pool import pool
from ..data.split import Split
from ..data.stream import StreamedData
from ..errors import DataError
from ..methods import Method
from ..models import architecture, import_build
from ..rng import permutation
from ..store import Cell, Store
from ..training.fleet import TrainTask, fleet_cells, load_trained
from ..training.recipe import Build, Recipe
from ..training.shadow import shadow_tasks, train_shadow_models
from ..tuning import development_split, start_of
from .plan import Data, Plan

RETRAINED_SEED = 100  # of the first retrained model: originals have other initial weights
VALIDATION = 4  # every so many test images one is for tuning, and not for the audit


@final
@dataclass(frozen=True, eq=False)
class Point:
    """What one combination of the grid works with. It can be sent to another process.

    Attributes:
        title: of data, architecture and forget set.
        split: what is forgotten of the training set.
        test: all test images, which shadow models may be trained on; pool: training and test images, all of which every model answers; validation: those for tuning; held_out: those of the audit.
    """

    title: str
    split: Split
    test: Samples
    pool: Samples
    build: Build
    recipe: Recipe
    methods: dict[str, Method]
    attacks: tuple[MembershipAudit, ...]
    seeds: int
    n_retrained: int
    n_shadows: int
    trials: int
    store: Store

    @cached_property
    def validation(self) -> Samples:
        return self.test.subset(range(0, len(self.test), VALIDATION))

    def tunes(self, name: str) -> bool:
        """Whether a setting of this method is chosen by `tune`."""
        return bool(self.trials) and name in self.methods and self.methods[name].to_tune(self.split) is not None

    @cached_property
    def held_out(self) -> Tensor:
        """Positions in `test` of the images of the audit: all, if nothing is tuned."""
        positions = torch.arange(len(self.test))
        return positions[positions % VALIDATION != 0] if self.trials else positions

    @cached_property
    def tasks(self) -> dict[str, list[TrainTask]]:
        """What is trained from scratch: "originals", "retrained", "development" (without what tuning pretends to forget) and "shadows"."""
        everything, retain = torch.arange(len(self.split.train)), self.split.retain.positions
        return {
            "originals": [self._task(everything, seed, "original") for seed in range(self.seeds)],
            "retrained": [self._task(retain, RETRAINED_SEED + k, "retrained") for k in range(self.n_retrained)],
            "development": [self._task(development_split(self.split).retain.positions, RETRAINED_SEED, "retrained")] if self.trials else [],
            "shadows": shadow_tasks(self.build, self.split.train, self.test, n=self.n_shadows, recipe=self.recipe)
            if self.n_shadows
            else [],
        }

    @cached_property
    def cells(self) -> dict[str, list[Cell]]:
        """Of the tasks, in their order."""
        flat = fleet_cells([task for tasks in self.tasks.values() for task in tasks], self.pool, self.store)
        left = iter(flat)
        return {kind: list(itertools.islice(left, len(tasks))) for kind, tasks in self.tasks.items()}

    def _task(self, positions: Tensor, seed: int, kind: str) -> TrainTask:
        return TrainTask(build=self.build, recipe=self.recipe, positions=positions, seed=seed, kind=kind, name=f"{kind} model {seed}")

    def model(self, kind: str, k: int = 0) -> nn.Module:
        """One of the models that were trained from scratch."""
        return load_trained(self.cells[kind][k], self.build)

    @cached_property
    def audited(self) -> Audited:
        """The samples of the audits, and what the shadow models, which must be trained, answer on them; read once in a process."""
        shadows = None
        if self.n_shadows:
            shadows = train_shadow_models(
                self.build, self.split.train, self.test, n=self.n_shadows, recipe=self.recipe, store=self.store, workers=1
            )
        return audited_samples(self.split, self.test.subset(self.held_out), shadows)

    def by_group(self, logits: Tensor) -> dict[str, Tensor]:
        """What a model answers on the pool, (N, K), cut into the groups of the audit."""
        n, held_out = len(self.split.train), self.held_out
        unseen = unseen_groups(self.test.labels[held_out], self.split.forget_classes, self.test.classes)
        at = {"forget": self.split.forget_indices, "retain": self.split.retain.positions}
        at |= {group: n + held_out[positions] for group, positions in unseen.items()}
        return {group: logits[at[group]] for group in self.audited.labels}


def points(plan: Plan, store: Store | str | Path, root: str | Path) -> list[Point]:
    """The grid with its data loaded.

    Raises:
        MissingError, DataError, ConfigError: no such data or architecture, or a forget set that does not fit.
    """
    store, loaded = store if isinstance(store, Store) else Store(Path(store)), {}
    store = replace(store, root=store.root.absolute())  # workers may be in another folder
    found = []
    methods = dict(cast(Mapping[str, Method], plan.methods))  # a plan gives each its name
    for values in plan.grid():
        if id(values["data"]) not in loaded:
            pair = _load(values["data"], plan, root)
            loaded[id(values["data"])] = (*pair, pool(*pair))
        train, test, both = loaded[id(values["data"])]
        arch = values["arch"]
        build = arch if callable(arch) else import_build(arch) if ":" in arch else architecture(arch, train)
        split = values["forget"](train)
        found.append(
            Point(
                title=_title(values, len(train)),
                split=split,
                test=test,
                pool=both,
                build=build,
                recipe=values["recipe"],
                methods=methods,
                attacks=tuple(plan.attacks or ()),
                seeds=plan.seeds,
                n_retrained=plan.n_retrained,
                n_shadows=plan.shadows,
                trials=plan.tuning,
                store=store,
            )
        )
        _check_methods(methods, split, plan.tuning)
    return found


def _load(data: Data, plan: Plan, root: str | Path) -> tuple[Samples, Samples]:
    train, test = load_data(data, root=root) if isinstance(data, str | Path) else data
    if plan.n_train is not None and plan.n_train < len(train):
        train = _some(train, plan.n_train)
    return (train, test) if plan.augment is None else (_augmented(train, plan.augment), _augmented(test, plan.augment))


def _some(train: Samples, n: int) -> Samples:
    """So many random samples, always the same ones, as a training set of its own."""
    chosen = permutation(len(train), 0)[:n].sort().values
    return (
        replace(train, images=train.images[chosen], labels=train.labels[chosen]) if isinstance(train, ImageData) else train.subset(chosen)
    )


def _augmented(samples: Samples, augment: Augment) -> Samples:
    if not hasattr(samples, "__dataclass_fields__") or "augment" not in samples.__dataclass_fields__:
        raise DataError(f"augment can be set for data sets in memory; got {type(samples).__name__}. Set it where the data are made.")
    return replace(cast(ImageData | StreamedData, samples), augment=augment)


def _check_methods(methods: Mapping[str, Method], split: Split, tuning: int) -> None:
    """Says before anything is trained what would fail after it."""
    wrong = [name for name, method in methods.items() if method.scenario == "classes" and not split.forget_classes]
    if wrong:
        raise DataError(
            f"{', '.join(wrong)} forget whole classes; got {len(split.forget_indices)} samples to forget. Leave them out, or forget classes."
        )
    for method in methods.values():
        if tuning and method.to_tune(split) is not None:
            start_of(method, split)


def _title(values: Mapping[str, Any], n: int) -> str:
    data, arch = values["data"], values["arch"]
    named = str(data) if isinstance(data, str | Path) else "own data"
    return f"{named} ({n:,} training images), {arch if isinstance(arch, str) else getattr(arch, 'name', getattr(arch, '__name__', 'own model'))}, {values['forget']}"
