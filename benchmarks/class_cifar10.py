"""Forgetting classes of CIFAR-10 at the scale of two cores: every class method against retraining, with MIA-NN, total variation and U-LiRA.

    python benchmarks/class_cifar10.py --root data --store runs          # everything; resumable, and several may run at once on one store
    python benchmarks/class_cifar10.py --stage train                     # only the models that are trained from scratch
    python benchmarks/class_cifar10.py --stage timing                    # CPU seconds of each method, one after another: class_cifar10_timing.json
    python benchmarks/class_cifar10.py --stage leaning                   # what the neighbour gets from originals without the class, and from retrained models: class_cifar10_leaning.json

Plan: 10,000 training images (mirrored at random, not shifted, so that 20 epochs memorise them), resnet_tiny, 20 epochs; 5 classes, each forgotten on its own from 3
originals, against 3 retrained models a class; all 10,000 test images, RA on a quarter of the retain images. U-LiRA on every class with 6 originals, all unlearned, and
6 retrained models; it does not look at every setting of TRW and DELETE. Methods keep their defaults, but for 5 epochs instead of 10 where they read retain samples. "TRW, calibrated" is calibrated on two other classes of the five, one model
each; no method or setting sees a model retrained without the class that it forgets. Writes docs/results/class_cifar10.json and .md; the last two stages a
record of their own each.
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
from expunge import DELETE, TRW, Augment, BoundaryExpanding, BoundaryShrink, FineTune, GradientAscent, RandomLabel, Recipe, Step, TrainTask
from expunge.audits.class_answers import class_answers
from expunge.data.pool import pool
from expunge.metrics import mean_estimate
from expunge.provenance import provenance
from expunge.store import Store
from expunge.stored import unlearn_stored
from expunge.training.fleet import load_trained
from expunge.training.inference import logits_of

RECIPE = Recipe(epochs=20, lr=0.1, batch_size=128)
N_TRAIN, CLASSES, SEEDS, LEAKAGE_MODELS = 10_000, (1, 3, 4, 6, 8), 3, 6
RETAIN = {"epochs": 5, "schedule": Step(every=3)}
TRW_METHODS = {
    "TRW, beta=10 (the paper's)": TRW(beta=10.0, **RETAIN),
    "TRW (default: RWFT)": TRW(**RETAIN),
    "TRW, twice as many retain as forget": TRW(retain_ratio=2 / 9, **RETAIN),
    "TRW without retain data": TRW(use_retain=False),
}
METHODS = TRW_METHODS | {
    "FineTune": FineTune(lr=0.01, **RETAIN),
    "RandomLabel": RandomLabel(**RETAIN),
    "DELETE": DELETE(),
    "DELETE, step of the paper": DELETE(lr=1e-4, epochs=20, until=None),
    "BoundaryShrink": BoundaryShrink(),
    "BoundaryExpanding": BoundaryExpanding(),
    "GradientAscent": GradientAscent(),
}
CALIBRATED = "TRW, calibrated"
LEAKAGE = ("TRW (default: RWFT)", "TRW without retain data", "FineTune", "DELETE", "BoundaryShrink", "BoundaryExpanding", "GradientAscent")


class Experiment:
    def __init__(self, root: str, store: str) -> None:
        full, self.test = expunge.load_data("cifar10", root=root, augment=Augment(flip=True), download=False)
        self.train = dataclasses.replace(full, images=full.images[:N_TRAIN], labels=full.labels[:N_TRAIN])
        self.build, self.store = expunge.architecture("resnet_tiny", self.train), Store(pathlib.Path(store))
        self.splits = {c: expunge.forget_classes(self.train, [c]) for c in CLASSES}

    def fleet(self, kind: str, seeds: range, forgotten: int | None = None) -> list[TrainTask]:
        positions = torch.arange(N_TRAIN) if forgotten is None else self.splits[forgotten].retain.positions
        offset = 0 if forgotten is None else 100
        return [TrainTask(build=self.build, recipe=RECIPE, positions=positions, seed=offset + s, kind=kind) for s in seeds]

    def trained(self, tasks: list[TrainTask]) -> list:
        return expunge.train_fleet(tasks, pool(self.train, self.test), self.store)

    def train_all(self) -> None:
        seeds = [range(s, s + 1) for s in range(LEAKAGE_MODELS)]
        self.trained([t for s in seeds for t in self.fleet("original", s) + [t for c in CLASSES for t in self.fleet("retrained", s, c)]])

    def methods(self, forgotten: int, original) -> dict[str, expunge.Method]:
        """The methods for one class; the calibrated one learns from the two classes that follow it."""
        k = CLASSES.index(forgotten)
        others = [CLASSES[(k + step) % len(CLASSES)] for step in (1, 2)]
        development = {c: load_trained(self.trained(self.fleet("retrained", range(1), c))[0], self.build) for c in others}
        found = expunge.calibrate_trw(original, self.train, development, start=TRW(**RETAIN))
        print(self.train.classes[forgotten], found, flush=True)
        return METHODS | {CALIBRATED: found.method}

    def unlearn(self, method, model, forgotten: int, seed: int):
        return unlearn_stored(method, model, self.splits[forgotten], build=self.build, store=self.store, seed=seed, device="cpu")

    def unlearn_all(self, reverse: bool) -> None:
        chosen = {}
        jobs = [(s, c) for s in range(LEAKAGE_MODELS) for c in CLASSES]
        for seed, c in jobs[::-1] if reverse else jobs:
            first = load_trained(self.trained(self.fleet("original", range(1)))[0], self.build)
            if c not in chosen:
                chosen[c] = self.methods(c, first)  # calibrated once, on the first original
            original = load_trained(self.trained(self.fleet("original", range(seed, seed + 1)))[0], self.build)
            for name, method in (chosen[c] if seed < SEEDS else for_leakage(chosen[c])).items():
                run = self.unlearn(method, original, c, seed)
                print(time.strftime("%H:%M:%S"), self.train.classes[c], seed, name, f"{run.seconds:.1f} s", flush=True)

    def measured(self, forgotten: int, seed: int, methods: dict[str, expunge.Method]) -> list[dict]:
        """`measure`, kept in the store."""
        cell = self.store.cell(
            "measured", {"forgotten": forgotten, "seed": seed, "methods": methods, "plan": [N_TRAIN, SEEDS, RECIPE], "revision": 1}
        )
        cell.ensure(lambda: cell.finish({"rows": self.measure(forgotten, seed, methods)}))
        return cell.result()["rows"]

    def measure(self, forgotten: int, seed: int, methods: dict[str, expunge.Method]) -> list[dict]:
        """One row a model: the original, each method's, and (with the first original) the retrained ones, on one class."""
        names = self.train.classes
        cells = self.trained(self.fleet("original", range(seed, seed + 1)) + self.fleet("retrained", range(SEEDS), forgotten))
        named = dict(zip(["original", *(f"retrained {k}" for k in range(SEEDS))], cells, strict=True))
        logits = {name: cell.tensors("scores")["logits"] for name, cell in named.items()}
        seconds = {name: cell.result()["seconds"] for name, cell in named.items()}
        original = load_trained(cells[0], self.build)
        seen = torch.cat([self.splits[forgotten].forget_indices, self.splits[forgotten].retain.positions[::4]])
        for name, method in methods.items():
            run = self.unlearn(method, original, forgotten, seed)
            scores = torch.full((N_TRAIN, len(names)), torch.nan)
            scores[seen.sort().values] = logits_of(run.model, self.train.subset(seen))
            logits[name], seconds[name] = torch.cat([scores, logits_of(run.model, self.test)]), run.seconds
        references = [name for name in named if name.startswith("retrained")]
        answers = class_answers({n: z[N_TRAIN:] for n, z in logits.items()}, self.test.labels, forgotten, [forgotten], names, references)
        usual = int(torch.stack([answers[r].predicted for r in references]).mean(0).argmax())
        rows = []
        for name, z in logits.items():
            if seed and name in references:
                continue
            right = z.argmax(1) == torch.cat([self.train.labels, self.test.labels])
            mine, row = self.test.labels == forgotten, answers[name]
            rows.append({
                "forgotten": names[forgotten], "seed": seed, "model": name, "neighbour": answers.neighbour,
                "FA": share(right[self.splits[forgotten].forget_indices]), "FA test": share(right[N_TRAIN:][mine]),
                "RA": share(right[self.splits[forgotten].retain.positions[::4]]), "TA": share(right[N_TRAIN:][~mine]),
                "MIA-NN": row.neighbour.score.value, "MIA-NN gap": row.neighbour.gap.value, "profile gap": row.neighbour.profile_gap,
                "TV": row.distance.value, "mode kept": int(row.predicted.argmax()) == usual,
                "seconds": seconds[name], "answer": [round(v, 4) for v in row.answer.tolist()],
            })  # fmt: skip
        return rows

    def leakage(self, forgotten: int, methods: dict[str, expunge.Method]) -> dict:
        originals = self.trained(self.fleet("original", range(LEAKAGE_MODELS)))
        retrained = self.trained(self.fleet("retrained", range(LEAKAGE_MODELS), forgotten))
        shadows = expunge.ClassShadows(
            self.build, RECIPE, self.splits[forgotten], self.test, self.store, tuple(originals), tuple(retrained), tuple(range(LEAKAGE_MODELS))
        )  # fmt: skip
        return expunge.class_leakage(methods, shadows, device="cpu")[0].to_dict() | {
            "profile test": self.profile_test(methods, shadows, forgotten)
        }

    def profile_test(self, methods: dict[str, expunge.Method], shadows: expunge.ClassShadows, forgotten: int) -> dict[str, dict]:
        """MIA-NN as a two-sample test: each method's models against the retrained ones, on a quarter of the test images."""
        few = self.test.subset(range(0, len(self.test), 4))
        retrained = torch.stack([logits_of(shadows.retrained_model(k), few) for k in range(len(shadows))])
        exam, tests = expunge.MIANN().exam(few.labels, [forgotten], retrained), {}
        for name, method in methods.items():
            models = [self.unlearn(method, shadows.original(k), forgotten, seed).model for k, seed in enumerate(shadows.seeds)]
            tests[name] = expunge.audits.two_sample_test([exam.decide(logits_of(m, few)) for m in models], exam.references)._asdict()
        return tests

    def timing(self) -> dict[str, float]:
        """CPU seconds of training without a class and of each method, one thread, one after another."""
        split, found = self.splits[CLASSES[0]], {}
        original = load_trained(self.trained(self.fleet("original", range(1)))[0], self.build)
        works = {"retrained": lambda: expunge.train_model(self.build, split.retain, RECIPE, seed=100, device="cpu")}
        works |= {name: lambda method=method: method(original, split, device="cpu") for name, method in METHODS.items()}
        for name, work in works.items():
            start = time.process_time()
            work()
            found[name] = round(time.process_time() - start, 2)
            print(name, found[name], flush=True)
        return found

    def leaning(self) -> dict[str, dict]:
        """For each class, on its training and unseen images: the mean probability of the class's neighbour, and the mean highest one; originals with the class taken out (TRW's target without a tilt), and retrained models."""
        found = {}

        def answers(tasks: list[TrainTask]) -> torch.Tensor:
            return torch.stack([cell.tensors("scores")["logits"] for cell in self.trained(tasks)]).double()

        originals = answers(self.fleet("original", range(SEEDS)))
        for c in CLASSES:
            retrained = answers(self.fleet("retrained", range(SEEDS), c)).softmax(2)
            images = {"training": self.splits[c].forget_indices, "unseen": N_TRAIN + (self.test.labels == c).nonzero()[:, 0]}
            neighbour = int(retrained[:, images["unseen"]].mean((0, 1)).argmax())
            for kind, at in images.items():
                answered = {
                    "original": originals[:, at].index_fill(2, torch.tensor(c), -torch.inf).softmax(2),
                    "retrained": retrained[:, at],
                }
                found[f"{self.train.classes[c]}, {kind}"] = {"neighbour": self.train.classes[neighbour]} | {
                    model: {"neighbour": float(p[..., neighbour].mean()), "highest": float(p.amax(2).mean())} for model, p in answered.items()
                }  # fmt: skip
        return found


