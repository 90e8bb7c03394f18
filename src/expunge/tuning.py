"""Choosing a method's step size without looking at the retrained model: by forgetting other samples first, whose retraining is known."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import nn

from . import progress
from .auditing import audit
from .audits.result import ModelRow
from .checks import is_integer
from .costs import Cost, measure_cost
from .data.images import Samples
from .data.split import Split, forget_classes, forget_samples
from .errors import ConfigError, DataError, NotFinite
from .methods.base import Method
from .methods.retrain import Retrain
from .metrics.estimate import Estimate
from .rng import derive, permutation
from .store import Store
from .stored import unlearn_stored
from .training.recipe import Build, Recipe

STEP, FINEST = math.sqrt(10), 1.1


@final
@dataclass(frozen=True, eq=False)
class Trial:
    """One setting that was tried on the development split.

    Attributes:
        method: with the setting.
        value: of the field that is tuned.
        gap: average gap to the model retrained without the pretended forget set, in [0, 1]; None where training diverged.
        row: accuracies and gaps, as in an audit; None where training diverged.
        seconds: that the method took.
        passes: over the training set, counted when the model was made; 0 where a store of an older version does not tell.
    """

    method: Method
    value: float
    gap: Estimate | None
    row: ModelRow | None
    seconds: float
    passes: float


@final
@dataclass(frozen=True, eq=False)
class Tuning:
    """What `tune` found.

    Attributes:
        method: with the best setting.
        field: the setting's name.
        trials: in the order in which they were made.
        split: the development split.

    Example:
        >>> import expunge
        >>> train, test = expunge.load_data("digits")
        >>> build, recipe = expunge.architecture("small", train), expunge.Recipe(epochs=1)
        >>> model, split = expunge.train_model(build, train, recipe), expunge.forget_random(train, 50)
        >>> found = expunge.tune(expunge.FineTune(epochs=1), model, split, test, build=build, recipe=recipe, trials=1)
        >>> found.field, found.method.lr == found.trials[0].value
        ('lr', True)
    """

    method: Method
    field: str
    trials: tuple[Trial, ...]
    split: Split

    @property
    def passes(self) -> float:
        """Over the training set, that all trials took; without the retraining."""
        return sum(trial.passes for trial in self.trials)

    @property
    def at_the_end(self) -> bool:
        """Whether the best setting is the smallest or largest that was tried: a better one may lie beyond."""
        values = [trial.value for trial in self.trials]
        return getattr(self.method, self.field) in (min(values), max(values))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        trials = [
            {"value": t.value, "gap": t.gap and t.gap.to_dict(), "seconds": t.seconds, "passes": round(t.passes, 3)} for t in self.trials
        ]  # fmt: skip
        return {
            "field": self.field,
            "best": getattr(self.method, self.field),
            "at_the_end": self.at_the_end,
            "trials": trials,
        }

    def __str__(self) -> str:
        best = getattr(self.method, self.field)
        lines = [f"{'→' if t.value == best else ' '} {self.field} = {t.value:<10.3g} average gap {_shown(t.gap)}" for t in self.trials]
        end = "\nThe best is at the end of what was tried; allow more trials." if self.at_the_end else ""
        return "\n".join(lines) + end


def tune(
    method: Method,
    model: nn.Module,
    split: Split,
    validation: Samples,
    *,
    build: Build,
    recipe: Recipe,
    trials: int = 6,
    field: str | None = None,
    retrained: nn.Module | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    store: Store | None = None,
) -> Tuning:
    """Chooses one setting of a method, without the model that is retrained without the forget set.

        D_P ⊂ D_R, as large as D_F (at most half of D_R) and of its kind: random samples, or as many other whole classes
        θ_P = trained on D \\ D_P                                  once for a model, whatever is tuned
        x₀ = the setting as it is;  try x₀, then √10 x₀, and go on upwards as long as the gap falls; else x₀/√10, and downwards;
        where both neighbours of the best are worse, go on with √√10 for √10; until the trials are used up
        choose the x whose θ_U, unlearned from θ_O on (D_P, D \\ D_P), has the smallest average gap to θ_P

    All methods get the same number of trials, so that none is tuned better than another. What papers report is usually tuned on the retrained model itself.

    Args:
        method: with the setting to start from.
        model: θ_O, trained on all of `split.train` with `build` and `recipe`.
        split: what is to be forgotten later; its forget set is trained on here.
        validation: unseen images, as `audit` takes for `test`; for an honest table not those of the final audit.
        build, recipe: of the original.
        trials: at most so many, ≥ 1; the budget. With two, or three where the first step up helps, nothing below the start is tried.
        field: of the method; None = what it says itself (`method.to_tune(split)`).
        retrained: θ_P, if it is known; it must be of `development_split(split, seed)`.
        seed: decides D_P, and is that of training and unlearning.
        store: keeps θ_P and all unlearned models, so that nothing is made twice and a run can be continued.

    Raises:
        ConfigError: nothing to tune, no such field, or its value is not a number > 0, or `trials` < 1. DataError: the retain data are gone, or too few to pretend with.
        NotFinite: training diverged in all trials.

    Cost: `trials` times the method's, and one retraining if `retrained` is None and `store` does not hold it.
    Example:
        >>> import expunge
        >>> train, test = expunge.load_data("digits")
        >>> build, recipe = expunge.architecture("small", train), expunge.Recipe(epochs=3)
        >>> original = expunge.train_model(build, train, recipe)
        >>> found = tune(expunge.FineTune(epochs=1), original, expunge.forget_random(train, 50), test, build=build, recipe=recipe, trials=2)
        >>> found.field, len(found.trials)
        ('lr', 2)
    """
    if not is_integer(trials, 1):
        raise ConfigError(f"trials must be an integer ≥ 1; got {trials!r}. It is how many settings are tried.")
    field, first = start_of(method, split, field)
    development = development_split(split, seed)
    if retrained is None:
        progress.report("tuning", 0, trials, "retraining")
        retrained = _made(Retrain(build=build, recipe=recipe), model, development, build, seed, device, store)[0]
    done: list[Trial] = []
    for value in _walk(first, done):
        progress.report("tuning", len(done), trials, f"{field} = {value:.3g}")
        trial = _tried(method, field, value, model, retrained, development, validation, build, seed, device, store)
        if trial is None:
            continue
        done.append(trial)
        if len(done) == trials:
            break
    progress.report("tuning", trials, trials)
    sound = [trial for trial in done if trial.gap is not None]
    if not sound:
        raise NotFinite(f"training diverged with {field} = {', '.join(f'{t.value:.3g}' for t in done)}. Start from a smaller {field}.")
    best = min(sound, key=_gap)
    return Tuning(best.method, field, tuple(done), development)


def development_split(split: Split, seed: int = 0) -> Split:
    """A forget set to practise on: of the retain samples, as many as are to be forgotten but at most half, or as many whole classes.

    Args:
        seed: in [0, 2**63).

    Raises:
        DataError: the retain data are gone, or too few.

    Example:
        >>> import expunge
        >>> train, _ = expunge.load_data("digits")
        >>> development_split(expunge.forget_random(train, 50)).forget_indices.shape
        torch.Size([50])
    """
    retain = split.retain
    if split.forget_classes:
        others = [k for k in range(len(split.train.classes)) if k not in split.forget_classes and (split.train.labels == k).any()]
        if len(others) <= len(split.forget_classes):
            raise DataError(
                f"tuning needs more other classes than the {len(split.forget_classes)} that are forgotten; got {len(others)}. Choose the setting yourself."
            )
        order = permutation(len(others), derive(seed, 1))[: len(split.forget_classes)]
        return forget_classes(split.train, [others[k] for k in order.tolist()])
    n = min(len(split.forget_indices), len(retain) // 2)  # something must be left to retain
    if n == 0:
        raise DataError(f"tuning needs at least 2 retain samples; got {len(retain)}. Choose the setting yourself.")
    positions = retain.positions
    return forget_samples(split.train, positions[permutation(len(positions), derive(seed, 1))[:n]])


def start_of(method: Method, split: Split, field: str | None = None) -> tuple[str, float]:
    """The setting that `tune` chooses, `field` or what the method says itself, and the value that it starts from.

    Raises:
        ConfigError: the method has nothing to tune, no such field, or its value is not a number > 0.

    Example:
        >>> import expunge
        >>> train, _ = expunge.load_data("digits")
        >>> start_of(expunge.SSD(), expunge.forget_classes(train, [3]))
        ('alpha', 4.901960784313726)
    """
    own = method.to_tune(split)
    if field is None and own is None:
        found = "finds its step itself here (until)" if method.tunes else "has no step size"
        raise ConfigError(
            f"a method must have a setting that is to be tuned; got {method.name}, which {found}. Pass field= to tune another setting, or use it as it is."
        )
    name, value = own if own and field in (None, own[0]) else (field, getattr(method, str(field), None))
    if name is None or not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ConfigError(
            f"field must name a setting of {method.name} that is a number > 0; got {name!r}, which is {value!r}. Pass another field=, or set it first."
        )
    return name, value


def _walk(first: float, done: list[Trial]) -> Iterator[float]:
    """Which values to try, one after another; `done` is looked at in between. On in the direction in which the gap falls, so that few trials reach far."""
    yield first
    step = STEP
    while step > FINEST:
        centre = _best_of(done, first)
        for value in (centre * step, centre / step):
            if not any(math.isclose(value, trial.value) for trial in done):
                yield value
            if _best_of(done, first) != centre:
                break
        else:
            step = math.sqrt(step)


def _best_of(done: list[Trial], first: float) -> float:
    """The best value so far; where training diverged with all, the smallest."""
    return min(done, key=lambda trial: (_gap(trial), trial.value)).value if done else first


def _tried(
    method: Method, field: str, value: float, model: nn.Module, retrained: nn.Module, split: Split, validation: Samples, build: Build, seed: int,
    device: str | torch.device, store: Store | None,
) -> Trial | None:  # fmt: skip
    """One trial; None where the value is outside the field's range."""
    try:
        method = replace(method, **{field: value})
    except ConfigError:
        return None
    try:
        with measure_cost() as spent:
            unlearned, cost = _made(method, model, split, build, seed, device, store)
        rows = audit({"unlearned": unlearned, "retrained": retrained}, split, validation, device=device).models
    except NotFinite:
        return Trial(method, value, None, None, 0.0, spent.passes(len(split.train)))
    row = next(row for row in rows if row.name == "unlearned")
    assert row.gaps is not None  # there is a retrained model
    return Trial(method, value, row.gaps.average, row, round(cost.seconds, 3), cost.passes(len(split.train)))


def _made(
    method: Method, model: nn.Module, split: Split, build: Build, seed: int, device: str | torch.device, store: Store | None
) -> tuple[nn.Module, Cost]:
    """The unlearned model, and what it took when it was made."""
    if store is not None:
        found = unlearn_stored(method, model, split, build=build, store=store, seed=seed, device=device)
        return found.model, Cost(seconds=found.seconds) if found.cost is None else Cost.from_dict(found.cost)
    with measure_cost() as cost:
        unlearned = method(model, split, seed=seed, device=device)
    return unlearned, cost


def _gap(trial: Trial) -> float:
    return math.inf if trial.gap is None else trial.gap.value


def _shown(gap: Estimate | None) -> str:
    return "n/a: training diverged" if gap is None else f"{gap:.3f}"
