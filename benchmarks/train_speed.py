"""Training on one core: images a CPU second of our loop, against a plain PyTorch loop, and as a share of the core's matrix product rate.

    python benchmarks/train_speed.py --root data                # small, resnet9 and resnet18 on CIFAR-10: ten minutes
    python benchmarks/train_speed.py --root data --isa avx512_core_bf16    # as on a processor without AMX; writes train_speed_avx512_core_bf16

Plan: four loops, from the one that is usually written to ours, each adding one thing to the one before.
    plain      DataLoader without workers, torchvision's RandomCrop, RandomHorizontalFlip, ToTensor and Normalize on PIL images, float32, contiguous, SGD
    resident   our `sgd`: pixels in memory as uint8, crops and mirrors a batch at a time, normalised in the network, fused SGD; float32, contiguous
    + layout   the same, channels-last
    ours       the same with bfloat16 autocast: what `train_model` does by default where the hardware multiplies bfloat16
One process, one thread, process CPU time; loops take turns, with two matrix products (bfloat16 and float32) in every round. A ratio is taken within a round; the table has
medians, and the range over rounds. Share of the matrix rate = 3 × forward FLOPs (torch.utils.flop_counter) × images/s / rate of a large bfloat16 product in the same round.
With AMX a core multiplies bfloat16 five to eight times as fast as float32, so that everything that is not a matrix product weighs more than on processors without it; `--isa` shows the difference on
one machine. Work of others on the machine slows loops that wait for memory more than those that compute. Writes docs/results/train_speed.json and .md.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

import expunge
from expunge import Augment, ImageData
from expunge.models import ARCHITECTURES
from expunge.provenance import provenance
from expunge.training import loop
from expunge.training.loop import sgd

BATCH, LR, PAD = 128, 0.01, 4
STEPS = {"small": 20, "resnet_tiny": 10, "resnet9": 2, "resnet18": 2}  # in one turn
EPOCHS = 4  # of our loop in one turn: it is faster, and what a call of `sgd` does once should not count more than in a training
SIZES = (1024, 2048, 4096)  # of the square matrices; the fastest counts
LOOPS = ("plain", "resident", "+ layout", "ours")


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


class Pictures(Dataset):
    """CIFAR-10 as torchvision serves it: a PIL image at a time, transformed."""

    def __init__(self, data: ImageData, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.pixels, self.labels = data.images.permute(0, 2, 3, 1).contiguous().numpy(), data.labels.tolist()
        crop = transforms.RandomCrop(data.shape[-1], padding=PAD)
        self.transform = transforms.Compose(
            [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[position])), self.labels[position]


class Plain:
    """The usual loop. Its network is ours without `Normalize`, which the transform does here."""

    def __init__(self, net: nn.Module, pictures: Pictures) -> None:
        self.net, self.loss = net.train(), nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
        self.loader = DataLoader(pictures, batch_size=BATCH, shuffle=True)

    def __call__(self) -> None:
        running = 0.0
        for images, labels in self.loader:
            self.optimizer.zero_grad()
            loss = self.loss(self.net(images), labels)
            loss.backward()
            self.optimizer.step()
            running += loss.item()


@contextlib.contextmanager
def contiguous(model: nn.Module, images: torch.Tensor) -> Iterator[torch.memory_format]:
    """In place of `fast_layout`, for the row without it."""
    yield torch.contiguous_format


def loops(name: str, data: ImageData) -> dict[str, tuple[Callable[[], object], int]]:
    """What takes turns, and how many images a call trains on; weights go on from the last call."""
    build = expunge.architecture(name, data)

    def ours(precision: str, epochs: int = 1, layout: Callable = loop.fast_layout) -> tuple[Callable[[], None], int]:
        model = build()

        def turn() -> None:
            with mock.patch.object(loop, "fast_layout", layout):
                sgd(model, data, epochs=epochs, lr=LR, batch_size=BATCH, precision=precision, seed=0)

        return turn, epochs * len(data)

    net = ARCHITECTURES[name](build.n_classes, build.shape[0], build.shape)
    plain = Plain(net, Pictures(data, build.mean, build.std)), len(data)
    return dict(zip(LOOPS, [plain, ours("float32", layout=contiguous), ours("float32"), ours("auto", EPOCHS)], strict=True))


def matmul_rate(size: int, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two square matrices, over half a second."""
    a, b = torch.randn(2, size, size).to(dtype)
    out, n, spent = torch.empty_like(a), 0, 0.0
    torch.mm(a, b, out=out)
    while spent < 0.5:
        spent += cpu_seconds(lambda: torch.mm(a, b, out=out))
        n += 1
    return 2 * size**3 * n / spent


