"""AMUN on CIFAR-10 at the scale of two cores: retrained, AMUN with and without retain data, and fine-tuning, audited with shadow models.

    python benchmarks/amun_cifar10.py --root data --store runs              # everything; resumable, and several may run at once on one store
    python benchmarks/amun_cifar10.py --stage train                         # only the models that are trained from scratch

Plan: 10,000 training images (mirrored at random, not shifted, so that 20 epochs memorise them), of which 1,000 random ones must leave; resnet_small; one original, three retrained models, 16 shadow models on halves of the 10,000
training and 10,000 test images. Learning rates are chosen without any retrained model: on another forget set of 1,000 training images and the first 5,000 test images, the one
with the smallest mean of |FA − TA|, |RA − RA of the original|, |TA − TA of the original| and |AUC of the margin − 0.5|. The audit uses the other 5,000 test images.
Writes docs/results/amun_cifar10_small.json, .md and .html.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import time

import torch

import expunge
from expunge import AMUN, Augment, FineTune, NearestDDN, NearestL2PGD, Recipe, Step, TrainTask
from expunge.audits.tables import as_text
from expunge.data.pool import pool
from expunge.store import Store
from expunge.stored import Unlearned, unlearn_stored
from expunge.training.fleet import load_trained

RECIPE = Recipe(epochs=20, lr=0.1, batch_size=128)
N_TRAIN, N_FORGET, N_RETRAINED, N_SHADOWS, SEEDS = 10_000, 1_000, 3, 16, 2
RATES = {"AMUN": [0.01, 0.02, 0.05, 0.1, 0.2], "AMUN without retain data": [0.003, 0.01, 0.02, 0.03], "FineTune": [0.02, 0.05, 0.1, 0.2]}


SEARCHES = {"": NearestL2PGD(), ", DDN": NearestDDN(), ", fast DDN": NearestDDN(steps=20, bisections=5)}


def method_of(name: str, lr: float, adversarial: expunge.AdversarialSet) -> expunge.Method:
    """AMUN's authors divide lr by 10 after every 1, 5 or 10 epochs; 5 keeps more of the ten epochs useful."""
    schedule = Step(every=5)
    if name == "FineTune":
        return FineTune(lr=lr, schedule=schedule)
    return AMUN(lr=lr, schedule=schedule, use_retain="without" not in name, adversarial=adversarial)


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    full, test = expunge.load_data("cifar10", root=options.root, augment=Augment(flip=True), download=False)
    train = dataclasses.replace(full, images=full.images[:N_TRAIN], labels=full.labels[:N_TRAIN])
    split = expunge.forget_random(train, N_FORGET, seed=0)
    build, store = expunge.architecture("resnet_small", train), Store(pathlib.Path(options.store))
    tasks = [TrainTask(build=build, recipe=RECIPE, positions=torch.arange(N_TRAIN), kind="original")]
    tasks += [
        TrainTask(build=build, recipe=RECIPE, positions=split.retain.positions, seed=s, kind="retrained") for s in range(1, N_RETRAINED + 1)
    ]
    with expunge.listen(printer()):
        cells = expunge.train_fleet(tasks, pool(train, test), store)
        shadows = expunge.train_shadow_models(build, train, test, n=N_SHADOWS, recipe=RECIPE, store=store)
    print(shadows)
    if options.stage == "train":
        return
    original, *retrained = (load_trained(cell, build) for cell in cells)

    def unlearn(jobs: list[tuple[expunge.Method, expunge.Split, int]]) -> list[Unlearned]:
        """All jobs, in order or backwards, so that two processes meet in the middle."""
        order = reversed(range(len(jobs))) if options.reverse else range(len(jobs))
        made = {
            k: unlearn_stored(method, original, of, build=build, store=store, seed=seed) for k in order for method, of, seed in [jobs[k]]
        }
        return [made[k] for k in range(len(jobs))]

    # Learning rates, without a retrained model.
    development, held_out = forget_others(train, split), test.subset(range(5000))
    tuning_set, _ = searched("development", NearestL2PGD(), original, development, store)
    grid = [(name, lr) for name, rates in RATES.items() for lr in rates]
    tuned = unlearn([(method_of(name, lr, tuning_set), development, 0) for name, lr in grid])
    losses = dict(zip(grid, tuning_losses([u.model for u in tuned], original, development, held_out), strict=True))
    chosen = {name: min(rates, key=lambda lr, name=name: losses[name, lr]) for name, rates in RATES.items()}
    print(losses, chosen, flush=True)

    # The forget set, with several seeds; AMUN also with the examples of DDN.
    models, seconds, details, sets = {"original": [original]}, {}, {}, {}
    for suffix, attack in SEARCHES.items():
        adversarial, spent = searched(f"forget{suffix}", attack, original, split, store)
        sets[repr(attack)] = summary(adversarial, spent)
        for name in RATES if not suffix else list(RATES)[:2]:
            method = method_of(name, chosen[name], adversarial)
            runs = unlearn([(method, split, seed) for seed in range(SEEDS)])
            models[name + suffix] = [r.model for r in runs]
            seconds[name + suffix] = round(runs[0].seconds + (spent if "AMUN" in name else 0), 1)
            details[name + suffix] = str(method)
    seconds |= {"retrained": cells[1].result()["seconds"], "original": cells[0].result()["seconds"]}
    result = expunge.audit(
        models | {"retrained": retrained}, split, test.subset(range(5000, 10_000)), shadows=shadows, seconds=seconds, details=details,
        attacks=[expunge.LossThreshold(), expunge.LiRA(), expunge.RMIA()], title="AMUN on CIFAR-10: 10,000 images, 1,000 to forget",
    )  # fmt: skip
    plan = {
        "recipe": repr(RECIPE),
        "learning rates": chosen,
        "tuning losses": {f"{n} {lr:g}": round(v, 5) for (n, lr), v in losses.items()},
    }
    write(result, options.out, plan | {"adversarial sets": sets, "platform": platform.platform()})


