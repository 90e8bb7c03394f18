"""Kill -9 at random moments: a demonstration that is killed again and again ends with the same bits as one that was left alone, and trains nothing twice.

    python benchmarks/recovery.py --kills 10            # two to ten minutes

Runs a small `Demo` once undisturbed. Then runs it on a fresh store in a process group that is killed after a random time, until one run survives. Compares every stored tensor byte for byte and
the audit's numbers, and checks that no result that was finished before a kill was written again after it.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile

CODE = """
import sys
from expunge.demo import Demo
from expunge import AMUN, FineTune, Recipe
if __name__ == "__main__":
    methods = {"AMUN": AMUN(epochs=2), "FineTune": FineTune(epochs=2)}
    Demo(n_shadows=16, n_retrained=2, recipe=Recipe(epochs=6, batch_size=64), methods=methods).run(sys.argv[1], workers=2, device="cpu")
"""


def start(store: pathlib.Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CODE, str(store)], start_new_session=True, stderr=subprocess.DEVNULL)


def finished(store: pathlib.Path) -> dict[str, int]:
    """Each result that is there, and when it was written."""
    return {str(path.parent.relative_to(store)): path.stat().st_mtime_ns for path in store.glob("*/*/result.json")}


def content(store: pathlib.Path) -> dict[str, bytes]:
    """All tensors, and the audit's numbers without times and dates."""
    files = {str(path.relative_to(store)): path.read_bytes() for path in store.glob("*/*/*.safetensors")}
    for path in store.glob("demo/*/result.json"):
        result = json.loads(path.read_text())["result"]
        for model in result["models"]:
            model.pop("seconds")
        files[str(path.relative_to(store))] = json.dumps([result["models"], result["attacks"], result["histograms"]]).encode()
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        calm, killed = pathlib.Path(folder, "calm"), pathlib.Path(folder, "killed")
        assert start(calm).wait() == 0
        kills = rewritten = 0
        while True:
            before, process = finished(killed), start(killed)
            try:
                process.wait(draw.uniform(3, 9) if kills < options.kills else None)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
            after = finished(killed)
            rewritten += sum(after.get(key) != time for key, time in before.items())
            print(f"kill {kills}: {len(after)} results finished", flush=True)
            if process.returncode == 0:
                break
        same = content(calm) == content(killed)
        print(
            f"kills: {kills}; finished results computed again: {rewritten}; {len(content(calm))} files; identical to the undisturbed run: {same}"
        )
        sys.exit(0 if same and not rewritten else 1)


if __name__ == "__main__":
    main()
