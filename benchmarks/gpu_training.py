"""How fast models are trained on one GPU: images/s of a step by how it is started, laid out and rounded; by how many models train side by side; and what 128 reference models take.

    for part in machine start layout together augment references; do python benchmarks/gpu_training.py --part $part; done      # each below ten minutes
    python benchmarks/gpu_training.py --part all --tiny --device cpu --out /tmp                                                # does every line run? says nothing about speed

Parts:
    machine      rate of a large bfloat16 matrix product, bytes/s of a copy: what shares refer to
    start        operation by operation (eager), recorded once and replayed (captured: what the library does), torch.compile, torch.compile with its own CUDA graphs
    layout       bfloat16 or TF32, channels-last or not; with cuDNN's search for the fastest algorithm
    together     1, 2, 4, … models side by side, each with a stream and recordings of its own; what `choose_together` says
    augment      crops and mirrors of resident uint8 images: the library's gather, one window at a time over the whole set (as airbench), and image by image
    references   scoring, and hours for 128 ResNet-18 on 30,000 images: 161 epochs in batches of 128, and a fast recipe; from what `together` measured
Images are random: speed does not depend on what they show. Rates are medians of rounds within one process; share = 3 × forward FLOPs × images/s / the measured matrix product rate.
Every part adds its results to docs/results/gpu_training.json.
"""

import argparse
import contextlib
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import expunge
from expunge.data.augment import changed, draw
from expunge.data.images import Augment, ImageData
from expunge.data.mixture import Mixture
from expunge.provenance import provenance
from expunge.training import captured, loop
from expunge.training.captured import own_stream
from expunge.training.how_many import choose_together, measure_rate
from expunge.training.inference import logits_of
from expunge.training.loop import prepared, steps
from expunge.training.objectives import cross_entropy
from expunge.training.recipe import Recipe

SETTINGS = dict(lr=1e-9, momentum=0.9, weight_decay=5e-4, nesterov=False)
REFERENCES = {"images": 30_000, "models": 128, "epochs": 161, "batch": 128}


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.tiny = torch.device(options.device), options.tiny
        self.seconds = 0.05 if self.tiny else 2.0
        n = 256 if self.tiny else 60_000
        images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        self.data = ImageData(images, torch.arange(n) % 10, tuple("0123456789"), Augment(4, True))
        self.nets = [("small", 32)] if self.tiny else [("resnet18", 128), ("resnet18", 512), ("resnet9", 512), ("small", 128)]
        self.results = pathlib.Path(options.out) / "gpu_training.json"

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self, work: Callable[[], object], n: int, rounds: int = 5) -> float:
        """Units/s of a call that does n of them: the median of several rounds."""
        work()
        rates = []
        for _ in range(rounds):
            self.wait()
            done, start = 0, time.perf_counter()
            while time.perf_counter() - start < self.seconds / rounds:
                work()
                done += n
            self.wait()
            rates.append(done / (time.perf_counter() - start))
        return statistics.median(rates)

    def build(self, net: str) -> Callable[[], nn.Module]:
        return expunge.architecture(net, self.data)

    def saved(self) -> dict:
        return json.loads(self.results.read_text()) if self.results.exists() else {}

    def share(self, net: str, images_per_second: float) -> float | None:
        peak = self.saved().get("machine", {}).get("matmul_bfloat16")
        return None if peak is None else 3 * flops(self.build(net)()) * images_per_second / peak


