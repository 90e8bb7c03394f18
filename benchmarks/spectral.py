"""Singular values and clipping, measured: how exact, how fast, how well the bound holds.

    python benchmarks/spectral.py --stage error                      # PowerQR, with and without memory, against exact SVD over products
    python benchmarks/spectral.py --stage time                       # all layers of ResNet-18: ours, power iteration layer by layer, FFT + SVD
    python benchmarks/spectral.py --stage overhead --root data       # training steps of ResNet-18, batch 128, with and without clipping, in turn
    python benchmarks/spectral.py --stage hold --root data           # σ₁ through training, with clipping and without (CIFAR-10)
    python benchmarks/spectral.py --stage composition --root data    # conv ∘ BatchNorm clipped together on MNIST, beside apart and not at all

One thread, CPU seconds. Each stage writes docs/results/spectral_<stage>.json and .md.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import statistics
import time

import torch
from torch import Tensor, nn

import expunge
from expunge import Architecture, Augment, Clip, Recipe, spectrum
from expunge.provenance import provenance
from expunge.spectral.control import SpectralControl
from expunge.spectral.layers import affine_layers, grouped
from expunge.spectral.linear_maps import LinearMaps
from expunge.spectral.power_qr import power_qr
from expunge.spectral.values import random_block, singular_values_of, top
from expunge.training.recipe import train_model

SHAPE = (3, 32, 32)
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)


def cpu_seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def convolutions(model: nn.Module) -> list:
    return [layer for layer in affine_layers(model, SHAPE) if any(p.ndim > 1 for p in layer.module.parameters())]


# How exact


def papers_power_qr(maps: LinearMaps, start: Tensor, counts: tuple[int, ...]) -> dict[int, float]:
    """The paper's iteration: Y = X + AᵀAX, QR, σ = √(|R₁₁| − 1), without the authors' sign error."""

    def gram(x: Tensor) -> Tensor:
        return maps.gram(x.mT.unflatten(2, maps.input_shape)).flatten(2).mT

    x, found = torch.linalg.qr(start.mT).Q, {}
    for count in range(1, max(counts) + 1):
        x, r = torch.linalg.qr(x + gram(x))
        if count in counts:
            found[count] = (r[0, 0, 0].abs() - 1).clamp(min=0).sqrt().item()
    return found


def error(options) -> tuple[dict, str]:
    """Relative error of σ₁ over products with AᵀA, median and worst over layers and starts, against the SVD of the explicit matrix."""
    torch.manual_seed(0)
    trained = trained_network(options, None)
    layers = {
        "3→16 at 32×32, trained": (trained[1].conv1, SHAPE),
        "16→16 at 8×8, trained": (trained[1].layer1[0].conv1, (16, 8, 8)),
        "32→32 at 8×8, trained": (trained[1].layer2[0].conv2, (32, 8, 8)),
        "64→64 at 8×8, stride 2, random": (nn.Conv2d(64, 64, 3, 2, padding=1), (64, 8, 8)),
        "64→64 at 6×6, reflected, random": (nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"), (64, 6, 6)),
    }
    methods = {"PowerQR (paper)": None, "PowerQR, Rayleigh": 1, "with memory (ours)": 16}
    errors: dict[str, dict[int, list[float]]] = {name: {count: [] for count in COUNTS} for name in methods}
    for layer, shape in layers.values():
        maps = LinearMaps([layer.double()], shape)
        eye = torch.eye(maps.n_inputs, dtype=torch.float64).reshape(1, -1, *shape)
        exact = torch.linalg.eigvalsh(torch.cat([maps.gram(part) for part in eye.split(256, 1)], 1).flatten(2)[0])[-1].sqrt().item()
        for seed in range(5):
            start = random_block(maps, 1, seed)
            for count, value in papers_power_qr(maps, start, COUNTS).items():
                errors["PowerQR (paper)"][count].append(abs(value / exact - 1))
            for name, memory in methods.items():
                for count in COUNTS if memory else ():
                    gram = lambda x, maps=maps: maps.gram(x.unflatten(2, maps.input_shape)).flatten(2)  # noqa: E731
                    found = power_qr(gram, start, wanted=1, memory=memory, products=count)
                    errors[name][count].append(abs(found.values[0, 0].item() / exact - 1))
    head = "| products | " + " | ".join(f"{name}: median (worst)" for name in methods) + " |\n" + "|---" * (1 + len(methods)) + "|\n"
    rows = "\n".join(
        f"| {count} | " + " | ".join(f"{statistics.median(errors[n][count]):.1e} ({max(errors[n][count]):.1e})" for n in methods) + " |"
        for count in COUNTS
    )
    return {"layers": list(layers), "starts": 5, "errors": errors}, f"Relative error of σ₁, five layers × five starts:\n\n{head}{rows}\n"


# How fast


def fft_svd(layers: list) -> None:
    """Sedghi et al.: for each frequency of the padded kernel the singular values of a matrix (C_out, C_in); exact for circular padding and stride 1."""
    for layer in layers:
        weight = layer.module.weight.detach()
        if weight.ndim == 2:
            torch.linalg.svdvals(weight)
            continue
        spectrum_of = torch.fft.rfft2(weight, s=layer.input_shape[1:])
        torch.linalg.svdvals(spectrum_of.permute(2, 3, 0, 1))


def one_by_one(layers: list, tolerance: float) -> int:
    """Power iteration layer by layer until the value moves by less than the tolerance in ten products; counts products."""
    total = 0
    for layer in layers:
        maps, x, before = LinearMaps([layer.module], layer.input_shape), None, 0.0
        x = random_block(maps, 1).unflatten(2, maps.input_shape)
        for count in range(1, 1001):
            y = maps.gram(x / x.norm())
            x, total = y, total + 1
            value = y.norm().sqrt().item()
            if count % 10 == 0:
                if abs(value - before) < tolerance * value:
                    break
                before = value
    return total


def time_(options) -> tuple[dict, str]:
    torch.manual_seed(0)
    layers = convolutions(Architecture("resnet18", 10, SHAPE, (0.5,) * 3, (0.25,) * 3)().eval())
    groups = [([layer.module for layer in group], group[0].input_shape) for group in grouped(layers)]
    works = {
        "ours, 20 products (error 9e-4, by the table of errors)": lambda: [
            singular_values_of(*group, 1, max_iterations=20) for group in groups
        ],
        "ours, half widths ≤ 1e-2": lambda: [singular_values_of(*group, 1, tolerance=1e-2) for group in groups],
        "ours, half widths ≤ 1e-3": lambda: [singular_values_of(*group, 1, tolerance=1e-3) for group in groups],
        "ours, one layer at a time, ≤ 1e-3": lambda: [
            singular_values_of([m], shape, 1, tolerance=1e-3) for modules, shape in groups for m in modules
        ],
        "power iteration, one by one, change in 10 products ≤ 1e-3": lambda: one_by_one(layers, 1e-3),
        "PowerQR (paper), 100 products, one by one (error 3e-3)": lambda: [
            papers_power_qr(maps, random_block(maps, 1), (100,))
            for maps in (LinearMaps([layer.module], layer.input_shape) for layer in layers)
        ],
        "FFT and SVD (circular padding, stride 1)": lambda: fft_svd(layers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.repeats):
        for name, work in works.items():
            seconds[name].append(cpu_seconds(work))
            print(name, round(seconds[name][-1], 2), flush=True)
    rows = "\n".join(f"| {name} | {statistics.median(s):.2f} | {min(s):.2f} to {max(s):.2f} |" for name, s in seconds.items())
    return (
        {"layers": len(layers), "seconds": seconds},
        f"All {len(layers)} convolutions and linear layers of ResNet-18 at 32×32:\n\n| way | CPU s, median | range |\n|---|---|---|\n{rows}\n",
    )


def overhead(options) -> tuple[dict, str]:
    """CPU seconds of training steps of ResNet-18 at batch 128, and of the clips between them, in one run; without the clips at steps 1, 2, 4, … at its very start."""
    rows, record, act = [], {}, Clip.act
    full, _ = cifar(options, 50_000)
    for every, dtype in ((10, torch.bfloat16), (20, torch.bfloat16), (50, torch.bfloat16), (50, torch.float32)):
        torch.manual_seed(0)
        model = Architecture("resnet18", 10, SHAPE, (0.5,) * 3, (0.25,) * 3)().train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        start = cpu_seconds(lambda: Clip(every=every).attach(model, optimizer, SHAPE))  # noqa: B023
        clips, n, order = [], max(40, 2 * every), torch.randperm(len(full))

        def step(k: int) -> None:
            batch = order[128 * k : 128 * (k + 1)]  # noqa: B023
            images, labels = full.fetch(batch).contiguous(memory_format=torch.channels_last), full.labels[batch]
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):  # noqa: B023
                loss = nn.functional.cross_entropy(model(images), labels)  # noqa: B023
            optimizer.zero_grad()  # noqa: B023
            loss.backward()
            optimizer.step()  # noqa: B023

        Clip.act = lambda *arguments: clips.append(cpu_seconds(lambda: act(*arguments)))  # noqa: B023
        due, Clip.due = Clip.due, SpectralControl.due
        total = sum(cpu_seconds(lambda: step(k)) for k in range(n))  # noqa: B023
        Clip.act, Clip.due = act, due
        plain, clipping = (total - sum(clips)) / n, sum(clips) / n
        rows.append(
            f"| {str(dtype).removeprefix('torch.')} | {every} | {n} | {plain:.2f} | {clipping:.3f} | **{100 * clipping / plain:.1f} %** | {start:.1f} |"
        )
        record[f"{dtype}, every {every}"] = {"step": plain, "clipping": clipping, "start": start, "clips": clips}
        print(rows[-1], flush=True)
    head = "| precision | clip every | steps | CPU s a step | of clipping a step | overhead | once at the start |\n|---|---|---|---|---|---|---|\n"
    return record, "ResNet-18, batch 128, the first steps on CIFAR-10 at lr 0.1:\n\n" + head + "\n".join(rows) + "\n"


# How well it holds


def cifar(options, n: int):
    full, test = expunge.load_data("cifar10", root=options.root, augment=Augment(flip=True), download=False)
    return dataclasses.replace(full, images=full.images[:n], labels=full.labels[:n]), test


def trained_network(options, control: Clip | None, n: int = 3000, epochs: int = 3) -> nn.Module:
    train, _ = cifar(options, n)
    return train_model(expunge.architecture("resnet_tiny", train), train, Recipe(epochs=epochs, clip=control), device="cpu")


class Watched:
    """Notes the largest singular value of each layer before and after every action of a control, by a measurement that starts anew."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []

    def __enter__(self) -> "Watched":
        self.act = Clip.act

        def act(control: Clip, layers: list, memory: dict) -> None:
            self.before.append(largest(layers) / control.max_norm)
            self.act(control, layers, memory)
            self.after.append(largest(layers) / control.max_norm)

        def largest(layers: list) -> float:
            maps = LinearMaps([layer.module for layer in layers], layers[0].input_shape)
            return top(maps, random_block(maps, 2, seed=9), tolerance=2e-3).values[:, 0].max().item()

        Clip.act = act
        return self

    def __exit__(self, *rest: object) -> None:
        Clip.act = self.act


