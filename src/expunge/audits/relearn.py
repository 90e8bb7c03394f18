"""Relearn time: how many steps of SGD on the forget set bring a model back to where the original was, compared with a model that never saw it.

    r(θ) = min over learning rates of the steps until  L(D_F; θ) ≤ (1 + α) L(D_F; θ_O),   or   accuracy(D_F; θ) ≥ (1 − α) accuracy(D_F; θ_O)
    AIN  = r(θ_U) / r(θ_R)

About 1: as much work as learning it anew. Far below 1: something was left that makes it easy. Far above 1: the model resists what retraining would learn, which tells
that something was done to it (the Streisand effect).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import nn

from .. import progress
from ..checks import check_settings, setting
from ..data.images import Samples
from ..errors import ConfigError, DataError, NotFinite
from ..metrics.answers import ONE_REFERENCE
from ..metrics.estimate import Estimate, check_level, unsupported
from ..metrics.median import median, rank_of_end
from ..metrics.signals import loss
from ..rng import derive, fork, seed_setting
from ..training.inference import logits_of
from ..training.loop import sgd
from ..training.orders import Visit, shuffled
from .compared import ORIGINAL, RETRAINED, Models, cast, placed, plain, spread

MEASURES = ("loss", "accuracy")
STAGE = "relearning"


@final
@dataclass(frozen=True, eq=False)
class RelearnRow:
    """One model.

    Attributes:
        model: its name.
        steps: r for each seed; inf = not within the cap.
        rates: the learning rate that was fastest, for each seed; NaN where none was fast enough.
        median: of the steps, with an exact interval.
        ain: the median over seeds of steps / steps of the retrained models; for a retrained model, against the others.
    """

    model: str
    steps: tuple[float, ...]
    rates: tuple[float, ...]
    median: Estimate
    ain: Estimate


@final
@dataclass(frozen=True, eq=False)
class RelearnResult:
    """All models.

    Attributes:
        rows: a `RelearnRow` for each model but the original, which has nothing to relearn.
        floor: AIN of each retrained model against the others: what chance alone does.
        target: the loss or accuracy to reach. measure: which of them.
        cap: steps after which was given up. n: forget samples.
    """

    rows: list[RelearnRow]
    floor: Estimate
    target: float
    measure: str
    cap: int
    n: int

    def __getitem__(self, model: str) -> RelearnRow:
        return {row.model: row for row in self.rows}[model]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the report; None for steps beyond the cap, and for ends of intervals that it hides."""
        rows = [
            {"model": r.model, "steps": plain(r.steps), "rates": plain(r.rates), "median": plain(r.median), "ain": plain(r.ain)}
            for r in self.rows
        ]
        return {
            "rows": rows, "floor": plain(self.floor), "target": self.target, "measure": self.measure, "cap": self.cap, "n": self.n,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"steps until the {self.measure} on {self.n} forget samples is {self.target:.4g} again, at most {self.cap}"]
        return "\n".join([*lines, *(f"{r.model}: {r.median:.0f}; AIN {r.ain:.2f}" for r in self.rows), f"floor of AIN: {self.floor:.2f}"])


