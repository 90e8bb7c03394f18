"""The cells of a plan beyond trained models: which setting a method got, what an unlearned model answers, and what the audit says about it.

Each function does one cell's work unless it is done, and can run in any process that has the point.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from ..auditing import audit_answers
from ..audits.compared import ORIGINAL, RETRAINED
from ..audits.result import Audit
from ..errors import ExpungeError, HealthFlag, NotFinite, StoreError
from ..methods import Method
from ..metrics.answers import total_variation
from ..metrics.estimate import mean_estimate
from ..report.twins import is_other, numbered
from ..store import Cell
from ..stored import unlearn_stored
from ..training.inference import logits_of
from ..tuning import tune
from .point import Point

FAILED = "failed"  # in a result: why there is none
# Of what is kept; a higher one makes such cells anew. tuned: trials go on where the gap falls; audited: distances of answers, of samples too.
REVISIONS = {"tuned": 5, "audited": 5}


@final
@dataclass(frozen=True)
class Trials:
    """A method's setting is to be chosen."""

    point: int
    method: str

    def cell(self, point: Point) -> Cell:
        return tuned_cell(point, self.method)

    def finish(self, cell: Cell, grid: Sequence[Point], device: str) -> None:
        point = grid[self.point]
        original, development = point.model("originals"), point.model("development")
        try:
            found = tune(
                point.methods[self.method], original, point.split, point.validation, build=point.build, recipe=point.recipe, trials=point.trials,
                retrained=development, store=point.store, device=device,
            )  # fmt: skip
        except ExpungeError as error:
            cell.finish(_failure(error))
        else:
            cell.finish(found.to_dict())

    def __str__(self) -> str:
        return f"tuning {self.method}"


@final
@dataclass(frozen=True)
class Run:
    """A method is to unlearn from one original; the method "original" does nothing."""

    point: int
    method: str
    seed: int

    def cell(self, point: Point) -> Cell | None:
        """None while the method's setting is not chosen."""
        return audited_cell(point, self.method, self.seed)

    def finish(self, cell: Cell, grid: Sequence[Point], device: str) -> None:
        point = grid[self.point]
        scores: Cell | None = None
        if self.method != ORIGINAL:
            scores = scores_cell(point, self.method, self.seed)
            assert scores is not None  # the setting is chosen: else there were no cell to finish
            scores.ensure(partial(_unlearn, scores, point, self, device))
            if FAILED in scores.result():
                cell.finish(scores.result())
                return
        logits = (scores or point.cells["originals"][self.seed]).tensors("scores")["logits"]
        answers = _answers(point, self.method, self.seed, logits)
        audit = audit_answers(answers, point.audited, attacks=point.attacks)
        cell.finish(_kept(audit, self.method, answers) | ({} if scores is None else scores.result()))

    def __str__(self) -> str:
        return f"{self.method} on original {self.seed}"


def _unlearn(cell: Cell, point: Point, run: Run, device: str) -> None:
    original = point.model("originals", run.seed)
    method = chosen(point, run.method)
    assert method is not None
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", HealthFlag)
            found = unlearn_stored(method, original, point.split, build=point.build, store=point.store, seed=run.seed, device=device)
            logits = logits_of(found.model.to(device), point.pool)
    except ExpungeError as error:
        cell.finish(_failure(error))
    else:
        flags = [{"name": w.category.__name__, "message": f"{run}: {w.message}"} for w in caught if issubclass(w.category, HealthFlag)]
        cell.finish({"seconds": found.seconds, "cost": found.cost, "warned": flags}, scores={"logits": logits})


def _failure(error: ExpungeError) -> dict[str, str]:
    """What is kept of a method that fails: the same again would fail again, and the others go on. What the store is to blame for, is not the method's."""
    if isinstance(error, StoreError):
        raise error
    return {FAILED: "diverged" if isinstance(error, NotFinite) else "failed", "reason": str(error)}


def chosen(point: Point, name: str) -> Method | None:
    """The method with its tuned setting; None while that is not known, or if no setting worked."""
    method = point.methods[name]
    if not point.tunes(name):
        return method
    cell = tuned_cell(point, name)
    if not cell.done or FAILED in cell.result():
        return None
    return replace(method, **{cell.result()["field"]: cell.result()["best"]})


