"""Fleets: what a second worker brings, and what store and executor cost, for models of about thirty seconds.

    python benchmarks/fleet_scaling.py                                     # 20 minutes on two quiet cores
    python benchmarks/fleet_scaling.py --executors serial pool             # without Ray and submitit: 14 minutes

Plan. Scaling: the same models by one worker (in this process) and by two (the pool), in turns, so that a busy hour hits both. Wall time runs from the call
until the last result is in the store, without the time until all workers have trained a moment; that is a number of its own, because a fleet pays it once. Beside it the speed-up by CPU time, 2 × CPU seconds a model with one worker / with two:
what the cores would do if nobody else used them, and less than 2 where the workers wait for one memory.
Overhead: a fleet with one worker, so that nothing overlaps. Of its wall time, what is not spent on training and scoring (which each result notes) goes to specs, pickles, claims, checksums,
writing to the disk, and the way to the worker and back. Both are from one run, so that neighbours slow them alike.
The images are random: speed does not depend on what they show. Writes docs/results/fleet_scaling.json and .md.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import expunge
from expunge import Augment, ImageData, Recipe
from expunge.progress import listen
from expunge.provenance import provenance
from expunge.training.executors import Launcher, ProcessPool, Ray, Serial, Slurm
from expunge.training.executors.processes import process_pool
from expunge.training.fleet import TrainTask, train_fleet

TITLES = {"serial": "none: this process", "pool": "process pool", "ray": "Ray, new cluster here", "slurm": "submitit, jobs here"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metered(Launcher):
    """Starts all workers of another launcher before the first call, and has each call note its CPU and wall seconds in a file."""

    name = "metered"
    inner: Launcher
    log: pathlib.Path

    def launch(self, shared: tuple, *, tasks: Any, workers: Any, **options: Any) -> Any:
        start = time.perf_counter()
        # These functions are sent too: a pool then knows that its processes must import this script.
        executor = self.inner.launch(shared, tasks=[*tasks, warm_up, metered], workers=workers, **options)
        wait_for(executor, workers, tasks[0])
        note(self.log, {"start": time.perf_counter() - start})
        submit = executor.submit
        executor.submit = lambda fn, *args: submit(metered, self.log, fn, *args)
        return executor


def wait_for(executor: Any, workers: int, item: Any) -> None:
    """Returns when so many different workers have trained for a moment: a process pays once for memory and kernels."""
    pids: set[int] = set()
    while len(pids) < workers:
        pids |= {future.result() for future in [executor.submit(warm_up, item) for _ in range(workers)]}


def warm_up(pool: ImageData, item: Any) -> int:
    with listen(lambda _: None):  # no part of the fleet's progress
        expunge.train_model(item.task.build, pool.subset(range(256)), dataclasses.replace(item.task.recipe, epochs=2), device="cpu")
    time.sleep(0.2)  # so that one worker does not answer for both
    return os.getpid()


def metered(pool: ImageData, log: pathlib.Path, fn: Any, *args: Any) -> Any:
    cpu, wall = time.process_time(), time.perf_counter()
    value = fn(pool, *args)
    note(log, {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall})
    return value


def note(log: pathlib.Path, row: dict[str, float]) -> None:
    with open(log, "a") as file:  # one short write: lines of several processes do not mix
        file.write(json.dumps(row) + "\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneProcess(Launcher):
    """A pool of one process; `ProcessPool` calls in this process where one worker is asked for."""

    name = "one"

    def launch(self, shared: tuple, *, tasks: Any, listener: Any = None, **options: Any) -> Any:
        return process_pool(1, shared, listener, tasks=tasks)


LAUNCHERS = {"serial": Serial(), "pool": OneProcess(), "ray": Ray(), "slurm": Slurm(cluster="local")}


def images(n: int) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageData(pixels, torch.randint(0, 10, (n,), generator=generator), tuple("abcdefghij"), Augment(pad=4, flip=True))


def fleet(launcher: Launcher, tasks: list[TrainTask], pool: ImageData, workers: int) -> dict[str, Any]:
    """One fleet on a store of its own: its seconds, and those of its models."""
    with tempfile.TemporaryDirectory() as folder:
        log, load = pathlib.Path(folder, "log"), os.getloadavg()[0]
        begun = time.time()
        cells = train_fleet(
            tasks, pool, pathlib.Path(folder, "runs"), executor=Metered(inner=launcher, log=log), workers=workers, device="cpu"
        )
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        calls = [row for row in rows if "cpu" in row]
        start = next(row["start"] for row in rows if "start" in row)
        ended = max(cell.folder.joinpath("result.json").stat().st_mtime for cell in cells)  # leaving a cluster is no work
        return {
            "workers": workers,
            "start": start,
            "wall": ended - begun - start,
            "work": sum(cell.result()["seconds"] for cell in cells),
            "cpu_a_model": statistics.median(row["cpu"] for row in calls),
            "cpu_share": sum(row["cpu"] for row in calls) / sum(row["wall"] for row in calls),
            "load": [load, os.getloadavg()[0]],
        }


def recipe_of(build: Any, pool: ImageData, seconds: float) -> Recipe:
    """As many epochs as take so long here."""
    times = []
    for _ in range(2):  # the first one pays for memory and kernels
        start = time.process_time()
        expunge.train_model(build, pool, Recipe(epochs=1), device="cpu")
        times.append(time.process_time() - start)
    return Recipe(epochs=max(1, round(seconds / times[-1])))


def scaling(tasks: list[TrainTask], pool: ImageData, rounds: int) -> dict[str, Any]:
    runs = []
    for _ in range(rounds):
        for workers, launcher in ((1, Serial()), (2, ProcessPool())):
            runs.append(fleet(launcher, tasks, pool, workers))
            print(runs[-1], file=sys.stderr, flush=True)
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    wall = [one["wall"] / two["wall"] for one, two in pairs]
    cpu = [2 * one["cpu_a_model"] / two["cpu_a_model"] for one, two in pairs]
    return {"runs": runs, "wall": spread(wall), "cpu": spread(cpu)}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def overhead(names: list[str], tasks: list[TrainTask], pool: ImageData) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        run = fleet(LAUNCHERS[name], tasks, pool, 1)
        rows.append(
            {"executor": name, "overhead": run["wall"] / run["work"] - 1, "seconds_a_model": (run["wall"] - run["work"]) / len(tasks)} | run
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def table(record: dict[str, Any]) -> str:
    scale, settings = record["scaling"], record["settings"]
    lines = [
        "# Fleets: a second worker, and what store and executor cost",
        "",
        f"`{record['command']}`: {settings['tasks']} models, {settings['arch']}, {settings['images']} random images of CIFAR-10's size, {settings['epochs']} epochs, "
        f"one thread a worker. {record['machine']['hardware']}, {record['machine']['cores']} cores, torch {record['machine']['torch']}, {record['machine']['date'][:10]}.",
        "",
        "| | times as fast with two workers as with one (median of rounds, range) |",
        "|---|---|",
        *(
            f"| {title} | **{scale[key]['median']:.2f}** [{scale[key]['low']:.2f}, {scale[key]['high']:.2f}] |"
            for key, title in (("wall", "wall time, workers ready to last result"), ("cpu", "by CPU seconds a model"))
        ),
        "",
        "| workers | wall s | CPU s a model | share of a core that each got | start of the workers, s | load before and after |",
        "|---|---|---|---|---|---|",
        *(
            f"| {run['workers']} | {run['wall']:.1f} | {run['cpu_a_model']:.2f} | {run['cpu_share']:.3f} | {run['start']:.1f} | {run['load'][0]:.1f}, {run['load'][1]:.1f} |"
            for run in scale["runs"]
        ),
        "",
        "| executor, one worker | training and scoring, s | store and executor, s a model | overhead | start of the worker, s |",
        "|---|---|---|---|---|",
        *(
            f"| {TITLES[row['executor']]} | {row['work']:.1f} | {row['seconds_a_model']:.3f} | **{row['overhead']:.2%}** | {row['start']:.1f} |"
            for row in record["overhead"]
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet_small")
    parser.add_argument("--images", type=int, default=2000, help="samples of the pool; each model is trained on half of them")
    parser.add_argument("--seconds", type=float, default=30.0, help="of training a model")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--executors", nargs="+", choices=list(LAUNCHERS), default=list(LAUNCHERS))
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("docs/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool = images(options.images)
    build = expunge.architecture(options.arch, pool)
    half = torch.arange(0, options.images, 2)
    recipe = recipe_of(build, pool.subset(half), options.seconds)
    tasks = [TrainTask(build=build, recipe=recipe, positions=half, seed=seed) for seed in range(options.tasks)]
    with contextlib.redirect_stdout(sys.stderr):  # Ray's
        record = {
            "command": "python benchmarks/fleet_scaling.py" + "".join(f" {part}" for part in sys.argv[1:]),
            "machine": provenance(),
            "settings": {
                "arch": options.arch,
                "images": options.images,
                "epochs": recipe.epochs,
                "tasks": options.tasks,
                "rounds": options.rounds,
            },
            "scaling": scaling(tasks, pool, options.rounds),
            "overhead": overhead(options.executors, tasks, pool),
        }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "fleet_scaling.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.output / "fleet_scaling.md").write_text(table(record))
    print(table(record))


if __name__ == "__main__":
    main()
