"""Kill -9 at random moments of a benchmark: it ends with the bits of an undisturbed run, and computes nothing twice that was finished.

    python benchmarks/recovery.py --kills 100           # some twenty minutes on two quiet cores

Plan: a small benchmark (`expunge.Plan`: originals, retrained and shadow models, four methods that are tuned, unlearning, audits) runs once undisturbed. Then the same command runs on a fresh store with one or two workers (drawn), in a
process group of its own that is killed with signal 9, and is started again, until it ends; then again on another fresh store, until there were as many kills as asked for, and the last
run is left alone. A life is killed when it has spent a random CPU time since it first touched the store (importing torch is no work): uniform between nothing and a tenth of what the undisturbed
run took, so that other work on the machine does not shift the moments. Every third one is killed at the moment after that at which a file of a result appears, so that writing is hit too, which takes
next to no time. What was hit is read from what the dead left: claims of this life, with or without parts of a result. Every run that ends is compared with the undisturbed one: all tensors byte for byte, all results but for times, dates and memory.
A result that was finished before a life and is written again in it is counted. Linux. Writes docs/results/recovery.json and .md.
"""

import argparse
import json
import os
import pathlib
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from expunge.provenance import provenance

CODE = """
import sys
from expunge import AMUN, FineTune, ForgetRandom, NegGradPlus, Plan, RandomLabel, Recipe
if __name__ == "__main__":
    plan = Plan(
        methods=[AMUN(epochs=3), FineTune(epochs=10), NegGradPlus(epochs=3), RandomLabel(epochs=5)], data="digits", arch="small",
        recipe=Recipe(epochs=8, batch_size=64), forget=ForgetRandom(n=100), seeds=2, shadows=8, tuning=2,
    )
    plan.run(sys.argv[1], workers=int(sys.argv[2]), device="cpu")
"""
SHARE, POLL = 10, 0.002  # of the undisturbed run's work, the longest life; seconds between looks
VOLATILE = {"seconds", "peak_memory", "date", "created"}  # in results: what two undisturbed runs do not share either


def command(store: pathlib.Path, workers: int) -> list[str]:
    """What is killed. Any command will do that keeps all it makes in the store, and goes on where it was when it is run again."""
    return [sys.executable, "-c", CODE, str(store), str(workers)]


def start(store: pathlib.Path, workers: int) -> subprocess.Popen:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command(store, workers), start_new_session=True, stdout=quiet, stderr=quiet)


