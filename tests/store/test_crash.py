"""Real processes, killed at every step and racing one another: no result is lost, believed in part, or computed twice."""

import json
import subprocess
import sys

import pytest

# Forks from a small process of its own: the test runner has threads, which do not survive a fork.
SCRIPT = """
import builtins, json, os, signal, sys, time, warnings
from pathlib import Path
import torch
from expunge.store import Store

warnings.simplefilter("ignore")

def killed(root, scenario):
    def job(n):
        cell = Store(root / str(n), stale_after=0.05).cell("shadow", {"seed": 0})
        with cell.claim() as mine:
            if mine:
                cell.finish({"accuracy": 0.5}, {"w": torch.arange(5.0)}, scores={"logits": torch.eye(3)})
        return cell

    def prepare(n):
        if scenario == "damaged":
            weights = job(n).folder / "weights.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1])

    def die_at(n):
        calls = []
        def counted(function):
            def call(*args, **kwargs):
                calls.append(function)
                if len(calls) == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)
            return call
        for name in ("open", "mkdir", "replace", "fsync", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        builtins.open = counted(builtins.open)

    def content(n):
        folder = next((root / str(n) / "shadow").iterdir())
        return {p.name: p.read_bytes().hex() for p in folder.iterdir() if not p.name.endswith(".damaged")}

    job("reference")
    survived, n = False, 0
    problems = []
    while not survived:
        n += 1
        prepare(n)
        if (pid := os.fork()) == 0:
            die_at(n)
            job(n)
            os._exit(0)
        survived = os.waitpid(pid, 0)[1] == 0
        cell = Store(root / str(n)).cell("shadow", {"seed": 0})
        if cell.done and (cell.result() != {"accuracy": 0.5} or not torch.equal(cell.tensors()["w"], torch.arange(5.0))):
            problems.append(f"step {n}: a wrong result was believed")
        if not cell.done:
            # A claim that was created but not yet written out has no owner to ask: it must age.
            for claim in cell.folder.glob("claim.*"):
                if not claim.read_text():
                    os.utime(claim, (0, 0))
            job(n)
        expected, found = content("reference"), content(n)
        found = {name: data for name, data in found.items() if not name.startswith(("claim.", "."))}
        if found != expected:
            problems.append(f"step {n}: {sorted(found)} differ from {sorted(expected)}")
    return {"steps": n - 1, "problems": problems}

def race(root):
    store, log = Store(root), root / "log"
    store.root.mkdir(exist_ok=True)
    cells = [store.cell("shadow", {"seed": seed}) for seed in range(40)]
    with cells[0].claim():
        holder = (cells[0].folder / "claim.0").read_text()
    dead = os.fork() or os._exit(0)
    os.waitpid(dead, 0)
    for cell in cells[::2]:  # half of the cells were left by a killed worker
        cell.folder.mkdir(parents=True, exist_ok=True)
        (cell.folder / "claim.0").write_text(json.dumps(json.loads(holder) | {"pid": dead}))

    start = time.time() + 0.2
    children = []
    for _ in range(4):
        children.append(os.fork())
        if children[-1] == 0:
            time.sleep(max(0, start - time.time()))
            left = list(cells)
            while left:
                for cell in left:
                    with cell.claim() as mine:
                        if mine:
                            with open(log, "a") as file:
                                file.write(f"{cell.folder.name}\\n")
                            time.sleep(0.002)
                            cell.finish({})
                left = [cell for cell in left if not cell.done]
            os._exit(0)
    codes = [os.waitpid(child, 0)[1] for child in children]
    return {"codes": codes, "runs": log.read_text().split(), "claims": len(list(store.root.glob("*/*/claim.*")))}

root = Path(sys.argv[1])
print(json.dumps({"fresh": killed(root / "fresh", "fresh"), "damaged": killed(root / "damaged", "damaged"), "race": race(root / "race")}))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict:
    """What three experiments found, in one process: most of the time it imports."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("stores"))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("scenario", ["fresh", "damaged"])
def test_kill_between_any_two_writes_leaves_a_cell_that_resumes_to_the_same_result(answers, scenario):
    assert answers[scenario]["problems"] == []
    assert answers[scenario]["steps"] >= 20  # every file alone has four steps: create, sync, rename, sync the folder


def test_workers_that_share_a_store_never_run_one_cell_twice(answers):
    race = answers["race"]
    assert race["codes"] == [0, 0, 0, 0]
    assert len(race["runs"]) == len(set(race["runs"])) == 40
    assert race["claims"] == 0