def hold(options) -> tuple[dict, str]:
    """Training on CIFAR-10 with and without clipping: σ₁ before and after every clip and at the end, and accuracies."""
    train, test = cifar(options, 5000)
    few, rows, record = test.subset(range(0, len(test), 4)), [], {}
    for name, control in {
        "none": None, "2": Clip(max_norm=2.0, every=10), "1": Clip(every=10), "0.5": Clip(max_norm=0.5, every=10), "0.5, every 50": Clip(max_norm=0.5),
        "2, composed": Clip(max_norm=2.0, every=10, batchnorm="composed"), "1, composed": Clip(every=10, batchnorm="composed"),
    }.items():  # fmt: skip
        with Watched() as watched:
            model = train_model(expunge.architecture("resnet_tiny", train), train, Recipe(epochs=8, clip=control), device="cpu")
        groups = len(grouped(control.layers(model, SHAPE))) if control else 1
        before, clips = ([max(noted[k : k + groups]) for k in range(0, len(noted), groups)] for noted in (watched.before, watched.after))
        steps = [step for step in range(1, 8 * -(-len(train) // 128) + 1) if control and control.due(step)]
        first = sum(step <= len(train) // 128 for step in steps)  # clips of the first epoch
        found = spectrum(model, SHAPE, composed=bool(control and control.batchnorm == "composed"))
        weights = {layer.name for layer in (control or Clip()).layers(model, SHAPE)}
        largest = max(v for layer, v in found.norms.items() if layer in weights)
        accuracy = [float((expunge.logits_of(model, d).argmax(1) == d.labels).double().mean()) for d in (train, few)]
        record[name] = {
            "steps": steps,
            "before": before,
            "clips": clips,
            "norms": found.norms,
            "bound": found.bound.value,
            "accuracy": accuracy,
        }
        worst = [f"{max(noted[first:]):.3f} c" if noted else "–" for noted in (clips, before)]
        rows.append(
            f"| {name} | {worst[0]} | {worst[1]} | {largest:.3f} | {found.bound.value:.3g} | {100 * accuracy[0]:.1f} | {100 * accuracy[1]:.1f} |"
        )
        print(rows[-1], flush=True)
    head = "| clip | largest σ₁ right after a clip, from the second epoch | right before | largest σ₁ at the end | Lipschitz bound of the network | train acc. | test acc. |\n|---|---|---|---|---|---|---|\n"
    return record, "resnet_tiny, 5,000 images, 8 epochs, lr 0.1, one seed:\n\n" + head + "\n".join(rows) + "\n"


class Toy(nn.Sequential):
    """The authors' toy: a 3×3 convolution with reflected padding, 64 channels, here with BatchNorm; and a dense layer."""

    def __init__(self) -> None:
        conv = nn.Conv2d(1, 64, 3, padding=1, padding_mode="reflect")
        super().__init__(conv, nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 28 * 28, 10))


def composition(options) -> tuple[dict, str]:
    train, test = expunge.load_data("mnist", root=options.root, augment=Augment(), download=False)
    train = dataclasses.replace(train, images=train.images[:5_000], labels=train.labels[:5_000])
    record, rows = {}, []
    for name, control in {"none": None, "1, apart": Clip(), "1, composed": Clip(batchnorm="composed")}.items():
        accuracies, norms = [], []
        for seed in range(3):
            model = train_model(Toy, train, Recipe(epochs=8, lr=0.02, clip=control), seed=seed, device="cpu")
            accuracies.append(float((expunge.logits_of(model, test).argmax(1) == test.labels).double().mean()))
            norms.append(list(spectrum(model, (1, 28, 28)).norms.values()))
        record[name] = {"accuracy": accuracies, "norms": norms}
        rows.append(
            f"| {name} | {', '.join(f'{100 * a:.2f}' for a in accuracies)} | {', '.join(f'{n[0]:.3f}' for n in norms)} | {', '.join(f'{n[-1]:.3f}' for n in norms)} |"
        )
        print(rows[-1], flush=True)
    head = "| clip | test accuracy, three seeds | σ₁ of conv ∘ BatchNorm | σ₁ of the dense layer |\n|---|---|---|---|\n"
    return record, "MNIST, 5,000 images, 8 epochs:\n\n" + head + "\n".join(rows) + "\n"


STAGES = {"error": error, "time": time_, "overhead": overhead, "hold": hold, "composition": composition}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--root", default="data")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    record, text = STAGES[options.stage](options)
    about = {"stage": options.stage, "versions": provenance(), "platform": platform.platform()}
    (options.out / f"spectral_{options.stage}.json").write_text(json.dumps(about | {"record": record}, indent=1) + "\n")
    (options.out / f"spectral_{options.stage}.md").write_text(f"# Spectra: {options.stage}\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