@final
@dataclass(frozen=True, kw_only=True)
class RelearnTime:
    """The white-box audit by relearning: plain SGD on the forget set, from each model, with several learning rates and orders of batches.

    Use when: the question is whether the forgetting is deep; a model whose answers were only suppressed comes back in a few steps. Weak where the forget set follows
    from the rest (random samples of a class that stays): the retrained model then needs next to no steps, and AIN has no value.
    Steps are plain: no momentum, no weight decay, no augmentation, BatchNorm with the statistics that it has, so that a step is one of the weights. A learning rate at which
    the loss diverges counts as not reached.
    Cost: for each model and seed, at most len(lrs) · max_steps steps of one batch, and a forward pass over the forget set after each; a learning rate is given up where
    another has been faster, so it is mostly about len(lrs) · r.

    Args:
        lrs: the grid of learning rates, each > 0. A fine grid costs more and finds smaller r, for all models alike.
        measure: "loss" (mean cross-entropy) or "accuracy".
        alpha: α, slack of the target, in [0, 1). Chundawat: accuracy within α % of the original's.
        max_steps: the cap, ≥ 1. Models beyond it are censored: their steps are known to be more, no more.
        batch_size: forget samples in a step, ≥ 1. With all of them in one batch the orders do not differ, and seeds say nothing.
        seeds: how many orders of the batches, ≥ 5. An exact 95 % interval of a median needs 6.
        seed: in [0, 2**63), of these orders.

    Raises:
        ConfigError: a setting is outside its range (at construction), or no original or no retrained model (when called).

    Example:
        >>> from torch import nn
        >>> from expunge import Recipe, forget_classes, load_data, train_model
        >>> def build():
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> split, recipe = forget_classes(load_data("digits").train.subset(range(200)), [3]), Recipe(epochs=20)
        >>> original, retrained = [train_model(build, data, recipe) for data in (split.train, split.retain)]
        >>> audit = RelearnTime(measure="accuracy", alpha=0.05, batch_size=8, max_steps=50)
        >>> result = audit({"original": original, "untouched": original, "retrained": retrained}, split.forget)
        >>> result["untouched"].median.value, result["retrained"].median.value > 0
        (0.0, True)

    Paper: relearn time after Golatkar et al., CVPR 2020, arXiv:1911.04933; AIN: Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023, arXiv:2201.05629.
    Departures: definitions from memory, their code was not checked; steps at the best of several learning rates instead of epochs at one, the original's own loss as
        target, medians over seeds with exact intervals, censoring, the floor. Accuracy "within α %" is taken as (1 − α) times the original's.
    """

    name: ClassVar[str] = "relearn_time"
    paper: ClassVar[str] = "Golatkar et al. 2020, arXiv:1911.04933; Chundawat et al. 2023, arXiv:2201.05629"

    lrs: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    measure: str = setting("loss", choices=MEASURES)
    alpha: float = setting(0.05, ge=0, lt=1)
    max_steps: int = setting(1000, ge=1)
    batch_size: int = setting(64, ge=1)
    seeds: int = setting(6, ge=5)
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.lrs or not all(isinstance(lr, int | float) and 0 < lr < math.inf for lr in self.lrs):
            raise ConfigError(
                f"RelearnTime: lrs must be learning rates > 0, at least one; got {self.lrs!r}. Pass (0.003, 0.01, 0.03, 0.1)."
            )

    def __call__(
        self, models: Models, forget: Samples, *, reference: str = RETRAINED, level: float = 0.95, device: str | torch.device = "auto"
    ) -> RelearnResult:
        """Relearns the forget set from every model.

        Args:
            models: by name, as for `audit`: "original", "retrained" (one or several), and any others. Copies are trained.
            forget: D_F with its labels, `split.forget`; for whole classes all or some of their training images.
            reference: the name of the retrained models.
            level: confidence in (0, 1). device: where the models run.

        Raises:
            ConfigError: no original or no retrained model. DataError: no forget sample.
            ModelError: a model's outputs do not fit.
        """
        parts = cast(models, reference=reference)
        check_level(level)
        if len(forget) == 0:
            raise DataError("relearning needs forget samples; got none. Pass split.forget.")
        with placed(parts.named[ORIGINAL], device) as original:
            target = self._target(original, forget)
        todo = {name: model for name, model in parts.named.items() if name != ORIGINAL}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in todo}
        for done, (name, model) in enumerate(todo.items()):
            with placed(copy.deepcopy(model), device) as own:
                there = self._reached(own, forget, target)
                for k in range(self.seeds):
                    progress.report(STAGE, done * self.seeds + k, len(todo) * self.seeds, name)
                    with progress.silent():  # the steps of each training are no progress of the whole
                        found[name].append((0.0, math.nan) if there else self._fewest(own, forget, target, derive(self.seed, k)))
        progress.report(STAGE, len(todo) * self.seeds, len(todo) * self.seeds)
        return self._result(found, len(parts.retrained), target, len(forget), level)

    def _fewest(self, model: nn.Module, forget: Samples, target: float, seed: int) -> tuple[float, float]:
        """The fewest steps over the learning rates, and the rate; a rate is tried only as long as it can still be the fastest."""
        best, rate = math.inf, math.nan
        for lr in self.lrs:
            cap = int(min(self.max_steps, best - 1))
            steps = self._steps(copy.deepcopy(model), forget, target, lr, cap, seed)
            if steps < best:
                best, rate = steps, lr
        return best, rate

    def _steps(self, model: nn.Module, forget: Samples, target: float, lr: float, cap: int, seed: int) -> float:
        """How many steps with this learning rate bring the model back: inf if `cap` are not enough, or the loss diverges. Changes the model."""
        taken: list[int] = []

        def back(step: int) -> bool:
            taken.extend([step] * self._reached(model, forget, target))
            return bool(taken)

        try:
            with fork(seed):  # dropout draws from the global generators
                sgd(
                    model, forget, epochs=cap, lr=lr, batch_size=self.batch_size, momentum=0.0, weight_decay=0.0, batchnorm="frozen_statistics",
                    order=one_batch, after_epoch=back, augment=False, seed=seed, stage=STAGE,
                )  # fmt: skip
        except NotFinite:
            return math.inf
        return float(taken[0]) if taken else math.inf

    def _target(self, original: nn.Module, forget: Samples) -> float:
        value = self._measured(original, forget)
        return (1 + self.alpha) * value if self.measure == "loss" else (1 - self.alpha) * value

    def _measured(self, model: nn.Module, forget: Samples) -> float:
        """The forget loss in nats, or the forget accuracy."""
        logits = logits_of(model, forget)
        if self.measure == "loss":
            return float(loss(logits.double(), forget.labels).mean())
        return float((logits.argmax(1) == forget.labels).double().mean())

    def _reached(self, model: nn.Module, forget: Samples, target: float) -> bool:
        """Whether the model is back."""
        value = self._measured(model, forget)
        return value <= target if self.measure == "loss" else value >= target

    def _result(self, found: dict[str, list[tuple[float, float]]], n_retrained: int, target: float, n: int, level: float) -> RelearnResult:
        steps = {name: np.array([r for r, _ in pairs]) for name, pairs in found.items()}
        retrained = list(steps)[-n_retrained:]
        rows = []
        for name, own in steps.items():
            peers = [steps[other] for other in retrained if other != name]
            ain = (
                ain_of(own, np.stack(peers), self.max_steps, level)
                if peers
                else unsupported("the only retrained model is the yardstick", len(own))
            )
            rates = tuple(rate for _, rate in found[name])
            rows.append(RelearnRow(name, tuple(own.tolist()), rates, median(own, level=level, cap=f"{self.max_steps} steps"), ain))
        twins = [row.ain for row in rows if row.model in retrained]
        known = [ain.value for ain in twins if ain.supported]
        floor = spread(known) if len(known) == len(twins) else next(ain for ain in twins if not ain.supported)
        return RelearnResult(rows, floor, target, self.measure, self.max_steps, n)