def for_leakage(methods: dict[str, expunge.Method]) -> dict[str, expunge.Method]:
    return {name: methods[name] for name in LEAKAGE}


def share(right: torch.Tensor) -> float:
    return float(right.double().mean())


def t_interval(values: list[float]) -> tuple[float, float]:
    """The mean and the half width of its 95 % t interval."""
    found = mean_estimate(values)
    return found.value, found.high - found.value


def over_classes(rows: list[dict], key: str, absolute: bool = False) -> tuple[float, float]:
    """The mean over classes of the mean over seeds, and the half width of its 95 % t interval over classes."""
    values = {}
    for row in rows:
        values.setdefault(row["forgotten"], []).append(abs(row[key]) if absolute else row[key])
    return t_interval([statistics.fmean(v) for v in values.values()])


def table(rows: list[dict]) -> str:
    names = list(dict.fromkeys(r["model"].split(" ")[0] if r["model"].startswith("retrained") else r["model"] for r in rows))
    lines = ["| model | FA | FA test | RA | TA | MIA-NN | abs. gap | TV | s |", "|---|---|---|---|---|---|---|---|---|"]
    for name in sorted(names, key=lambda n: n != "retrained"):
        mine = [r for r in rows if r["model"] == name or (name == "retrained" and r["model"].startswith("retrained"))]
        cells = [f"{100 * m:.1f} ± {100 * w:.1f}" for m, w in (over_classes(mine, key) for key in ("FA", "FA test", "RA", "TA", "MIA-NN"))]
        gap, tv = over_classes(mine, "MIA-NN gap", absolute=True), over_classes(mine, "TV")
        times = [r["seconds"] for r in mine if r["seconds"] is not None]
        label = "retrained (gap and TV: the floor)" if name == "retrained" else name
        lines.append(f"| {label} | {' | '.join(cells)} | {100 * gap[0]:.1f} ± {100 * gap[1]:.1f} | {tv[0]:.3f} ± {tv[1]:.3f} | {statistics.median(times):.0f} |" if times
                     else f"| {label} | {' | '.join(cells)} | {100 * gap[0]:.1f} ± {100 * gap[1]:.1f} | {tv[0]:.3f} ± {tv[1]:.3f} | – |")  # fmt: skip
    return "\n".join(lines)


