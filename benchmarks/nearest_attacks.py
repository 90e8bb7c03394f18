"""How near, how often and how fast: the searches for nearest adversarial examples on one trained model.

    python benchmarks/nearest_attacks.py                                    # digits, a small network trained here: a minute
    python benchmarks/nearest_attacks.py --data cifar10 --root data --model original.safetensors --n 500

Beside the searches of the library stand (a) the same PGD with all its steps taken before it looks, and (b) a plain loop over samples, on
the first few of them. Writes a JSON record and a Markdown table; times are CPU seconds, so that other work on the machine counts little.
"""

import argparse
import json
import os
import platform
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torch.nn import functional

from expunge.attacks import NearestAttack, NearestDDN, NearestFGSM, NearestL2PGD
from expunge.data.images import Samples
from expunge.data.load import load_data
from expunge.errors import AdversarialSearchFailed
from expunge.models import architecture, load_model
from expunge.training.recipe import Recipe, train_model

COLUMNS = ("search", "n", "found", "mean distance", "median distance", "passes / image", "seconds", "ms / image")


def searches(eps: float, batch_size: int) -> dict[str, NearestAttack]:
    pgd = {"eps_init": eps, "batch_size": batch_size}
    return {
        "PGD": NearestL2PGD(**pgd),
        "PGD, 5 bisections": NearestL2PGD(**pgd, bisections=5),
        "PGD, restart from x": NearestL2PGD(**pgd, restart=True),
        "PGD, always all steps (a)": NearestL2PGD(**pgd, early_stop=False),
        "DDN, 20 steps, 5 bisections": NearestDDN(steps=20, bisections=5, batch_size=batch_size),
        "DDN": NearestDDN(batch_size=batch_size),
        "DDN, 5 bisections": NearestDDN(bisections=5, batch_size=batch_size),
        "FGSM walk": NearestFGSM(batch_size=batch_size),
        "FGSM walk, 5 bisections": NearestFGSM(bisections=5, batch_size=batch_size),
    }


def measure(attack: NearestAttack, model: nn.Module, data: Samples) -> dict[str, float]:
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdversarialSearchFailed)  # the table says how many
        adversarial = attack(model, data)
    seconds = time.process_time() - start
    distances = adversarial.distances[adversarial.found]
    return row(len(data), adversarial.found.float().mean(), distances, adversarial.forward_passes.float().mean(), seconds)


def row(n: int, found, distances: torch.Tensor, passes, seconds: float) -> dict[str, float]:
    return {
        "n": n, "found": float(found), "mean distance": float(distances.mean()), "median distance": float(distances.median()),
        "passes / image": float(passes), "seconds": seconds, "ms / image": 1000 * seconds / n,
    }  # fmt: skip


def plain_loop(model: nn.Module, data: Samples, eps_init: float, steps: int = 50, ratio: float = 0.1) -> dict[str, float]:
    """The same search as a paper's reader would write it first: one image at a time, ball after ball."""
    distances, passes, start = [], 0, time.process_time()
    for i in range(len(data)):
        x, label = data[i]
        point, eps, found = x, eps_init, False
        while not found and eps < 1000:
            for step in range(steps + 1):
                probe = point.clone().requires_grad_()
                logits = model(probe[None])
                passes += 1
                found = logits.argmax().item() != label
                if found or step == steps:
                    break
                gradient = torch.autograd.grad(functional.cross_entropy(logits.double(), torch.tensor([label])), probe)[0]
                change = point + ratio * eps * gradient / gradient.norm() - x
                point = (x + change * min(1.0, eps / float(change.norm()))).clamp(0, 1)
            eps = 2 * eps
        distances.append(float((point - x).norm()))
    return row(len(data), 1.0, torch.tensor(distances), passes / len(data), time.process_time() - start)


def prepare(options: argparse.Namespace) -> tuple[nn.Module, Samples]:
    train, _ = load_data(options.data, root=options.root)
    if options.model:
        model = load_model(options.model)
    else:
        recipe = Recipe(epochs=options.epochs, lr=0.1, batch_size=64 if options.data == "digits" else 128, precision="float32")
        model = train_model(architecture(options.architecture, train), train, recipe, seed=0)
    return model.to(options.device).eval(), train.subset(range(min(options.n, len(train))))


def markdown(record: dict) -> str:
    head = f"{record['data']}, {record['model']}, train accuracy on the {record['n']} images {record['accuracy']:.3f}; {record['machine']}"
    lines = [head, "", f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for name, values in record["searches"].items():
        cells = [f"{values[c]:.4g}" for c in COLUMNS[1:]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="name, .npz file or folder, as load_data takes it")
    parser.add_argument("--root", default="data", help="folder of named data sets")
    parser.add_argument("--model", help="checkpoint; without one a model is trained here")
    parser.add_argument("--architecture", default="small", help="of the model trained here")
    parser.add_argument("--epochs", type=int, default=30, help="of the model trained here")
    parser.add_argument("--n", type=int, default=300, help="training images to attack")
    parser.add_argument("--plain", type=int, default=10, help="images for the plain loop")
    parser.add_argument("--eps", type=float, default=0.04, help="first radius of PGD")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/nearest_attacks"), help="path of the two files, without suffix"
    )
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    model, data = prepare(options)
    with torch.no_grad():
        accuracy = sum(float((model(x.to(options.device)).argmax(1).cpu() == y).sum()) for x, y in data.batches()) / len(data)
    record = {
        "data": options.data, "model": options.model or f"{options.architecture}, {options.epochs} epochs",
        "n": len(data), "accuracy": accuracy,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), {options.device}, torch {torch.__version__}",
        "settings": {name: repr(attack) for name, attack in searches(options.eps, options.batch_size).items()}, "searches": {},
    }  # fmt: skip
    for name, attack in searches(options.eps, options.batch_size).items():
        record["searches"][name] = measure(attack, model, data)
        print(name, {k: round(v, 4) for k, v in record["searches"][name].items()}, flush=True)
    if options.plain and options.device == "cpu":
        record["searches"]["PGD, plain loop (b)"] = plain_loop(model, data.subset(range(min(options.plain, len(data)))), options.eps)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
