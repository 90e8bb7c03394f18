"""How near, how often and how fast: the searches for nearest adversarial examples on one trained model.

    python benchmarks/nearest_attacks.py                                    # digits, a small network trained here: a minute
    python benchmarks/nearest_attacks.py --data cifar10 --root data --store runs --n 300      # resnet_tiny, the first original of plans/amun_cifar10_random10.toml at the cpu scale, which must be there
    python benchmarks/nearest_attacks.py --data cifar10 --root data --model original.safetensors --n 300

Plan: every search on the same training images of one model. Beside the searches of the library stand (a) the same PGD with all its 50 steps taken before it looks, and (b) a plain loop over
samples as a paper's reader would write it first, on the first few of them; beside it the same search of ours on just these. "Times fewer passes" and "nearer" compare with (a), image by image:
nearer counts images whose distance is at most a thousandth longer than with (a). One thread, CPU seconds, so that other work on the machine counts little. Writes nearest_attacks_<data>.json and .md.
"""

import argparse
import json
import os
import platform
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from plan_options import PLAN  # beside this script
from torch import Tensor, nn
from torch.nn import functional

from expunge.attacks import NearestAttack, NearestDDN, NearestFGSM, NearestL2PGD
from expunge.bench import read_plan
from expunge.bench.point import points
from expunge.data.images import Samples
from expunge.data.load import load_data
from expunge.errors import AdversarialSearchFailed
from expunge.models import architecture, load_model
from expunge.provenance import hardware, provenance
from expunge.training.recipe import Recipe, train_model

COLUMNS = (
    "search", "n", "found", "mean distance", "median distance", "passes / image", "times fewer passes", "nearer", "seconds", "ms / image",
)  # fmt: skip
ALWAYS, PLAIN = "PGD, always all steps (a)", "PGD, plain loop (b)"


def searches(eps: float, batch_size: int) -> dict[str, NearestAttack]:
    pgd = {"eps_init": eps, "batch_size": batch_size}
    return {
        ALWAYS: NearestL2PGD(**pgd, early_stop=False),
        "PGD": NearestL2PGD(**pgd),
        "PGD, 5 bisections": NearestL2PGD(**pgd, bisections=5),
        "PGD, restart from x": NearestL2PGD(**pgd, restart=True),
        "PGD, 10 steps, 5 bisections": NearestL2PGD(**pgd, steps=10, bisections=5),
        "PGD, 5 steps of ε/5, 5 bisections": NearestL2PGD(**pgd, steps=5, step_ratio=0.2, bisections=5),
        "DDN, 20 steps, 5 bisections": NearestDDN(steps=20, bisections=5, batch_size=batch_size),
        "DDN": NearestDDN(batch_size=batch_size),
        "DDN, 5 bisections": NearestDDN(bisections=5, batch_size=batch_size),
        "FGSM walk": NearestFGSM(batch_size=batch_size),
        "FGSM walk, 5 bisections": NearestFGSM(bisections=5, batch_size=batch_size),
    }


def measure(attack: NearestAttack, model: nn.Module, data: Samples) -> "Found":
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdversarialSearchFailed)  # the table says how many
        adversarial = attack(model, data)
    seconds = time.process_time() - start
    return Found(adversarial.distances.where(adversarial.found, torch.inf), adversarial.forward_passes.double(), seconds)


@dataclass(frozen=True)
class Found:
    """What a search found on n images: distances (inf = nothing found) and forward passes, both (n,)."""

    distances: Tensor
    passes: Tensor
    seconds: float

    def row(self, always: "Found") -> dict[str, float]:
        """What the table shows, beside the search that always takes all its steps."""
        n, there = len(self.distances), self.distances[self.distances.isfinite()]
        return {
            "n": n, "found": len(there) / n, "mean distance": float(there.mean()), "median distance": float(there.median()),
            "passes / image": float(self.passes.mean()), "times fewer passes": float(always.passes[:n].mean() / self.passes.mean()),
            "nearer": float((self.distances <= 1.001 * always.distances[:n]).double().mean()),
            "seconds": self.seconds, "ms / image": 1000 * self.seconds / n,
        }  # fmt: skip