def leakage_summary(found: list[dict]) -> str:
    """U-LiRA of every method over the classes: AUC of the forgotten class' own score and of the neighbour's, and the permutation p-values of MIA-NN."""
    scores = ("own train", "own unseen", "neighbour train", "neighbour unseen")
    lines = ["| method | " + " | ".join(scores) + " | p of the MIA-NN test, a class |", "|---" * 6 + "|"]
    for k, row in enumerate(found[0]["rows"]):
        means = [t_interval([f["rows"][k][s]["auc"]["value"] for f in found]) for s in scores]
        tests = [f["profile test"].get(row["method"]) for f in found]
        p = ", ".join(f"{t['p_value']:.4f}" for t in tests if t) or "–"
        lines.append(f"| {row['method']} | " + " | ".join(f"{m:.3f} ± {w:.3f}" for m, w in means) + f" | {p} |")
    floors = [t_interval([f["floors"][s]["value"] for f in found]) for s in scores]
    lines.append("| retrained against retrained, abs(AUC − 0.5) | " + " | ".join(f"{m:.3f} ± {w:.3f}" for m, w in floors) + " | – |")
    return "\n".join(lines)


def leakage_table(leakage: dict) -> str:
    scores = ("own train", "own unseen", "neighbour train", "neighbour unseen")
    show = lambda e: f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"  # noqa: E731
    lines = [f"### {leakage['name']}\n", "| method | " + " | ".join(scores) + " | balanced accuracy, own train |", "|---" * 6 + "|"]
    for row in leakage["rows"]:
        lines.append(
            "| " + " | ".join([row["method"], *(show(row[s]["auc"]) for s in scores), show(row["own train"]["balanced_accuracy"])]) + " |"
        )
    lines.append("| retrained against retrained, abs(AUC − 0.5) | " + " | ".join(show(leakage["floors"][s]) for s in scores) + " | – |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data")
    parser.add_argument("--store", default="runs")
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    parser.add_argument("--stage", choices=["train", "unlearn", "measure", "timing", "leaning", "all"], default="all")
    parser.add_argument("--reverse", action="store_true", help="take the unlearning runs backwards: for a second process on the same store")
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Experiment(options.root, options.store)
    if options.stage in ("timing", "leaning"):
        found = experiment.timing() if options.stage == "timing" else experiment.leaning()
        text = json.dumps({"results": found, "versions": provenance(), "platform": platform.platform()}, indent=1)
        (options.out / f"class_cifar10_{options.stage}.json").write_text(text + "\n")
        return
    if options.stage in ("train", "all"):
        experiment.train_all()
    if options.stage in ("unlearn", "all"):
        experiment.unlearn_all(options.reverse)
    if options.stage in ("train", "unlearn"):
        return
    first = load_trained(experiment.trained(experiment.fleet("original", range(1)))[0], experiment.build)
    methods = {c: experiment.methods(c, first) for c in CLASSES}
    rows = [row for s in range(SEEDS) for c in CLASSES for row in experiment.measured(c, s, methods[c])]
    if options.stage == "measure":
        return
    leakage = [experiment.leakage(c, for_leakage(methods[c])) for c in CLASSES]
    about = {"recipe": repr(RECIPE), "methods": {n: str(m) for n, m in METHODS.items()}, "calibrated": {experiment.train.classes[c]: str(methods[c][CALIBRATED]) for c in CLASSES},
             "versions": provenance(), "platform": platform.platform()}  # fmt: skip
    (options.out / "class_cifar10.json").write_text(json.dumps({"plan": about, "rows": rows, "leakage": leakage}, indent=1) + "\n")
    text = f"# Forgetting classes of CIFAR-10\n\n{table(rows)}\n\n## U-LiRA, {leakage[0]['n']} against {leakage[0]['n']} models a class\n\n"
    text += f"Mean of the AUCs over classes ± 95 % t interval over classes; the smallest possible p is {next(iter(leakage[0]['profile test'].values()))['smallest_p']:.4f}.\n\n"
    text += leakage_summary(leakage) + "\n\n" + "\n\n".join(leakage_table(found) for found in leakage) + "\n"
    (options.out / "class_cifar10.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
