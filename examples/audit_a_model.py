"""Audit models that somebody else claims to have unlearned: from a file of their logits, and from their checkpoints.

python examples/audit_a_model.py             # scikit-learn's digits, less than a minute on two cores
"""

import sys

import numpy as np
import torch

import expunge


def digits() -> tuple[expunge.ImageData, expunge.ImageData, torch.Tensor]:
    """Training and test set, and 50 training digits with wrong labels, which a model can only know by heart: these were to be forgotten."""
    train, test = expunge.load_data("digits")
    labels, wrong = train.labels.clone(), torch.arange(0, 1000, 20)
    labels[wrong] = (labels[wrong] + 1) % 10
    return expunge.ImageData(train.images, labels, train.classes), test, wrong


def somebody_else(folder: str, recipe: expunge.Recipe) -> None:
    """Leaves what an auditor gets: checkpoints, and a file of logits. One of the two claims is false."""
    train, test, wrong = digits()
    build, split = expunge.architecture("small", train), expunge.forget_samples(train, wrong)
    original = expunge.train_model(build, train, recipe)
    honest = expunge.Retrain(build=build, recipe=recipe)(original, split, seed=7)
    idle = expunge.FineTune(epochs=2, lr=1e-5, batch_size=64)(original, split)  # every weight is another one, and the memory the same
    models = {"original": original, "claim A": honest, "claim B": idle}
    for name, model in models.items():
        expunge.save_model(model, f"{folder}/{name}.safetensors", architecture=build)
    groups = np.array(["retain"] * len(train) + ["test"] * len(test))  # a row for each sample
    groups[wrong] = "forget"
    logits = {f"logits:{name}": torch.cat([expunge.logits_of(model, data) for data in (train, test)]) for name, model in models.items()}
    np.savez(f"{folder}/answers.npz", labels=torch.cat([train.labels, test.labels]), groups=groups, **logits)


def main(folder: str = ".", epochs: int = 25) -> list[expunge.Audit]:
    recipe = expunge.Recipe(epochs=epochs, batch_size=64, weight_decay=0.0)
    somebody_else(folder, recipe)

    # 1. Logits alone: is the forget set answered like test images? How far retraining would go, they cannot say.
    answers = expunge.read_answers(f"{folder}/answers.npz")
    from_logits = expunge.audit_answers(answers.logits, answers.audited, flags=answers.flags, title="From a file of logits")

    # 2. Checkpoints, training data and recipe: retrained models are the yardstick, three of them give it a width and the models a verdict.
    train, test, wrong = digits()
    models = {name: expunge.load_model(f"{folder}/{name}.safetensors") for name in ("original", "claim A", "claim B")}
    split, retrain = expunge.forget_samples(train, wrong), expunge.Retrain(build=expunge.architecture("small", train), recipe=recipe)
    retrained = [retrain(models["original"], split, seed=seed) for seed in (1, 2, 3)]
    from_checkpoints = expunge.audit(models | {"retrained": retrained}, split, test, title="From checkpoints")
    for audit in (from_logits, from_checkpoints):
        print(audit.title, audit, sep="\n\n", end="\n\n")
    return [from_logits, from_checkpoints]


if __name__ == "__main__":
    main(*sys.argv[1:])
