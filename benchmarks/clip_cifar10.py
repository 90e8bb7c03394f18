"""Does clipping make a model easier to unlearn? CIFAR-10 at the scale of two cores: plain and clipped models, their adversarial examples, AMUN on each.

    python benchmarks/clip_cifar10.py --root data --store runs           # everything; resumable, and several may run at once on one store
    python benchmarks/clip_cifar10.py --stage train                      # only the models that are trained from scratch

Plan: 5,000 training images (not augmented, so that 12 epochs memorise them), resnet_tiny, batches of 64, without clipping and with every convolution and
linear layer clipped to 2, 1 and 0.5 (BatchNorm apart, as the paper does; every 20 steps, four times an epoch); 3 originals and 3 models retrained without 500
random images (the same for all). AMUN with retain data (5 epochs) and without (10 epochs), clipped as its original was, with the step size that `expunge.tune` chooses for each
bound in four trials (on the first original and other samples, without the retrained models). Two attacks on the 500:
the nearest examples (NearestDDN, AMUN's D_A here) and 20 steps of PGD to an L2 distance of 0.5; each example is shown to the other two originals (trained independently: how
often does it fool them, with the same wrong label and with any) and to the retrained models. Writes docs/results/clip_cifar10.json and .md.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import statistics
import time

import torch

import expunge
from expunge import AMUN, PGD, Augment, Clip, NearestDDN, Recipe, TrainTask
from expunge.attacks.transfer import Transfer, transfer, transferred
from expunge.data.pool import pool
from expunge.metrics import auc, mean_estimate
from expunge.provenance import provenance
from expunge.store import Store
from expunge.training.fleet import load_trained

N_TRAIN, N_FORGET, SEEDS = 5_000, 500, 3
CLIPS = {"none": None} | {f"{c:g}": Clip(max_norm=c, every=20) for c in (2.0, 1.0, 0.5)}
METHODS = {
    "AMUN": AMUN(epochs=5, lr=0.03, attack=NearestDDN()),
    "AMUN without retain data": AMUN(lr=0.003, use_retain=False, attack=NearestDDN()),
}
TRIALS = 4


class Experiment:
    def __init__(self, root: str, store: str) -> None:
        full, self.test = expunge.load_data("cifar10", root=root, augment=Augment(), download=False)
        self.train = dataclasses.replace(full, images=full.images[:N_TRAIN], labels=full.labels[:N_TRAIN])
        self.build, self.store = expunge.architecture("resnet_tiny", self.train), Store(pathlib.Path(store))
        self.split = expunge.forget_random(self.train, N_FORGET, seed=0)

    def recipe(self, clip: str) -> Recipe:
        return Recipe(epochs=12, lr=0.1, batch_size=64, clip=CLIPS[clip])

    def task(self, clip: str, seed: int, retrained: bool = False) -> TrainTask:
        positions = self.split.retain.positions if retrained else torch.arange(N_TRAIN)
        return TrainTask(
            build=self.build,
            recipe=self.recipe(clip),
            positions=positions,
            seed=seed + 100 * retrained,
            kind="retrained" if retrained else "original",
        )

    def trained(self, tasks: list[TrainTask]) -> list:
        return expunge.train_fleet(tasks, pool(self.train, self.test), self.store)

    def train_all(self) -> None:
        self.trained([self.task(clip, seed, retrained) for seed in range(SEEDS) for retrained in (False, True) for clip in CLIPS])

    def models(self, clip: str, retrained: bool = False) -> list:
        return [load_trained(cell, self.build) for cell in self.trained([self.task(clip, seed, retrained) for seed in range(SEEDS)])]

    def tuned(self, clip: str, original) -> dict[str, AMUN]:
        """Each method with the step size that suits models of this bound."""
        clipped = {name: dataclasses.replace(method, clip=CLIPS[clip]) for name, method in METHODS.items()}
        validation = self.test.subset(range(1, len(self.test), 4))
        options = {"build": self.build, "recipe": self.recipe(clip), "trials": TRIALS, "store": self.store, "device": "cpu"}
        return {name: expunge.tune(method, original, self.split, validation, **options).method for name, method in clipped.items()}

    def measured(self, clip: str) -> dict:
        """`measure`, kept in the store."""
        cell = self.store.cell(
            "measured", {"clip": clip, "control": CLIPS[clip], "plan": [N_TRAIN, N_FORGET, SEEDS, METHODS, TRIALS], "revision": 2}
        )
        cell.ensure(lambda: cell.finish(self.measure(clip)))
        return cell.result()

    def measure(self, clip: str) -> dict:
        """One row a seed: the network's bound, distances, transfer, AMUN's gaps and the factors of its theorem."""
        originals, retrained = self.models(clip), self.models(clip, retrained=True)
        yardstick, rows, methods = [self.scores(model) for model in retrained], [], self.tuned(clip, originals[0])
        for seed, original in enumerate(originals):
            others = [model for k, model in enumerate(originals) if k != seed]
            near = NearestDDN()(original, self.split.forget)
            row = {"seed": seed, "clip": clip, "original": self.scores(original), "retrained": yardstick}
            row |= {"distances": near.distances.tolist(), "wrong": near.already_wrong.tolist()}
            row["transfer"] = {
                "nearest": shares(transfer(near, self.split.forget, others)),
                "nearest, retrained": shares(transfer(near, self.split.forget, retrained)),
                "PGD 0.5": shares(self.transfer_of_pgd(original, others)),
            }
            for name, method in methods.items():
                unlearned = dataclasses.replace(method, adversarial=near)(original, self.split, seed=seed, device="cpu")
                row[f"lr, {name}"] = method.lr
                row[name] = self.scores(unlearned)
                row[f"gap, {name}"] = gap(row[name], yardstick)
                found = expunge.factors(original, self.split, near, unlearned=unlearned, retrained=retrained).to_dict()
                row["bound"], row[f"C, {name}"] = found["bound"]["value"], found["estimates"]["c"]["value"]
            rows.append(row)
            print(
                time.strftime("%H:%M:%S"),
                clip,
                seed,
                {k: v for k, v in row.items() if k.startswith(("gap", "C", "bound", "transfer"))},
                flush=True,
            )
        return {"rows": rows}

    def scores(self, model) -> dict[str, float]:
        """Accuracies, and how well a loss threshold tells forget from test images."""
        some = {"retain": self.split.retain.subset(range(0, N_TRAIN - N_FORGET, 3)), "test": self.test.subset(range(0, len(self.test), 4))}
        groups = {"forget": self.split.forget} | some
        logits = {name: expunge.logits_of(model, data) for name, data in groups.items()}
        found = {name: float((z.argmax(1) == groups[name].labels).double().mean()) for name, z in logits.items()}
        margins = {name: expunge.logit_margin(logits[name], groups[name].labels) for name in ("forget", "test")}
        return found | {"auc": auc(margins["forget"], margins["test"]).value}

    def transfer_of_pgd(self, original, others: list) -> Transfer:
        attacked = PGD(norm="l2", eps=0.5, steps=20, random_start=False, early_stop=False)(original, self.split.forget)
        at = (attacked.fooled & ~attacked.already_wrong).nonzero().flatten()
        answers = lambda images: torch.stack([model(images).argmax(1) for model in others])  # noqa: E731
        with torch.no_grad():
            clean, pushed = answers(self.split.forget.fetch(at)), answers(attacked.images[at])
        return transferred(attacked.labels[at], self.split.forget.labels[at], pushed, clean)


def shares(found: Transfer) -> dict[str, float]:
    return {name: getattr(found, name).value for name in ("same", "any")}


def gap(scores: dict[str, float], yardstick: list[dict[str, float]]) -> float:
    """The mean absolute difference to the mean retrained model over forget, retain and test accuracy and AUC."""
    return statistics.fmean(abs(scores[k] - statistics.fmean(y[k] for y in yardstick)) for k in scores)


def table(results: dict[str, dict]) -> str:
    plain = [torch.tensor(row["distances"]) for row in results["none"]["rows"]]
    columns = {
        "Lipschitz bound of the network": lambda row: f"{row['bound']:.3g}",
        "test accuracy": lambda row: row["original"]["test"],
        "forget accuracy": lambda row: row["original"]["forget"],
        "loss-threshold AUC, forget against test": lambda row: row["original"]["auc"],
        "test accuracy, retrained": lambda row: row["retrained"][row["seed"]]["test"],
        "forget accuracy, retrained": lambda row: row["retrained"][row["seed"]]["forget"],
        "loss-threshold AUC, retrained": lambda row: row["retrained"][row["seed"]]["auc"],
        "mean distance": lambda row: statistics.fmean(d for d, wrong in zip(row["distances"], row["wrong"], strict=True) if not wrong),
        "share farther than from the plain model": lambda row: float((torch.tensor(row["distances"]) > plain[row["seed"]]).double().mean()),
        **{
            f"transfer, {kind}, {label} wrong label": lambda row, kind=kind, label=label: row["transfer"][kind][label]
            for kind in ("nearest", "nearest, retrained", "PGD 0.5")
            for label in ("same", "any")
        },
        "average gap of the original": lambda row: gap(row["original"], row["retrained"]),
        **{f"lr, {name}": lambda row, name=name: f"{row[f'lr, {name}']:.2g}" for name in METHODS},
        **{f"average gap, {name}": lambda row, name=name: row[f"gap, {name}"] for name in METHODS},
        **{f"C of the theorem, {name}": lambda row, name=name: row[f"C, {name}"] for name in METHODS},
    }
    lines = ["| clip | " + " | ".join(results) + " |", "|---" * (1 + len(results)) + "|"]
    for name, column in columns.items():
        cells = []
        for found in results.values():
            values = [column(row) for row in found["rows"]]
            if name.startswith("share farther") and found is results["none"]:
                values = ["–"]
            values = values[:1] if name.startswith("lr, ") else values  # the same for all seeds
            cells.append(", ".join(values) if isinstance(values[0], str) else f"{statistics.fmean(values):.3f} ± {half_width(values):.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def half_width(values: list[float]) -> float:
    """Of the 95 % t interval over seeds."""
    found = mean_estimate(values)
    return found.high - found.value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data")
    parser.add_argument("--store", default="runs")
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    parser.add_argument("--stage", choices=["train", "all"], default="all")
    parser.add_argument("--only", choices=CLIPS, help="measure this one alone: for a second process on the same store")
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Experiment(options.root, options.store)
    if options.stage == "train":
        experiment.train_all()
        return
    if options.only:
        experiment.measured(options.only)
        return
    results = {clip: experiment.measured(clip) for clip in CLIPS}
    plan = {"train": N_TRAIN, "forget": N_FORGET, "seeds": SEEDS, "methods": {n: str(m) for n, m in METHODS.items()}}
    record = {"plan": plan, "versions": provenance(), "platform": platform.platform(), "results": results}
    (options.out / "clip_cifar10.json").write_text(json.dumps(record) + "\n")
    text = f"# Clipping and unlearning on CIFAR-10\n\nMean of three seeds ± 95 % t interval.\n\n{table(results)}\n"
    (options.out / "clip_cifar10.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