def spent(pid: int) -> float:
    """CPU seconds of a process and of all its children, living and dead."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            ticks = sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = file.read().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK") + sum(spent(int(child)) for child in children)


# What is in a store


def files(store: pathlib.Path) -> dict[str, int]:
    """Every file, and when it was written. A file may vanish while others are listed."""
    found = {}
    for folder, _, names in os.walk(store):
        for name in names:
            path = os.path.join(folder, name)
            try:
                found[os.path.relpath(path, store)] = os.stat(path).st_mtime_ns
            except FileNotFoundError:
                continue
    return found


def is_claim(path: str) -> bool:
    return os.path.basename(path).startswith(("claim.", ".clock."))


def finished(store: pathlib.Path) -> dict[str, int]:
    return {path: written for path, written in files(store).items() if path.endswith("/result.json")}


def content(store: pathlib.Path) -> dict[str, bytes]:
    """All tensors, and all results without what differs between two undisturbed runs."""
    found = {str(path.relative_to(store)): path.read_bytes() for path in store.glob("*/*/*.safetensors")}
    for path in store.glob("*/*/result.json"):
        found[str(path.relative_to(store))] = json.dumps(settled(json.loads(path.read_text())["result"]), sort_keys=True).encode()
    return found


def settled(value: object) -> object:
    if isinstance(value, dict):
        return {key: settled(v) for key, v in value.items() if key not in VOLATILE}
    return [settled(v) for v in value] if isinstance(value, list) else value


def hit(store: pathlib.Path, since: int) -> list[str]:
    """What the dead were at: for each cell that they had claimed, its kind, and whether parts of its result were there."""
    cells: dict[str, set[str]] = {}
    for path, written in files(store).items():
        cells.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
        if is_claim(path) and written >= since:
            cells[os.path.dirname(path)].add("claimed in this life")
    found = []
    for cell, names in sorted(cells.items()):
        if "claimed in this life" in names:
            parts = any(name.endswith((".tmp", ".safetensors")) for name in names)
            state = "finished, claim not yet given back" if "result.json" in names else "writing" if parts else "computing"
            found.append(f"{cell.split('/')[0]}: {state}")
    # The cell of an audit, or of tuning, is claimed while what it needs is made: it counts where nothing inside it was.
    return [what for what in found if not what.startswith(("audited:", "tuned:"))] or found or ["between cells"]


# Lives


@dataclass
class Tally:
    kills: int = 0
    runs: list[bool] = field(default_factory=list)  # whether its content was that of the undisturbed run
    rewritten: int = 0
    at_work: list[float] = field(default_factory=list)  # CPU seconds from a life's first touch of the store to its end
    hits: Counter = field(default_factory=Counter)
    progress: list[int] = field(default_factory=list)  # results that a killed life finished


def wait(process: subprocess.Popen, until: Callable[[], bool]) -> bool:
    """Whether the condition came true before the process ended."""
    while process.poll() is None:
        if until():
            return True
        time.sleep(POLL)
    return False


def born(store: pathlib.Path, workers: int) -> tuple[subprocess.Popen, float]:
    """A life at its first touch of the store, and the CPU seconds that it took until there."""
    before, process = files(store), start(store, workers)
    wait(process, lambda: files(store) != before)
    return process, spent(process.pid)


def life(store: pathlib.Path, draw: random.Random, longest: float, tally: Tally, last: bool) -> bool:
    """One start of the command, killed unless it is the last; whether it came to its end."""
    done, since = finished(store), time.time_ns()
    process, idle = born(store, draw.choice([1, 2]))
    length, at_a_write, work = draw.uniform(0, longest), tally.kills % 3 == 2, 0.0
    if last:
        process.wait()
    elif wait(process, lambda: spent(process.pid) - idle >= length):
        there = set(files(store))
        if at_a_write:
            wait(process, lambda: any(not is_claim(path) for path in set(files(store)) - there))
        if process.poll() is None:
            work = spent(process.pid) - idle
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            tally.kills += 1
            tally.at_work.append(work)
            tally.hits.update(hit(store, since))
            tally.progress.append(len(finished(store)) - len(done))
    now = finished(store)
    tally.rewritten += sum(now.get(path) != written for path, written in done.items())
    return process.returncode == 0


def markdown(record: dict) -> str:
    t, v = record["tally"], record["versions"]
    same, seconds, none = sum(t["runs"]), t["at_work"], t["progress"].count(0)
    lines = [
        f"{t['kills']} kills; {len(t['runs'])} runs came to their end, {same} of them with the bits of the undisturbed run ({record['files']} files).",
        f"Finished results that were computed again: {t['rewritten']}.",
        f"CPU seconds at work before a kill: median {statistics.median(seconds):.2g}, {min(seconds):.2g} to {max(seconds):.2g}; "
        f"undisturbed: {record['undisturbed_seconds']:.3g}.",
        f"Results that a killed life finished: {statistics.mean(t['progress']):.2g} on average, none in {none} lives.",
    ]
    table = ["| what was hit | times |", "|---|---|", *(f"| {what} | {n} |" for what, n in sorted(t["hits"].items()))]
    about = f"`{record['command']}`: {v['hardware']}, {v['cores']} cores, torch {v['torch']}, {record['seconds'] / 60:.0f} minutes."
    note = "Two workers are hit at once, so that there are more hits than kills."
    return "\n".join(["# Kill -9 at random moments", "", about, "", *(f"- {line}" for line in lines), "", *table, "", note, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    draw, tally, since = random.Random(options.seed), Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        calm = pathlib.Path(folder, "calm")
        process, idle = born(calm, 2)
        assert process.wait() == 0, "the command fails undisturbed"
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        undisturbed, expected = used.ru_utime + used.ru_stime - idle, content(calm)
        print(f"undisturbed: {undisturbed:.1f} CPU s, {len(expected)} files", flush=True)
        while tally.kills < options.kills or not tally.runs:
            store = pathlib.Path(folder, f"killed{len(tally.runs)}")
            while not life(store, draw, undisturbed / SHARE, tally, last=tally.kills >= options.kills):
                print(f"kill {tally.kills}: {len(finished(store))} results finished", flush=True)
            tally.runs.append(content(store) == expected)
            print(f"run {len(tally.runs)} ended after {tally.kills} kills; same bits: {tally.runs[-1]}", flush=True)
    record = {
        "command": f"python benchmarks/recovery.py --kills {options.kills} --seed {options.seed}", "plan": __doc__.split("Plan: ")[1].strip(),
        "versions": provenance(), "platform": platform.platform(), "code": CODE, "undisturbed_seconds": undisturbed, "files": len(expected),
        "seconds": time.monotonic() - since, "tally": vars(tally),
    }  # fmt: skip
    (options.out / "recovery.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "recovery.md").write_text(markdown(record))
    print(markdown(record))
    sys.exit(0 if all(tally.runs) and not tally.rewritten else 1)


if __name__ == "__main__":
    main()
