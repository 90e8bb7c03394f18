"""What a method takes beyond the passes that it consists of: CPU seconds of each against those of plain training steps, in one run.

    python benchmarks/method_speed.py --root data            # resnet_tiny, 1,000 CIFAR-10 images, 200 of them (or a class) to forget; one thread

A pass is what `measure_cost` counts. Its price is measured in the same run, before and after each method: an epoch of plain cross-entropy on the same images for forward
and backward, a scoring pass for forward alone, half the difference for a gradient at the input. Ratio = seconds / (passes at these prices); 1 = nothing but the passes.
Writes docs/results/method_speed.json and .md.
"""

import argparse
import copy
import dataclasses
import json
import pathlib
import platform
import time

import torch

import expunge
from expunge import Augment, Recipe
from expunge.methods import METHODS
from expunge.provenance import provenance
from expunge.training.inference import logits_of
from expunge.training.loop import sgd

NOTES = """Methods that are trained by plain steps (fine_tune, random_label, neg_grad_plus, scrub, scar, trw, l1_sparse, salun, delete, gradient_ascent, bad_teacher) take 0.8 to 1.1
times these steps. cf_k and eu_k take a third: what does not change is computed once. Above 1.1 lie those whose passes are no plain steps, which this price does not know:

- ssd, influence_unlearning, fisher_forgetting: a gradient for each sample (and class) apart, by layers.
- mu_mis, jit: derivatives of derivatives, or of many noisy copies.
- amun, boundary_shrink, boundary_expanding, l2ul, unsir: gradients at the image cost more than half a backward pass; searches for adversarial examples also wait for
  their last few images in small batches, and a float32 exact to the last digit.
- esc, svd_unlearn: singular value decompositions.
"""

SLOW = {
    "epochs": 2,
    "recipe": Recipe(epochs=2),
    "until": None,
    "n_adversarial": 1,
    "attack_steps": 10,
}  # fields that are set where a method has them


def cpu_seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def prices(model, train) -> tuple[float, float]:
    """CPU seconds an image for a forward pass, and for a training step."""
    forward = cpu_seconds(lambda: logits_of(model, train)) / len(train)
    with torch.enable_grad():
        step = cpu_seconds(lambda: sgd(copy.deepcopy(model), train, epochs=1, lr=1e-4)) / len(train)
    return forward, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    full, _ = expunge.load_data("cifar10", root=options.root, augment=Augment(flip=True), download=False)
    train = dataclasses.replace(full, images=full.images[: options.n], labels=full.labels[: options.n])
    build = expunge.architecture("resnet_tiny", train)
    model = expunge.train_model(build, train, Recipe(epochs=8, lr=0.1, batch_size=64), device="cpu")
    rows, record = [], {}
    for name, cls in sorted(METHODS.items()):
        fields = {f.name for f in dataclasses.fields(cls)}
        method = cls(**{key: value for key, value in (SLOW | {"build": build}).items() if key in fields})
        classes = method.scenario == "classes"
        split = expunge.forget_classes(train, [1]) if classes else expunge.forget_random(train, options.n // 5)
        before = prices(model, train)
        with expunge.measure_cost() as cost:
            seconds = cpu_seconds(lambda: method(model, split, device="cpu"))  # noqa: B023
        after = prices(model, train)
        forward, step = ((a + b) / 2 for a, b in zip(before, after, strict=True))
        paired = min(cost.forward.total(), cost.backward.total())
        expected = paired * step + (cost.forward.total() - paired) * forward + (cost.backward.total() - paired) * (step - forward)
        expected += cost.input_gradients.total() * (step - forward) / 2
        record[name] = {"method": str(method), "seconds": seconds, "expected": expected, "cost": cost.to_dict(), "prices": [forward, step]}
        rows.append(f"| {name} | {cost.passes(len(train)):.2f} | {seconds:.2f} | {expected:.2f} | **{seconds / expected:.2f}** |")
        print(rows[-1], flush=True)
    text = "| method | passes | CPU s | of its passes | ratio |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    about = {"versions": provenance(), "platform": platform.platform(), "n": options.n, "rows": record}
    (options.out / "method_speed.json").write_text(json.dumps(about, indent=1) + "\n")
    about_ratio = (
        "Ratio = CPU seconds / (passes at the prices of plain steps, measured before and after each method); 1 = nothing but the passes."
    )
    (options.out / "method_speed.md").write_text(
        f"# What methods take beyond their passes\n\n`python benchmarks/method_speed.py`: one thread, {options.n} images, resnet_tiny. {about_ratio}\n\n{text}\n{NOTES}"
    )


if __name__ == "__main__":
    main()