def flops(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def machine(bench: Bench) -> dict:
    n = 256 if bench.tiny else 8192
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
        found[f"matmul_{str(dtype)[6:]}"] = bench.rate(functools.partial(torch.mm, a, b), 2 * n**3)
    block = torch.empty(2**20 if bench.tiny else 2**32, device=bench.device, dtype=torch.uint8)
    other = torch.empty_like(block)
    return found | {"copy_bytes": bench.rate(lambda: other.copy_(block), 2 * block.numel())}


@contextlib.contextmanager
def contiguous(model: nn.Module, images: torch.Tensor) -> Iterator[torch.memory_format]:
    yield torch.contiguous_format


def step_rate(
    bench: Bench, net: str, batch: int, *, start: str = "captured", precision: str = "bfloat16", layout: str = "channels_last"
) -> dict:
    """Images/s of training steps with everything around them, their kernels' memory, and the seconds until the first steps were done."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = time.perf_counter()
    model = bench.build(net)().to(bench.device)
    if start.startswith("compile"):
        model = torch.compile(model, mode="reduce-overhead" if start == "compile_graphs" else "default")
    mixture = Mixture([bench.data], bench.device, seed=0)
    with contextlib.ExitStack() as stack:
        if start != "captured":
            stack.enter_context(mock.patch.object(loop, "recorder", lambda *_: None))
        if layout != "channels_last":
            stack.enter_context(mock.patch.object(loop, "fast_layout", contiguous))
        if precision == "tf32":
            stack.enter_context(mock.patch.object(loop, "exact_float32", tf32))
        stack.enter_context(own_stream(bench.device))
        asked = "float32" if precision == "tf32" else precision
        step = stack.enter_context(prepared(model, mixture, cross_entropy, precision=asked, **SETTINGS))
        course = steps(step, epochs=10**6, lr=1e-9, batch_size=batch)
        for _ in range(3 if bench.tiny else 2 * captured.WARM_UP + 8):
            next(course)
        bench.wait()
        ready = time.perf_counter() - first
        rate = bench.rate(lambda: next(course), batch)
        course.close()
    memory = torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else None
    return {"images_per_second": rate, "share": bench.share(net, rate), "ready_after_seconds": ready, "memory": memory}


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    parts = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "tf32"
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


def tried(measure: Callable[[], dict]) -> dict:
    """What was measured, or why it was not: a net that torch.compile cannot compile is a result too."""
    try:
        return measure()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}


def start(bench: Bench) -> dict:
    kinds = ["eager", "captured", *([] if bench.tiny else ["compile", "compile_graphs"])]
    return {f"{net}/{batch} {kind}": tried(lambda: step_rate(bench, net, batch, start=kind)) for net, batch in bench.nets for kind in kinds}  # noqa: B023


def layout(bench: Bench) -> dict:
    found = {}
    for net, batch in bench.nets[:3]:
        for precision in ("bfloat16", "tf32", "float32"):
            for order in ("channels_last", "contiguous"):
                found[f"{net}/{batch} {precision} {order}"] = tried(
                    lambda: step_rate(bench, net, batch, precision=precision, layout=order)  # noqa: B023
                )
        torch.backends.cudnn.benchmark = True
        found[f"{net}/{batch} bfloat16 channels_last searched"] = tried(lambda: step_rate(bench, net, batch))  # noqa: B023
        torch.backends.cudnn.benchmark = False
    return found


def together(bench: Bench) -> dict:
    found = {}
    for net, batch in bench.nets:
        recipe, n, limit = Recipe(batch_size=batch), 1, 2 if bench.tiny else 32 if net == "small" else 8
        while n <= limit:
            outcome = tried(lambda: rate_of(bench, net, recipe, n))  # noqa: B023
            found[f"{net}/{batch} × {n}"] = outcome
            n = limit + 1 if "error" in outcome else 2 * n
        found[f"{net}/{batch} choice"] = str(choose_together(bench.build(net), bench.data, recipe, device=bench.device))
    return found


def rate_of(bench: Bench, net: str, recipe: Recipe, n: int) -> dict:
    rate = measure_rate(bench.build(net), bench.data, recipe, n, device=bench.device, seconds=bench.seconds)
    return {"images_per_second": rate, "share": bench.share(net, rate)}


def augment(bench: Bench) -> dict:
    pixels, found = bench.data.images.to(bench.device), {}
    for batch in (64,) if bench.tiny else (128, 1024, 8192):
        ids = torch.arange(batch, device=bench.device)
        numbers = torch.zeros_like(ids)
        drawn = draw(ids, bench.data.augment, 0, numbers)
        found[f"draw {batch}"] = bench.rate(functools.partial(draw, ids, bench.data.augment, 0, numbers), batch)
        found[f"gather {batch}"] = bench.rate(lambda: changed(pixels[ids], drawn, bench.data.augment), batch)  # noqa: B023
        found[f"image by image {batch}"] = bench.rate(lambda: image_by_image(pixels[ids], drawn), batch, rounds=1)  # noqa: B023
    found["whole set by masks"] = bench.rate(lambda: by_masks(pixels, 4), len(pixels))
    return found


def by_masks(pixels: torch.Tensor, pad: int) -> torch.Tensor:
    """All windows of one row offset at a time, then of one column offset, for the whole set."""
    n, size = len(pixels), pixels.shape[-1]
    padded, (down, right) = functional.pad(pixels, (pad,) * 4), torch.randint(2 * pad + 1, (2, n), device=pixels.device)
    rows = torch.empty(n, 3, size, size + 2 * pad, dtype=pixels.dtype, device=pixels.device)
    out = torch.empty_like(pixels)
    for k in range(2 * pad + 1):
        rows[down == k] = padded[down == k, :, k : k + size]
    for k in range(2 * pad + 1):
        out[right == k] = rows[right == k, :, :, k : k + size]
    return torch.where(torch.rand(n, 1, 1, 1, device=pixels.device) < 0.5, out, out.flip(-1))


def image_by_image(pixels: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    padded = functional.pad(pixels, (4,) * 4)
    crops = [p[:, y : y + 32, x : x + 32] for p, y, x in zip(padded, *drawn[:2].tolist(), strict=True)]
    return torch.stack([crop.flip(-1) if flip else crop for crop, flip in zip(crops, drawn[2].tolist(), strict=True)])


def references(bench: Bench) -> dict:
    """Seconds for 128 reference models; measured rates times counted images, and so marked."""
    net = bench.nets[0][0]
    model = bench.build(net)().to(bench.device)
    scoring = bench.rate(lambda: logits_of(model, bench.data), len(bench.data), rounds=2)
    best = {}
    for name, value in bench.saved().get("together", {}).items():
        if isinstance(value, dict) and "images_per_second" in value:
            key = name.split(" ")[0]
            best[key] = max(best.get(key, 0), value["images_per_second"])
    of = REFERENCES | ({"images": 128, "models": 2, "epochs": 1, "batch": 32} if bench.tiny else {})
    found = {"scoring_images_per_second": scoring}
    for recipe, key, epochs in (("161 epochs", f"{net}/{of['batch']}", of["epochs"]), ("fast: 10 epochs of resnet9", "resnet9/512", 10)):
        if key in best:
            train, score = of["models"] * epochs * of["images"] / best[key], of["models"] * 2 * 60_000 / scoring
            found[recipe] = {
                "estimated": True,
                "training_seconds": train,
                "scoring_seconds_two_views": score,
                "images_per_second": best[key],
            }
    return found


PARTS = {f.__name__: f for f in (machine, start, layout, together, augment, references)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", default="docs/results")
    options = parser.parse_args()
    for part in PARTS if options.part == "all" else [options.part]:
        bench, begun = Bench(options), time.perf_counter()
        found = PARTS[part](bench)
        about = {"versions": provenance(), "seconds": round(time.perf_counter() - begun, 1), "tiny": options.tiny, "device": options.device}
        results = bench.saved() | {part: found | {"about": about}}
        bench.results.parent.mkdir(parents=True, exist_ok=True)
        bench.results.write_text(json.dumps(results, indent=1) + "\n")
        print(part, json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