def tuned_cell(point: Point, name: str) -> Cell:
    (original, *_), (development,) = point.cells["originals"], point.cells["development"]
    spec = {
        "method": point.methods[name], "original": original.folder.name, "development": development.folder.name,
        "validation": point.validation.fingerprint, "trials": point.trials, "revision": REVISIONS["tuned"],
    }  # fmt: skip
    return point.store.cell("tuned", spec | _forgotten(point))


def scores_cell(point: Point, name: str, seed: int) -> Cell | None:
    method = chosen(point, name)
    if method is None:
        return None
    original = point.cells["originals"][seed]
    spec = {"method": method, "original": original.folder.name, "seed": seed, "pool": point.pool.fingerprint}
    return point.store.cell("scores", spec | _forgotten(point))


def audited_cell(point: Point, name: str, seed: int) -> Cell | None:
    source = point.cells["originals"][seed] if name == ORIGINAL else scores_cell(point, name, seed)
    if source is None:
        return None
    spec = {
        "model": source.folder.name, "retrained": [cell.folder.name for cell in _order(point, seed)],
        "shadows": [cell.folder.name for cell in point.cells["shadows"]], "attacks": point.attacks, "held_out": point.held_out, "revision": REVISIONS["audited"],
    }  # fmt: skip
    return point.store.cell("audited", spec | _forgotten(point))


def _forgotten(point: Point) -> dict[str, Any]:
    return {"forget": point.split.forget_indices, "forget_classes": point.split.forget_classes}


def _order(point: Point, seed: int) -> list[Cell]:
    """The retrained models, the yardstick first. A method is compared with each retrained model in turn, so that the yardstick's own luck averages out."""
    cells = point.cells["retrained"]
    at = seed % len(cells)
    return cells[at:] + cells[:at]


def _answers(point: Point, name: str, seed: int, logits: Tensor) -> dict[str, dict[str, Tensor]]:
    """What the model under this name and the retrained ones answer, by group."""
    answers = {name: logits}
    for k, cell in enumerate(_order(point, seed)):
        answers[numbered(RETRAINED, k)] = cell.tensors("scores")["logits"]
    return {each: point.by_group(z) for each, z in answers.items()}


def _kept(audit: Audit, name: str, answers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """What tables need of an audit: the model's numbers, the yardstick's, and how far the other retrained models are from that."""
    found = audit.to_dict()

    def of(model: str) -> Mapping[str, Any]:
        attacks = [{key: row[key] for key in ("attack", "auc", "tpr", "fpr")} for row in found["attacks"] if row["model"] == model]
        row = next(row for row in found["models"] if row["name"] == model)
        near = [each["neighbour"] for answers in found["classes"] for each in answers["rows"] if each["model"] == model]
        kept = {key: row[key] for key in ("forget", "forget_test", "retain", "test", "gaps")}
        return kept | {"attacks": attacks, "distance": _distance(answers[model], answers)} | _mia_nn_gap(near)

    twins = [row["gaps"]["average"] for row in found["models"] if is_other(row["name"], RETRAINED)]
    return {"model": of(name), "yardstick": of(RETRAINED), "twins": twins, "sizes": found["sizes"], "flags": found["flags"]}


def _distance(logits: Mapping[str, Tensor], answers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """How far a model's answers are from retraining's, on images that retraining never saw: the forget samples or, of whole classes, unseen images.

    The yardstick and the models that it judges are held against the same ones, the mean of the other retrained models: against more of them they would seem nearer.
    """
    group = "forget_test" if "forget_test" in logits else "forget"
    others = [each[group] for name, each in answers.items() if is_other(name, RETRAINED)]
    return total_variation(logits[group], torch.stack(others)).to_dict()


def _mia_nn_gap(neighbours: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """The size of the gap on forgotten classes, of several the mean; nothing where there is none."""
    gaps = [absolute(near["gap"]) for near in neighbours if near and near["gap"]]
    return {"mia_nn_gap": _mean(gaps)} if gaps else {}


def absolute(estimate: Mapping[str, Any]) -> Mapping[str, Any]:
    """The size of a signed difference, so that means over classes and seeds do not cancel.

    Example:
        >>> absolute({"value": -0.1, "low": -0.3, "high": 0.2})
        {'value': 0.1, 'low': 0, 'high': 0.3}
    """
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    ends = {} if low is None or high is None else {"low": max(low, -high, 0), "high": max(-low, high)}
    return {**estimate, "value": value if value is None else abs(value), **ends}


def _mean(estimates: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    values = [e["value"] for e in estimates]
    if len(estimates) == 1 or None in values:
        return estimates[0]
    return mean_estimate(values).to_dict()