def searched(name: str, attack: expunge.NearestAttack, model, split: expunge.Split, store: Store) -> tuple[expunge.AdversarialSet, float]:
    """The adversarial set of a forget set and the seconds that it took; read from the store's folder if it is there."""
    path = store.root / f"adversarial_{name.replace(', ', '_').replace(' ', '_')}.safetensors"
    if not path.exists():
        start = time.perf_counter()
        adversarial = attack(model, split.forget)
        path.with_suffix(".txt").write_text(str(time.perf_counter() - start))
        adversarial.save(path)  # last: its presence means done
    adversarial = expunge.AdversarialSet.load(path)
    adversarial.check(model, split.forget)
    return adversarial, float(path.with_suffix(".txt").read_text())


def summary(adversarial: expunge.AdversarialSet, spent: float) -> dict:
    """AMUN's invariants, counted, and how far and how dear the examples are."""
    distances = adversarial.distances[adversarial.found & ~adversarial.already_wrong]
    shares = [0.1, 0.25, 0.5, 0.75, 0.9]
    return {
        "found": int(adversarial.found.sum()),
        "already wrong": int(adversarial.already_wrong.sum()),
        "label equals the true one": int((adversarial.labels == adversarial.true_labels)[adversarial.found].sum()),
        "mean distance": round(float(distances.mean()), 4),
        "quantiles of the distance": dict(
            zip(map(str, shares), [round(float(q), 4) for q in distances.quantile(torch.tensor(shares))], strict=True)
        ),
        "forward passes per image": round(float(adversarial.forward_passes.float().mean()), 1),
        "seconds": round(spent, 1),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data")
    parser.add_argument("--store", default="runs")
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    parser.add_argument("--stage", choices=["train", "all"], default="all")
    parser.add_argument("--reverse", action="store_true", help="take the unlearning runs backwards: for a second process on the same store")
    return parser.parse_args()


def forget_others(train: expunge.Samples, split: expunge.Split) -> expunge.Split:
    """As many random samples again, none of them in the forget set."""
    candidates = split.retain.positions
    return expunge.forget_samples(train, candidates[expunge.forget_random(split.retain, N_FORGET, seed=1).forget_indices])


def tuning_losses(models: list, original, split: expunge.Split, held_out: expunge.Samples) -> list[float]:
    """For each model how far it is from what a retrained model would do, judged without one (see the top of this file)."""
    groups = (split.forget, split.retain, held_out)

    def answers(model) -> tuple[list[float], list[torch.Tensor]]:
        logits = [expunge.logits_of(model, group) for group in groups]
        right = [float((z.argmax(1) == g.labels).float().mean()) for z, g in zip(logits, groups, strict=True)]
        return right, [expunge.logit_margin(z, g.labels) for z, g in zip(logits, groups, strict=True)]

    (_, retain_before, test_before), _ = answers(original)
    losses = []
    for model in models:
        (forget, retain, test), margins = answers(model)
        area = expunge.metrics.auc(margins[0], margins[2]).value
        losses.append((abs(forget - test) + abs(retain - retain_before) + abs(test - test_before) + abs(area - 0.5)) / 4)
    return losses


def write(result: expunge.Audit, folder: pathlib.Path, more: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = result.to_dict() | {"plan": more}
    for attack in plain["attacks"]:
        attack.pop("roc")  # curves and histograms are in the page; the record holds numbers
    plain.pop("histograms")
    (folder / "amun_cifar10_small.json").write_text(json.dumps(plain, indent=1) + "\n")
    text = as_text(plain)
    (folder / "amun_cifar10_small.md").write_text(f"# {plain['title']}\n\n```\n{text}\n```\n")
    result.to_html(folder / "amun_cifar10_small.html")
    print(text)


def printer():
    last = [0.0]

    def show(progress: expunge.Progress) -> None:
        if time.monotonic() - last[0] > 30 or progress.done == progress.total:
            last[0] = time.monotonic()
            print(f"{progress.stage}: {progress.done} of {progress.total} {progress.note}", flush=True)

    return show


if __name__ == "__main__":
    main()