def forward_flops(name: str, data: ImageData) -> int:
    """FLOPs of a forward pass for one image; a multiplication with an addition is two."""
    model = expunge.architecture(name, data)().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *data.shape))
    return counter.get_total_flops()


def measure(name: str, full: ImageData, rounds: int) -> dict:
    """Images a second of every loop in every round, and what follows from them."""
    n = STEPS[name] * BATCH
    train = ImageData(full.images[:n], full.labels[:n], full.classes, Augment(PAD, True))
    turns = loops(name, train)
    for work, _ in turns.values():  # the first steps choose kernels and fill caches
        work()
    speed: dict[str, list[float]] = {turn: [] for turn in turns}
    rates: dict[str, list[float]] = {"bfloat16": [], "float32": []}
    for _ in range(rounds):
        for dtype, found in rates.items():
            found.append(max(matmul_rate(size, getattr(torch, dtype)) for size in SIZES))
        for turn, (work, images) in turns.items():
            speed[turn].append(images / cpu_seconds(work))
    flops = forward_flops(name, train)
    return {
        "images_per_turn": n, "forward_flops": flops, "images_per_second": speed, "matmul_flops_per_second": rates,
        "ratio": {turn: [a / b for a, b in zip(speed[turn], speed["plain"], strict=True)] for turn in turns},
        "share": [3 * flops * s / rate for s, rate in zip(speed["ours"], rates["bfloat16"], strict=True)],
    }  # fmt: skip


def spread(values: list[float], form: str = ".3g") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(head: str, rows: list[list[str]]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def markdown(record: dict) -> str:
    speeds, shares = [], []
    for name, r in record["nets"].items():
        speeds += [[name, turn, spread(speed, ",.0f"), spread(r["ratio"][turn])] for turn, speed in r["images_per_second"].items()]
        done = [3 * r["forward_flops"] * speed / 1e12 for speed in r["images_per_second"]["ours"]]
        rates = [spread([rate / 1e12 for rate in r["matmul_flops_per_second"][dtype]]) for dtype in ("bfloat16", "float32")]
        shares.append([name, f"{r['forward_flops'] / 1e9:.3g}", spread(done), *rates, spread([100 * share for share in r["share"]])])
    v = record["versions"]
    about = f"`{record['command']}`: {v['hardware']}, torch {v['torch']}, one thread, batch {BATCH}, median (range) of {record['rounds']} rounds."
    return "\n\n".join(
        [
            "# Training on one core", about,
            table("| network | loop | images a CPU second | times plain |", speeds),
            table("| network | GFLOP forward | TFLOP/s of our loop | of a bfloat16 product | of a float32 product | share of the bfloat16 rate, % |", shares) + "\n",
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data")
    parser.add_argument("--nets", nargs="+", choices=list(STEPS), default=["small", "resnet9", "resnet18"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--isa", help="largest instruction set that oneDNN may use, such as avx512_core_bf16 (no AMX); default: what there is"
    )
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    options = parser.parse_args()
    if options.isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = options.isa  # read at the first operation
    torch.set_num_threads(1)
    torch.manual_seed(0)
    full = expunge.load_data("cifar10", root=options.root, download=False).train
    record = {
        "command": "python benchmarks/train_speed.py" + (f" --isa {options.isa}" if options.isa else ""), "plan": __doc__.split("Plan: ")[1].strip(), "versions": provenance(),
        "platform": platform.platform(), "rounds": options.rounds, "batch_size": BATCH, "matrix_sizes": SIZES, "nets": {},
    }  # fmt: skip
    for name in options.nets:
        record["nets"][name] = measure(name, full, options.rounds)
        print(name, {k: spread(v) for k, v in record["nets"][name]["ratio"].items()}, spread(record["nets"][name]["share"]), flush=True)
    name = "train_speed" + (f"_{options.isa}" if options.isa else "")
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / f"{name}.md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
