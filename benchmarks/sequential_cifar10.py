"""Five deletion requests, one after another: what is left to see of all that was forgotten, after each of them. CIFAR-10.

    python benchmarks/sequential_cifar10.py --scale cpu --root data --store runs    # after plans/amun_cifar10_random10.toml, whose models and step sizes it uses

The plan's forget set (10 %) comes in five requests of the same size, each on the model that the last one left. AMUN searches its adversarial examples on the current model at each request
("AMUN", the paper's AMUN-A), or all of them on the first one ("AMUN, one search"). After each request, for all samples forgotten so far: the AUC of RMIA between retain and forget samples
minus that between forget and test samples (the paper's measure: a model that has forgotten has a high one); after the fifth also the average gap to the models retrained without all of
them, beside one request for everything (the plan's own table). Mean over seeds with 95 % t-intervals. Writes docs/results/sequential_cifar10_<scale>.json and .md.
"""

import dataclasses
import json
from dataclasses import dataclass

import torch
from plan_options import parser  # beside this script
from torch import Tensor

import expunge
from expunge import AMUN
from expunge.bench import read_plan
from expunge.bench.point import Point, points
from expunge.bench.work import chosen
from expunge.metrics import auc, mean_estimate
from expunge.provenance import provenance
from expunge.store import Cell
from expunge.training.inference import logits_of
from expunge.training.side_by_side import Work, finish_cells

N_REQUESTS = 5
METHODS = ("amun", "amun_without_retain", "fine_tune", "random_label", "salun", "salun_without_retain", "gradient_ascent")
ONE_SEARCH = ", one search"
GROUPS = ("forget", "retain", "test")


@dataclass(frozen=True)
class Requests:
    """One method on one original, request by request; what each model answers is kept."""

    method: str
    seed: int

    def cell(self, point: Point) -> Cell:
        return point.store.cell(
            "sequential",
            {
                "method": chosen(point, self.method.removesuffix(ONE_SEARCH)), "one_search": self.method.endswith(ONE_SEARCH), "requests": N_REQUESTS,
                "original": point.cells["originals"][self.seed].folder.name, "forget": point.split.forget_indices, "pool": point.pool.fingerprint,
            },
        )  # fmt: skip

    def finish(self, cell: Cell, point: Point, device: str) -> None:
        original, method = point.model("originals", self.seed).to(device), chosen(point, self.method.removesuffix(ONE_SEARCH))
        if self.method.endswith(ONE_SEARCH):
            method = dataclasses.replace(method, adversarial=method.attack(original, point.split.forget), transferred=True)
        requests = point.split.forget_indices.chunk(N_REQUESTS)
        models = expunge.unlearn_sequentially(method, original, point.split.train, requests, seed=self.seed, device=device)
        cell.finish({}, scores={"logits": torch.stack([logits_of(model, point.pool) for model in models])})

    def __str__(self) -> str:
        return f"{self.method} on original {self.seed}"


class Measured:
    """RMIA and accuracies of models by their answers on the pool."""

    def __init__(self, point: Point) -> None:
        self.point, self.attack = point, expunge.RMIA()
        self.shadows = expunge.train_shadow_models(
            point.build, point.split.train, point.test, n=point.n_shadows, recipe=point.recipe, store=point.store, workers=1
        )
        self.requests = point.split.forget_indices.chunk(N_REQUESTS)
        self.test = len(point.split.train) + point.held_out

    def request(self, logits: Tensor, number: int) -> dict[str, float]:
        """After request `number` (from 0): the paper's difference of AUCs and accuracies, for all forgotten so far."""
        at = {"forget": torch.cat(self.requests[: number + 1]), "retain": self.point.split.retain.positions, "test": self.test}
        scores = self.attack(logits, self.shadows.labels, self.shadows.logits, self.shadows.included)
        right = (logits.argmax(1) == self.shadows.labels).double()
        kept, left = auc(scores[at["retain"]], scores[at["forget"]]).value, auc(scores[at["forget"]], scores[at["test"]]).value
        return {"difference": kept - left, "forget AUC": left} | {group: float(right[at[group]].mean()) for group in GROUPS}

    def gap(self, logits: Tensor) -> float:
        """Average gap after the last request, the mean over the plan's retrained models."""
        last, gaps = self.request(logits, N_REQUESTS - 1), []
        for cell in self.point.cells["retrained"]:
            other = self.request(cell.tensors("scores")["logits"], N_REQUESTS - 1)
            gaps.append(sum(abs(last[key] - other[key]) for key in ("forget AUC", *GROUPS)) / 4)
        return sum(gaps) / len(gaps)


def measure(point: Point, works: list[Work]) -> dict[str, dict[str, list]]:
    """By method: for each seed the numbers after each request, and the gap after the last."""
    measured, found = Measured(point), {}
    for work in works:
        logits = work.cell.tensors("scores")["logits"]
        row = found.setdefault(work.task.method, {"requests": [], "gap": []})
        row["requests"].append([measured.request(each, k) for k, each in enumerate(logits)])
        row["gap"].append(measured.gap(logits[-1]))
    for name, kind in (("original", "originals"), ("retrained", "retrained")):
        each = [cell.tensors("scores")["logits"] for cell in point.cells[kind]]
        gaps = [measured.gap(logits) for logits in each] if name == "original" else []
        found[name] = {"requests": [[measured.request(logits, k) for k in range(N_REQUESTS)] for logits in each], "gap": gaps}
    return found


def table(found: dict[str, dict[str, list]]) -> str:
    head = [
        "",
        *(f"request {k + 1}" for k in range(N_REQUESTS)),
        "forget AUC at last",
        "forget, %",
        "retain, %",
        "test, %",
        "average gap at last, points",
    ]
    lines = [head, ["---"] * len(head)]
    for name, row in found.items():
        last = [request[-1] for request in row["requests"]]
        cells = [f"{mean_estimate([seed[k]['difference'] for seed in row['requests']]):.3f}" for k in range(N_REQUESTS)]
        cells += [f"{mean_estimate([seed['forget AUC'] for seed in last]):.3f}"]
        cells += [f"{mean_estimate([100 * seed[group] for seed in last]):.1f}" for group in GROUPS]
        cells += [f"{mean_estimate([100 * gap for gap in row['gap']]):.1f}" if row["gap"] else "–"]
        lines.append([name, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--methods", nargs="+", default=METHODS)
    options = arguments.parse_args()
    (point,) = points(read_plan(options.plan, options.scale), options.store, options.root)
    missing = [name for name in options.methods if chosen(point, name) is None]
    if missing:
        arguments.error(f"the store has no step size of {', '.join(missing)}; run `expunge bench {options.plan}` on it first")
    names = [
        name
        for method in options.methods
        for name in ((method, method + ONE_SEARCH) if isinstance(chosen(point, method), AMUN) else (method,))
    ]
    tasks = [Requests(name, seed) for seed in range(point.seeds) for name in names]
    works = [Work(task, task.cell(point)) for task in tasks]
    finish_cells(works, point, point.store, stage="requests", things="sequences", workers=options.workers)
    found = measure(point, works)
    stem = options.out / f"sequential_cifar10_{options.scale or 'paper'}"
    record = {"results": found, "settings": {name: str(chosen(point, name)) for name in options.methods}, "provenance": provenance()}
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(f"# Five requests, one after another\n\n{table(found)}\n")
    print(table(found))


if __name__ == "__main__":
    main()