def one_batch(sizes: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[Visit]:
    """An order for the training loop in which an "epoch" is one step, so that `after_epoch` is called after each: the batches of `shuffled`, one after the other."""
    per_pass = len(shuffled(sizes, batch_size, seed, 0))
    visit = shuffled(sizes, batch_size, seed, epoch // per_pass)[epoch % per_pass]
    return [Visit(visit.positions, epoch)]


def ain_of(own: np.ndarray, retrained: np.ndarray, cap: int, level: float = 0.95) -> Estimate:
    """AIN: the median over seeds of own steps / median steps of the retrained models at the same seed.

    Seeds are paired: both models see the same batches in the same order. The interval is the exact one of a median, from the lowest end to the highest that it has with any one of
    the retrained models in the denominator. A ratio with a censored part is known from one side only, and the interval takes that into account.

    Args:
        own: (S,) steps of the model for each seed, inf = more than `cap`.
        retrained: (M, S) of the retrained models.
        cap: steps after which was given up.
        level: confidence in (0, 1).

    Example:
        >>> print(ain_of(np.array([2.0, 2, 3, 2, 2, 2]), np.array([[20.0, 20, 20, 10, 20, 25]]), cap=100))
        0.100 [0.080, 0.200]
    """
    least, most = np.median(np.minimum(retrained, cap), 0), np.median(retrained, 0)
    if (retrained == 0).any():
        return unsupported("a retrained model is where the original was, without a step: there is nothing to relearn", len(own))
    found = median(np.minimum(own, cap) / most, own / least, level=level, cap=f"{cap} steps")
    if not found.supported:
        return found
    k = max(1, rank_of_end(len(own), level))
    low = np.sort(np.minimum(own, cap) / retrained, 1)[:, k - 1].min()  # for each retrained model by itself
    high = np.sort(own / np.minimum(retrained, cap), 1)[:, -k].max()
    note = "; ".join(filter(None, (found.note, ONE_REFERENCE if len(retrained) == 1 else None))) or None
    return Estimate(found.value, min(found.low, float(low)), max(found.high, float(high)), found.n, note)
