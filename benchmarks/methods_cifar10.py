"""Every method against every other, and against retraining: CIFAR-10 at the scale of two cores, by one plan file.

    python benchmarks/methods_cifar10.py --setting random --root data --store runs    # or --setting class; resumable
    python benchmarks/methods_cifar10.py --setting random --part 0/2 &                # several on one store: each takes other methods
    python benchmarks/methods_cifar10.py --setting random --part 1/2

The plan is plans/methods_cifar10.toml. Each method's step size (`method.tunes`) is chosen by `expunge.tune` with the first original: the same number of trials for
all, on samples that are not forgotten, without any model that is retrained without the forget set. Then it unlearns from every original, and one audit of
all models says how far they are from retraining. Methods that are not there yet in a store are made; the table has what is there.
Writes docs/results/methods_cifar10_<setting>.json and .md.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import statistics
import time
import tomllib

import torch
from scipy.special import stdtrit

import expunge
from expunge import Augment, Method, Recipe, Retrain, TrainTask
from expunge.costs import Cost
from expunge.data.pool import pool
from expunge.errors import ModelError
from expunge.methods import METHODS
from expunge.metrics import ties_with_best
from expunge.provenance import provenance
from expunge.settings import configured
from expunge.store import Store, plain
from expunge.stored import unlearn_stored
from expunge.training.fleet import load_trained
from expunge.tuning import development_split, tune

PLAN = pathlib.Path(__file__).parent / "plans" / "methods_cifar10.toml"


class Experiment:
    def __init__(self, options: argparse.Namespace) -> None:
        self.setting, self.plan = options.setting, tomllib.loads(PLAN.read_text())
        data, models = self.plan["data"], self.plan["models"]
        full, self.test = expunge.load_data("cifar10", root=options.root, augment=Augment(flip=True), download=False)
        n = data["n_train"]
        self.train = dataclasses.replace(full, images=full.images[:n], labels=full.labels[:n])
        self.build, self.store = expunge.architecture(models["architecture"], self.train), Store(options.store)
        self.recipe, self.seeds = Recipe(**models["recipe"]), models["seeds"]
        is_random = options.setting == "random"
        self.split = (
            expunge.forget_random(self.train, data["n_forget"], seed=0)
            if is_random
            else expunge.forget_classes(self.train, [data["forget_class"]])
        )
        self.held_out = {name: self.test.subset(range(*data[name])) for name in ("tuning", "audit")}

    def trained(self, positions: torch.Tensor, seed: int, kind: str) -> list:
        task = TrainTask(build=self.build, recipe=self.recipe, positions=positions, seed=seed, kind=kind)
        return expunge.train_fleet([task], pool(self.train, self.test), self.store, workers=1)

    def model(self, kind: str, seed: int, split: expunge.Split | None = None):
        positions = torch.arange(len(self.train)) if split is None else split.retain.ids
        return load_trained(self.trained(positions, seed + (100 if split else 0), kind)[0], self.build)

    def prepare(self) -> None:
        """What is trained from scratch, two models at a time."""
        everything, retain = torch.arange(len(self.train)), self.split.retain.ids
        development = development_split(self.split).retain.ids
        jobs = [(everything, s, "original") for s in range(self.seeds)] + [(retain, 100 + s, "retrained") for s in range(self.seeds)]
        jobs += [(development, 100, "retrained")]
        tasks = [TrainTask(build=self.build, recipe=self.recipe, positions=p, seed=s, kind=kind) for p, s, kind in jobs]
        expunge.train_fleet(tasks, pool(self.train, self.test), self.store)
        self.shadows()

    def shadows(self):
        n = self.plan["models"]["shadow_models"]
        return expunge.train_shadow_models(self.build, self.train, self.test, n=n, recipe=self.recipe, store=self.store)

    def methods(self) -> dict[str, Method]:
        made = {}
        for name, given in self.plan[self.setting].items():
            fields = dict(given)
            cls = METHODS.get(fields.pop("method", name))
            if cls is not None:
                made[name] = configured(cls, [f"{key}={value}" for key, value in fields.items()])
        return made

    def tuned(self, method: Method) -> dict:
        """The chosen setting and all trials; kept in the store."""
        trials = self.plan["tuning"]["trials"]
        cell = self.store.cell(
            "tuned", {"setting": self.setting, "method": method, "plan": [self.plan["data"], self.plan["models"]], "trials": trials}
        )

        def work() -> None:
            found = tune(
                method, self.model("original", 0), self.split, self.held_out["tuning"], build=self.build, recipe=self.recipe, trials=trials,
                retrained=self.model("retrained", 0, development_split(self.split)), store=self.store, device="cpu",
            )  # fmt: skip
            cell.finish(found.to_dict())

        cell.ensure(work)
        return cell.result()

    def chosen(self, method: Method) -> Method:
        if method.tunes is None:
            return method
        tuning = self.tuned(method)
        return dataclasses.replace(method, **{tuning["field"]: tuning["best"]})

    def run(self, method: Method, seed: int):
        return unlearn_stored(method, self.model("original", seed), self.split, build=self.build, store=self.store, seed=seed, device="cpu")

    def work(self, part: int, parts: int) -> None:
        """All first seeds before all second ones, so that a run that is stopped leaves a table of all methods."""
        failed = set()
        for seed in range(self.seeds):
            for name, method in list(self.methods().items())[part::parts]:
                if name in failed:
                    continue
                try:
                    chosen = self.chosen(method)
                    run = self.run(chosen, seed)
                except ModelError as error:
                    failed.add(name)
                    print(time.strftime("%H:%M:%S"), name, "FAILED:", error, flush=True)
                    continue
                print(time.strftime("%H:%M:%S"), seed, name, repr(chosen), f"{run.seconds:.1f} s", flush=True)

    def finished(self) -> dict[str, Method]:
        """The methods that are tuned and have unlearned every original."""
        cells = {kind: [cell.spec for cell in self.store.cells() if cell.kind == kind and cell.done] for kind in ("tuned", "unlearned")}
        tuned = {text(spec["method"]) for spec in cells["tuned"] if spec["setting"] == self.setting}
        there = {name: method for name, method in self.methods().items() if method.tunes is None or text(plain(method)) in tuned}

        def complete(method: Method) -> bool:
            chosen = text(plain(self.chosen(method)))
            seeds = [
                spec["seed"]
                for spec in cells["unlearned"]
                if text(spec["method"]) == chosen and ("forget_classes" in spec) == (self.setting == "class")
            ]
            return set(range(self.seeds)) <= set(seeds)

        return {name: method for name, method in there.items() if complete(method)}

    def report(self) -> tuple[dict, str]:
        """One audit for each original; means over originals with 95 % t intervals."""
        there = self.finished()
        tunings, chosen = {n: self.tuned(m) for n, m in there.items() if m.tunes}, {n: self.chosen(m) for n, m in there.items()}
        retrained = [self.model("retrained", s, self.split) for s in range(self.seeds)]
        shadows, attacks = self.shadows(), [expunge.RMIA()]
        audits, cost = [], {}
        for seed in range(self.seeds):
            models = {"original": self.model("original", seed)}
            for name, method in chosen.items():
                run = self.run(method, seed)
                models[name] = run.model
                cost.setdefault(name, []).append(run)
            # A method is compared with each retrained model in turn, so that the yardstick's own luck averages out.
            order = retrained[seed:] + retrained[:seed]
            audits.append(
                expunge.audit(
                    models | {"retrained": order}, self.split, self.held_out["audit"], shadows=shadows, attacks=attacks, device="cpu"
                )
            )
        return self.table(audits, chosen, tunings, cost, type(attacks[0]).__name__)

    def table(self, audits: list, chosen: dict, tunings: dict, cost: dict, attack: str) -> tuple[dict, str]:
        groups = ["forget", *(["forget_test"] if self.setting == "class" else []), "retain", "test"]
        names = ["retrained", "original", *chosen]
        rows = {}
        for name in names:
            entries = [next(row for row in audit.models if row.name == name) for audit in audits]
            row = {group: mean_t([100 * getattr(e, group).value for e in entries]) for group in groups}
            row["auc"] = mean_t([audit[attack, name].auc for audit in audits])
            if name == "retrained":
                row["gap"] = mean_t([100 * audit.floor.value for audit in audits])
            else:
                row["gap"] = mean_t([100 * e.gaps.average.value for e in entries])
            rows[name] = row
        for name, runs in cost.items():
            method = chosen[name]
            counted = [Cost.from_dict(r.cost).passes(len(self.train)) for r in runs]
            rows[name] |= {
                "epochs": statistics.mean(counted), "seconds": statistics.median(r.seconds for r in runs), "method": repr(method),
                "tuning": tunings.get(name), "paper": method.paper,
            }  # fmt: skip
        ranked = ["retrained", "original", *sorted(chosen, key=lambda n: rows[n]["gap"][0])]
        tied = ties_with_best({n: [100 * next(r for r in a.models if r.name == n).gaps.average.value for a in audits] for n in chosen})
        head = ["", "average gap", *(g.replace("_", " ") for g in groups), f"{attack} AUC", "cost, epochs", "s", "ties with the best"]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for n in ranked:
            r = rows[n]
            cells = [n + (" (gap: floor)" if n == "retrained" else ""), shown(r["gap"]), *(shown(r[g]) for g in groups), shown(r["auc"], 3)]
            cells += [
                f"{r['epochs']:.3g}" if "epochs" in r else "",
                f"{r['seconds']:.0f}" if "seconds" in r else "",
                "yes" if n in tied else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", "Settings that were tuned (value, and whether it is the smallest or largest that was tried):", ""]
        for n, t in tunings.items():
            lines.append(f"- {n}: {t['field']} = {t['best']:.3g}{', at the end' if t['at_the_end'] else ''}")
        record = {
            "plan": self.plan, "setting": self.setting, "rows": rows, "tied_with_the_best": sorted(tied), "platform": platform.platform(),
            "versions": provenance(), "retrain": repr(Retrain(build=self.build, recipe=self.recipe)),
        }  # fmt: skip
        return record, "\n".join(lines) + "\n"


def text(record: dict) -> str:
    """A stored record in a form that can be compared."""
    return json.dumps(record, sort_keys=True)


def mean_t(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % t interval."""
    n = len(values)
    return statistics.mean(values), float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / n**0.5 if n > 1 else float("nan")


def shown(pair: tuple[float, float], digits: int = 1) -> str:
    return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=["random", "class"], required=True)
    parser.add_argument("--stage", choices=["prepare", "methods", "report", "all"], default="all")
    parser.add_argument("--part", default="0/1", help="K/N: of the methods every N-th, from number K on")
    parser.add_argument("--root", default="data")
    parser.add_argument("--store", default="runs", type=pathlib.Path)
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Experiment(options)
    if options.stage in ("prepare", "all"):
        experiment.prepare()
    if options.stage in ("methods", "all"):
        experiment.work(*map(int, options.part.split("/")))
    if options.stage in ("report", "all"):
        record, text = experiment.report()
        name = f"methods_cifar10_{options.setting}"
        (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        (options.out / f"{name}.md").write_text(f"# Every method, CIFAR-10, {options.setting}\n\n{text}")
        print(text)


if __name__ == "__main__":
    main()
