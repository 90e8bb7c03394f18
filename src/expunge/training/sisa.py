"""SISA: a training that is made to be undone. Each sample is seen by one of several models, and by it only from some moment on.

Unlearning is then exact, and cheaper than training anew: the models that never saw a sample stay, and those that did go back to the last moment before it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ..checks import check_indices, choose, is_integer
from ..data.images import Samples, Subset, places
from ..data.split import Split
from ..errors import ConfigError, DataError
from ..progress import report
from ..rng import check_seed, derive, fork, uniform
from ..store import Cell, Store
from .aggregate import AGGREGATES, Aggregate
from .executors import AnyExecutor, launcher_of
from .fleet import digest_of_layers
from .recipe import Build, Recipe
from .stages import Job, Stage, State, train_stages, weights_of

STAGE = "train shards"
SHARD, SLICE, TRAINING = 1, 2, 3  # purposes of derived seeds
PROTOCOL = 1  # raise it when training changes, so that stored models are not mistaken for new ones


@final
@dataclass(frozen=True, eq=False, repr=False)
class SISA:
    """Models of disjoint shards of a training set, each with checkpoints from before it saw later slices of its shard. Made by `train_sisa` and by `unlearn`.

    Attributes:
        train: the samples that the models have seen, and no others.
        build, recipe, shards, slices, seed, store: as `train_sisa` was given them.
        checkpoints: for each shard and slice the model after that slice: weights, a cell of the store, or None where the shard has no sample so far.
        trained: (shard, slice) of the checkpoints that were made for this ensemble; the others are those of the ensemble that it was unlearned from.

    Example:
        >>> from expunge import Recipe, architecture, forget_samples, load_data
        >>> train, test = load_data("digits")
        >>> before = train_sisa(architecture("small", train), train, Recipe(epochs=2), shards=4, slices=2, workers=1)
        >>> after = before.unlearn(forget_samples(train, [17]), workers=1)
        >>> len(after.trained), after.passes < after.full_passes / 2
        (1, True)
    """

    train: Samples
    build: Build
    recipe: Recipe
    shards: int
    slices: int
    seed: int
    store: Store | None
    checkpoints: tuple[tuple[State | Cell | None, ...], ...]
    trained: tuple[tuple[int, int], ...]

    def __repr__(self) -> str:
        return (
            f"SISA({self.shards} shards × {self.slices} slices, {len(self.train)} samples; "
            f"{len(self.trained)} of {self.shards * self.slices} stages trained, {self.passes:.3g} of {self.full_passes:.3g} passes)"
        )

    @property
    def passes(self) -> float:
        """What making it took, in passes over its samples, forward and backward; what the store already had counts as well."""
        return self._visits(self.trained) / len(self.train)

    @property
    def full_passes(self) -> float:
        """What training all of it anew would have taken."""
        return self._visits([(s, r) for s in range(self.shards) for r in range(self.slices)]) / len(self.train)

    def model(self, aggregate: str = "mean") -> nn.Module:
        """One classifier: the log of what all models answer together, on the CPU, in eval mode; to be audited like any other.

        Args:
            aggregate: "mean" of the models' probabilities, or "votes" for their first choices, ties broken by that mean.
        """
        choose("way to aggregate", aggregate, AGGREGATES)
        models = []
        for checkpoint in (checkpoints[-1] for checkpoints in self.checkpoints):
            if checkpoint is not None:
                with fork(0):
                    models.append(self.build())
                models[-1].load_state_dict(weights_of(checkpoint))
        return Aggregate(models, aggregate).eval()

    def unlearn(
        self,
        forget: Split | Sequence[int] | Tensor,
        *,
        executor: AnyExecutor = "pool",
        workers: int | str = "auto",
        device: str | torch.device = "auto",
    ) -> "SISA":
        """A new ensemble: bit for bit the one that `train_sisa` makes of the samples that stay. This one stays as it is.

        Args:
            forget: a split of the training set, or of a part of it; or the samples' ids, which are their positions in the outermost training set, whatever has left since.
            executor, workers, device: as in `train_sisa`.

        Raises:
            DataError: samples that the models have not seen, such as those that were unlearned before; or all that they have.

        Cost: `passes` of the new ensemble. Of S shards with R slices, one sample costs about (2/3 + 1/(3R)) / S of a whole training; many samples hit all shards.
        """
        ids = self._ids(forget)
        stays = ~torch.isin(self.train.ids, ids)
        if not stays.any():
            raise DataError(f"some samples must stay; got all {len(ids)} of the ensemble. If everything must go, delete its models.")
        shard, slice_ = homes(ids, self.shards, self.slices, self.seed)
        first = [int(slice_[shard == s].min()) if (shard == s).any() else self.slices for s in range(self.shards)]
        kept = tuple(checkpoints[:r] for checkpoints, r in zip(self.checkpoints, first, strict=True))
        left = dataclasses.replace(self, train=_rooted(self.train, stays.nonzero().flatten()), checkpoints=kept, trained=())
        return _complete(left, executor, workers, device)

    def _ids(self, forget: Split | Sequence[int] | Tensor) -> Tensor:
        if isinstance(forget, Split):
            ours, theirs = self.train.root, forget.train.root
            if ours is not theirs and ours.fingerprint != theirs.fingerprint:
                raise DataError(
                    f"the split must be of the data that the ensemble was trained on; got {theirs!r} and {ours!r}. Make it anew."
                )
            ids = forget.forget.ids
        else:
            ids = check_indices(forget, int(self.train.ids.max()) + 1, "ids to forget")
        strange = ids[places(self.train.ids, ids) < 0]
        if len(strange):
            raise DataError(
                f"samples to forget must be among the {len(self.train)} of the ensemble; got {len(strange)} others (first: {int(strange[0])}). "
                "They were never trained on, or were unlearned before."
            )
        return ids

    def _members(self, shard: int) -> list[Tensor]:
        """Positions in `train` of each slice of a shard."""
        shards, slices = homes(self.train.ids, self.shards, self.slices, self.seed)
        return [((shards == shard) & (slices == r)).nonzero().flatten() for r in range(self.slices)]

    def _visits(self, stages: Sequence[tuple[int, int]]) -> int:
        epochs = epochs_of_slices(self.recipe.epochs, self.slices)
        sizes: dict[int, list[int]] = {}
        for s, _ in stages:
            sizes[s] = sizes.get(s) or torch.tensor([len(m) for m in self._members(s)]).cumsum(0).tolist()
        return sum(epochs[r] * sizes[s][r] for s, r in stages)


def train_sisa(
    build: Build,
    train: Samples,
    recipe: Recipe,
    *,
    shards: int = 5,
    slices: int = 1,
    seed: int = 0,
    store: Store | str | Path | None = None,
    executor: AnyExecutor = "pool",
    workers: int | str = "auto",
    device: str | torch.device = "auto",
) -> SISA:
    """Trains a model on each shard of the training set, slice by slice, so that samples can be unlearned exactly.

        D = D¹ ∪ … ∪ Dˢ,    Dˢ = Dˢ₁ ∪ … ∪ Dˢ_R;    θˢ_r: trained from θˢ_{r−1} on Dˢ₁ ∪ … ∪ Dˢ_r

    Shard and slice of a sample are a function of (seed, id) alone, so that a removal moves no other sample; sizes are therefore equal on average only. Each stage has a
    seed of its own, a new optimiser, the recipe's schedule from its start, and int(r ē) − int((r − 1) ē) epochs, ē = 2 epochs / (R + 1), so that a sample is seen
    about `recipe.epochs` times on average.

    What knows the forgotten samples is not only the models: `build` may have taken a mean of pixels from them, and the ensemble from before lives on, in memory or in the
    folders of its cells in the store, until you delete it.

    Args:
        build: returns a freshly initialised model.
        train: the training set, or a part of it.
        recipe: how each model is trained.
        shards: S, number of models, ≥ 1. The more, the cheaper to unlearn and the less accurate: each sees 1/S of the data.
        slices: R, checkpoints of each model, ≥ 1.
        seed: decides shards, slices, initial weights and orders, in [0, 2**63).
        store: a `Store`, or its folder, which keeps every checkpoint: what is there is not trained again. None = checkpoints are in memory.
        executor, workers: where and how many shards are trained at a time, as in `train_fleet`.
        device: "auto", "cpu", "cuda", …

    Raises:
        ConfigError: shards or slices are no integers ≥ 1, or there are too few epochs for so many slices.
        ModelError: a model diverged or does not fit the data. StoreError: the store cannot be written.

    Cost: about `recipe.epochs` passes.
    Paper: Bourtoule et al., "Machine Unlearning", IEEE S&P 2021, arXiv:1912.03817.
    Departures: shards are drawn sample by sample, not cut to equal sizes; all models have the same weight. The authors' code does not switch to eval mode where it
    aggregates.

    Example:
        >>> import expunge
        >>> train = expunge.load_data("digits").train.subset(range(60))
        >>> sisa = train_sisa(expunge.architecture("small", train), train, expunge.Recipe(epochs=1), shards=2, executor="serial")
        >>> expunge.logits_of(sisa.model(), train).shape
        torch.Size([60, 10])
    """
    for name, value in (("shards", shards), ("slices", slices)):
        if not is_integer(value, 1):
            raise ConfigError(f"{name} must be an integer ≥ 1; got {value!r}. 5 shards and 1 slice are a start.")
    check_seed(seed)
    if 0 in epochs_of_slices(recipe.epochs, slices):
        raise ConfigError(
            f"recipe.epochs must be at least {math.ceil((slices + 1) / 2)} for {slices} slices, so that each gets an epoch; got {recipe.epochs}. "
            "Train longer, or with fewer slices."
        )
    store = store if store is None or isinstance(store, Store) else Store(Path(store))
    whole = _rooted(train, torch.arange(len(train)))
    return _complete(SISA(whole, build, recipe, shards, slices, seed, store, ((),) * shards, ()), executor, workers, device)


def homes(ids: Tensor, shards: int, slices: int, seed: int) -> tuple[Tensor, Tensor]:
    """Shard and slice of the samples with these ids, int64 (N,) each: functions of (seed, id) alone."""
    return uniform(seed, SHARD, ids=ids, high=shards), uniform(seed, SLICE, ids=ids, high=slices)


def epochs_of_slices(epochs: int, slices: int) -> list[int]:
    """Epochs after each new slice, so that a sample is seen about `epochs` times on average.

    Example:
        >>> epochs_of_slices(20, 3), epochs_of_slices(20, 1)
        ([10, 10, 10], [20])
    """
    done = [2 * epochs * r // (slices + 1) for r in range(slices + 1)]
    return [b - a for a, b in itertools.pairwise(done)]


def _complete(ensemble: SISA, executor: AnyExecutor, workers: int | str, device: str | torch.device) -> SISA:
    """The ensemble with the checkpoints that it lacks."""
    launcher, data = launcher_of(executor), ensemble.train
    device = launcher.device_for(device)
    jobs = [job for job in _jobs(ensemble) if job.stages]
    checkpoints = [list(c) + [None] * (ensemble.slices - len(c)) for c in ensemble.checkpoints]
    trained = []
    store = None if ensemble.store is None else ensemble.store.root
    with launcher.launch((data,), tasks=jobs, workers=workers, device=device, store=store) as running:
        futures = [running.submit(train_stages, job, device) for job in jobs]
        for done, (job, future) in enumerate(zip(jobs, futures, strict=True)):
            first = ensemble.slices - len(job.stages)
            checkpoints[job.shard][first:] = future.result()
            trained += [(job.shard, r) for r in range(first, ensemble.slices)]
            report(STAGE, done + 1, len(jobs))
    return dataclasses.replace(ensemble, checkpoints=tuple(map(tuple, checkpoints)), trained=tuple(trained))


def _jobs(ensemble: SISA) -> Iterator[Job]:
    recipe, store = ensemble.recipe, ensemble.store
    recipes = [dataclasses.replace(recipe, epochs=e) for e in epochs_of_slices(recipe.epochs, ensemble.slices)]
    digest = digest_of_layers(ensemble.build) if store is not None else ""
    for shard, kept in enumerate(ensemble.checkpoints):
        members, stages = ensemble._members(shard), []
        for r in range(len(kept), ensemble.slices):
            positions = torch.cat(members[: r + 1]).sort().values
            if len(positions):  # a shard has no model before its first sample
                cell = None if store is None else store.cell("sisa", _spec(ensemble, shard, members[: r + 1], digest))
                stages.append(Stage(positions, recipes[r], derive(ensemble.seed, TRAINING, shard, r), cell))
        yield Job(shard, ensemble.build, kept[-1] if kept else None, stages)


def _spec(ensemble: SISA, shard: int, members: list[Tensor], digest: str) -> dict[str, Any]:
    """What a checkpoint depends on: the slices that it has seen, but no later one."""
    data = ensemble.train
    return {
        "build": ensemble.build,
        "layers": digest,
        "recipe": ensemble.recipe,
        "seed": ensemble.seed,
        "shard": shard,
        "slices": ensemble.slices,
        "data": data.root.fingerprint,
        "augment": data.augment,
        "members": [{"positions": data.rooted(m), "labels": data.labels[m]} for m in members],
        "protocol": PROTOCOL,
    }


def _rooted(samples: Samples, positions: Tensor) -> Subset:
    """These samples as a part of the set that holds their pixels: the same whichever way they were chosen."""
    return Subset(samples.root, samples.rooted(positions), samples.labels[positions])
