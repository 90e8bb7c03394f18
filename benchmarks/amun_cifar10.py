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
from expunge import AMUN, Augment, FineTune, NearestL2PGD, Recipe, Step, TrainTask
from expunge.audits.tables import as_text
from expunge.data.pool import pool
from expunge.store import Store
from expunge.stored import unlearn_stored
from expunge.training.fleet import load_trained

RECIPE = Recipe(epochs=20, lr=0.1, batch_size=128)
N_TRAIN, N_FORGET, N_RETRAINED, N_SHADOWS, SEEDS = 10_000, 1_000, 3, 16, 3
RATES = {"AMUN": [0.005, 0.01, 0.02, 0.05], "AMUN without retain data": [0.001, 0.003, 0.01, 0.03], "FineTune": [0.01, 0.02, 0.05, 0.1]}


def method_of(name: str, lr: float, attack: NearestL2PGD) -> expunge.Method:
    """AMUN's paper divides lr by 10 after every 1 or 5 epochs; five keeps more of the ten epochs useful."""
    return {
        "AMUN": AMUN(lr=lr, schedule=Step(every=5), attack=attack),
        "AMUN without retain data": AMUN(lr=lr, schedule=Step(every=5), use_retain=False, attack=attack),
        "FineTune": FineTune(lr=lr, schedule=Step(every=5)),
    }[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data")
    parser.add_argument("--store", default="runs")
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    parser.add_argument("--stage", choices=["train", "all"], default="all")
    parser.add_argument(
        "--reverse", action="store_true", help="go through the learning rates backwards: for a second process on the same store"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)

    full, test = expunge.load_data("cifar10", root=options.root, augment=Augment(flip=True), download=False)
    train = dataclasses.replace(full, images=full.images[:N_TRAIN], labels=full.labels[:N_TRAIN])
    split = expunge.forget_random(train, N_FORGET, seed=0)
    build, store = expunge.architecture("resnet_small", train), Store(pathlib.Path(options.store))
    tasks = [TrainTask(build=build, recipe=RECIPE, positions=torch.arange(N_TRAIN), kind="original")]
    tasks += [
        TrainTask(build=build, recipe=RECIPE, positions=split.retain.ids, seed=s, kind="retrained") for s in range(1, N_RETRAINED + 1)
    ]
    with expunge.listen(printer()):
        cells = expunge.train_fleet(tasks, pool(train, test), store)
        shadows = expunge.train_shadow_models(build, train, test, n=N_SHADOWS, recipe=RECIPE, store=store)
    print(shadows)
    if options.stage == "train":
        return
    original, *retrained = (load_trained(cell, build) for cell in cells)

    # Learning rates, without a retrained model.
    development, held_out = forget_others(train, split), test.subset(range(5000))
    chosen = {}
    for name, rates in RATES.items():
        losses = {}
        for lr in reversed(rates) if options.reverse else rates:
            model = unlearn_stored(method_of(name, lr, NearestL2PGD()), original, development, build=build, store=store).model
            losses[lr] = tuning_loss(model, original, development, held_out)
            print(f"{name} lr={lr:g}: {losses[lr]:.4f}", flush=True)
        chosen[name] = min(losses, key=losses.get)

    models, seconds, details = {"original": original}, {}, {}
    for name, lr in chosen.items():
        method = method_of(name, lr, NearestL2PGD())
        runs = [unlearn_stored(method, original, split, build=build, store=store, seed=seed) for seed in range(SEEDS)]
        models[name], seconds[name], details[name] = [r.model for r in runs], runs[0].seconds, repr(method)
    seconds["retrained"], seconds["original"] = cells[1].result()["seconds"], cells[0].result()["seconds"]
    audit_set = test.subset(range(5000, 10_000))
    result = expunge.audit(
        models | {"retrained": retrained}, split, audit_set, shadows=shadows, seconds=seconds, details=details,
        title="AMUN on CIFAR-10: 10,000 images, 1,000 to forget",
    )  # fmt: skip
    write(result, options.out, {"chosen learning rates": chosen, "recipe": repr(RECIPE), "machine": platform.platform()})


def forget_others(train: expunge.Samples, split: expunge.Split) -> expunge.Split:
    """As many random samples again, none of them in the forget set."""
    candidates = split.retain.ids
    return expunge.forget_samples(train, candidates[expunge.forget_random(split.retain, N_FORGET, seed=1).forget_indices])


def tuning_loss(model, original, split, held_out) -> float:
    def accuracy(m, samples):
        return float((expunge.logits_of(m, samples).argmax(1) == samples.labels).float().mean())

    margins = [expunge.logit_margin(expunge.logits_of(model, s), s.labels) for s in (split.forget, held_out)]
    forget, retain, test = (accuracy(model, s) for s in (split.forget, split.retain, held_out))
    area = expunge.metrics.auc(*margins).value
    return (
        abs(forget - test) + abs(retain - accuracy(original, split.retain)) + abs(test - accuracy(original, held_out)) + abs(area - 0.5)
    ) / 4


def write(result: expunge.Audit, folder: pathlib.Path, more: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = result.to_dict() | {"plan": more}
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
