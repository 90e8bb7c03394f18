"""Crops and mirrors of CIFAR images on one core: images a CPU second of `augmented`, and of other ways to do the same.

    python benchmarks/augment_speed.py --root data              # a minute

Plan: batches of 128 (a training step) and of 1,024 random CIFAR-10 images, uint8; zeros of 4 pixels at every side, a random window, a mirror with probability ½.
    ours                    `expunge.data.augment.augmented`
    ours, whole batches     what the training loop gets: drawn, gathered from the set, changed, made float32, with labels; an epoch of 8,192 images
    strided windows         one index into a view of all windows, then the mirrored images written back
    flat gather             one index for each pixel, the mirror folded into it
    NumPy windows           one index into `sliding_window_view`, which copies a row at a time
    slices                  a loop over images, each sliced and mirrored
    torchvision, PIL        RandomCrop and RandomHorizontalFlip, image by image, on PIL images that exist already
    torchvision v2          the same on uint8 tensors
All but torchvision's take their offsets from the same draws, whose time counts, and must agree bit for bit. One process, one thread, CPU time; they take turns; median and range over
rounds. Writes docs/results/augment_speed.json and .md.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision import transforms
from torchvision.transforms import v2

import expunge
from expunge import Augment, ImageData
from expunge.data.augment import FLIP, SHIFT_X, SHIFT_Y, augmented
from expunge.data.mixture import Mixture
from expunge.provenance import provenance
from expunge.rng import uniform

PAD, AUGMENT = 4, Augment(4, True)
SEED, EPOCH = 0, 1
BATCHES = (128, 1024)


def offsets(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First row and column of each window in the padded image, and whether the window is mirrored."""
    down, right = (uniform(SEED, purpose, EPOCH, ids=ids, high=2 * PAD + 1) for purpose in (SHIFT_Y, SHIFT_X))
    return down, right, uniform(SEED, FLIP, EPOCH, ids=ids, high=2).bool()


def padded(pixels: Tensor) -> Tensor:
    return functional.pad(pixels, (PAD,) * 4)


def strided_windows(pixels: Tensor, ids: Tensor) -> Tensor:
    (down, right, mirror), (height, width) = offsets(ids), pixels.shape[-2:]
    windows = padded(pixels).unfold(2, height, 1).unfold(3, width, 1)
    pixels = windows[torch.arange(len(pixels)), :, down, right]
    return pixels.index_put((mirror,), pixels[mirror].flip(-1))


def flat_gather(pixels: Tensor, ids: Tensor) -> Tensor:
    (down, right, mirror), (n, channels, height, width) = offsets(ids), pixels.shape
    source = padded(pixels)
    columns = torch.where(mirror[:, None], torch.arange(width - 1, -1, -1), torch.arange(width)) + right[:, None]
    rows = torch.arange(height) + down[:, None]
    planes = torch.arange(n)[:, None] * channels + torch.arange(channels)
    tall, wide = source.shape[-2:]
    index = (planes[:, :, None, None] * tall + rows[:, None, :, None]) * wide + columns[:, None, None, :]
    return source.flatten()[index]


def numpy_windows(pixels: Tensor, ids: Tensor) -> Tensor:
    (down, right, mirror), size = (values.numpy() for values in offsets(ids)), pixels.shape[-2:]
    windows = sliding_window_view(padded(pixels).numpy(), size, axis=(2, 3))
    out = windows[range(len(pixels)), :, down, right]
    out[mirror] = out[mirror][..., ::-1]
    return torch.from_numpy(out)


def slices(pixels: Tensor, ids: Tensor) -> Tensor:
    (down, right, mirror), (height, width) = (values.tolist() for values in offsets(ids)), pixels.shape[-2:]
    windows = (image[:, y : y + height, x : x + width] for image, y, x in zip(padded(pixels), down, right, strict=True))
    return torch.stack([window.flip(-1) if mirrored else window for window, mirrored in zip(windows, mirror, strict=True)])