def plain_loop(model: nn.Module, data: Samples, eps_init: float, steps: int = 50, ratio: float = 0.1) -> Found:
    """The same search as a paper's reader would write it first: one image at a time, ball after ball."""
    distances, passes, start = [], [], time.process_time()
    for i in range(len(data)):
        x, label = data[i]
        point, eps, found, n = x, eps_init, False, 0
        while not found and eps < 1000:
            for step in range(steps + 1):
                probe = point.clone().requires_grad_()
                logits = model(probe[None])
                n += 1
                found = logits.argmax().item() != label
                if found or step == steps:
                    break
                gradient = torch.autograd.grad(functional.cross_entropy(logits.double(), torch.tensor([label])), probe)[0]
                change = point + ratio * eps * gradient / gradient.norm() - x
                point = (x + change * min(1.0, eps / float(change.norm()))).clamp(0, 1)
            eps = 2 * eps
        distances.append(float((point - x).norm()))
        passes.append(n)
    return Found(torch.tensor(distances), torch.tensor(passes).double(), time.process_time() - start)


def prepare(options: argparse.Namespace) -> tuple[nn.Module, Samples]:
    train, _ = load_data(options.data, root=options.root)
    if options.store:
        (point,) = points(read_plan(PLAN, "cpu"), options.store, options.root)
        train, model = point.split.train, point.model("originals")
    elif options.model:
        model = load_model(options.model)
    else:
        recipe = Recipe(epochs=options.epochs, lr=0.1, batch_size=64 if options.data == "digits" else 128, precision="float32")
        model = train_model(architecture(options.architecture, train), train, recipe, seed=0)
    return model.to(options.device).eval(), train.subset(range(min(options.n, len(train))))


def markdown(record: dict) -> str:
    head = f"{record['data']}, {record['model']}, train accuracy on the {record['n']} images {record['accuracy']:.3f}; {record['machine']}"
    lines = ["# Searches for nearest adversarial examples", "", f"`{record['command']}`: {head}.", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for name, values in record["searches"].items():
        cells = [f"{values[c]:.4g}" for c in COLUMNS[1:]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="name, .npz file or folder, as load_data takes it")
    parser.add_argument("--root", default="data", help="folder of named data sets")
    parser.add_argument("--model", help="checkpoint; without one, and without a store, a model is trained here")
    parser.add_argument(
        "--store", type=Path, help="take the first original of methods_cifar10.py, trained on 10,000 images, from this store"
    )
    parser.add_argument("--architecture", default="small", help="of the model trained here")
    parser.add_argument("--epochs", type=int, default=30, help="of the model trained here")
    parser.add_argument("--n", type=int, default=300, help="training images to attack")
    parser.add_argument("--plain", type=int, default=10, help="images for the plain loop")
    parser.add_argument("--eps", type=float, default=0.04, help="first radius of PGD")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="docs/results", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    model, data = prepare(options)
    with torch.no_grad():
        accuracy = sum(float((model(x.to(options.device)).argmax(1).cpu() == y).sum()) for x, y in data.batches()) / len(data)
    chosen = searches(options.eps, options.batch_size)
    found = {}
    for name, attack in chosen.items():
        found[name] = measure(attack, model, data)
        print(name, found[name].row(found[ALWAYS]), flush=True)
    if options.plain and options.device == "cpu":
        few = data.subset(range(min(options.plain, len(data))))
        found[PLAIN] = plain_loop(model, few, options.eps)
        found[f"PGD, the same {len(few)} images"] = measure(chosen["PGD"], model, few)
    record = {
        "command": f"python benchmarks/nearest_attacks.py --data {options.data} --n {options.n}" + (" --store runs" if options.store else ""), "plan": __doc__.split("Plan: ")[1].strip(),
        "data": options.data, "model": options.model or ("resnet_tiny, 20 epochs" if options.store else f"{options.architecture}, {options.epochs} epochs"),
        "n": len(data), "accuracy": accuracy, "versions": provenance(), "platform": platform.platform(),
        "machine": f"{hardware()}, {torch.get_num_threads()} thread(s), {options.device}, torch {torch.__version__}",
        "settings": {name: repr(attack) for name, attack in chosen.items()},
        "searches": {name: result.row(found[ALWAYS]) for name, result in found.items()},
    }  # fmt: skip
    name = f"nearest_attacks_{Path(options.data).stem}"
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / f"{name}.md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