SAME = {"strided windows": strided_windows, "flat gather": flat_gather, "NumPy windows": numpy_windows, "slices": slices}


def alternatives(data: ImageData, ids: Tensor) -> dict[str, Callable[[], object]]:
    """What takes turns, each on the images with these ids."""
    pixels, size = data.images[ids], data.shape[-1]
    pictures, tensors = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels], list(pixels)
    old = transforms.Compose([transforms.RandomCrop(size, padding=PAD), transforms.RandomHorizontalFlip()])
    new = v2.Compose([v2.RandomCrop(size, padding=PAD), v2.RandomHorizontalFlip()])
    ours = augmented(pixels, ids, AUGMENT, SEED, EPOCH)
    for name, way in SAME.items():
        assert torch.equal(way(pixels, ids), ours), f"{name} and ours differ"
    return {
        "ours": lambda: augmented(pixels, ids, AUGMENT, SEED, EPOCH),
        **{name: lambda way=way: way(pixels, ids) for name, way in SAME.items()},
        "torchvision, PIL": lambda: [old(picture) for picture in pictures],
        "torchvision v2": lambda: [new(tensor) for tensor in tensors],
    }


def whole_batches(data: ImageData, order: Tensor, batch: int) -> None:
    mixture = Mixture([data], torch.device("cpu"), seed=SEED)
    for _ in mixture.epoch(order.split(batch), EPOCH):
        pass


def rate(work: Callable[[], object], n: int) -> float:
    """Images a CPU second, where one call does n; at least two calls and 30 ms."""
    repeats, start = 0, time.process_time()
    while repeats < 2 or time.process_time() - start < 0.03:
        work()
        repeats += 1
    return repeats * n / (time.process_time() - start)


def measure(data: ImageData, batch: int, rounds: int) -> dict[str, list[float]]:
    """Images a CPU second of every way, in every round; other images in each."""
    found: dict[str, list[float]] = {}
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(SEED))
    for ids in [order[:batch], *order.split(batch)[:rounds]]:  # the first one fills caches
        for name, way in alternatives(data, ids).items():
            found.setdefault(name, []).append(rate(way, batch))
        found.setdefault("ours, whole batches", []).append(rate(lambda: whole_batches(data, order[:8192], batch), 8192))
    return {name: values[1:] for name, values in found.items()}


def markdown(record: dict) -> str:
    head = (f"batches of {batch:,}, images a CPU second | ours is faster by" for batch in BATCHES)
    lines = [f"| way | {' | '.join(head)} |", "|---" * 5 + "|"]
    for name in record["images_per_second"][str(BATCHES[0])]:
        cells = [name]
        for batch in BATCHES:
            found = record["images_per_second"][str(batch)]
            ratio = statistics.median(a / b for a, b in zip(found["ours"], found[name], strict=True))
            cells += [f"{statistics.median(found[name]):,.0f} ({min(found[name]):,.0f} to {max(found[name]):,.0f})", f"{ratio:.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    about = f"`{record['command']}`: {record['versions']['hardware']}, torch {record['versions']['torch']}, one thread, median (range) of {record['rounds']} rounds."
    same = f"Ours and {', '.join(SAME)} give the same bits."
    return "\n".join(["# Crops and mirrors of CIFAR images on one core", "", f"{about} {same}", "", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = expunge.load_data("cifar10", root=options.root, augment=AUGMENT, download=False).train
    record = {
        "command": "python benchmarks/augment_speed.py", "plan": __doc__.split("Plan: ")[1].strip(), "versions": provenance(),
        "platform": platform.platform(), "rounds": options.rounds, "seed": SEED,
        "images_per_second": {str(batch): measure(data, batch, options.rounds) for batch in BATCHES},
    }  # fmt: skip
    (options.out / "augment_speed.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "augment_speed.md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
