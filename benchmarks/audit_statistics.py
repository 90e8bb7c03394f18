"""What intervals cost: 1,000 bootstrap replicates of AUC and TPR@0.1 % together, against scikit-learn replicate by replicate.

    OMP_NUM_THREADS=1 python benchmarks/audit_statistics.py [--out docs/results]

15,000 scores (5,000 members, 10,000 non-members), one thread, CPU seconds, the median of three runs. Every job runs in its own process, so that its peak memory is its own.
The naive loop resamples, then calls scikit-learn's roc_auc_score and roc_curve; it does 50 replicates, and its time is extrapolated (linear).
Writes audit_statistics.json and .md.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from expunge.metrics.roc import auc, tpr_at_fpr
from expunge.metrics.two_level import two_level, two_level_difference
from expunge.provenance import provenance

N_MEMBERS, N_NONMEMBERS, REPLICATES, FPR, NAIVE, RUNS = 5000, 10000, 1000, 0.001, 50, 3


def scores(n_models: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores of models on the same samples: half of a score is the sample's, half the model's."""
    rng = torch.Generator().manual_seed(seed)
    shared = torch.randn(N_MEMBERS + N_NONMEMBERS, generator=torch.Generator().manual_seed(99))
    everything = (shared + torch.randn(n_models, len(shared), generator=rng)) / 2**0.5
    return everything[:, :N_MEMBERS] + 0.3, everything[:, N_MEMBERS:]


def naive(members: Tensor, nonmembers: Tensor) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    m, n, rng = members[0].numpy(), nonmembers[0].numpy(), np.random.default_rng(0)
    truth = np.r_[np.ones(len(m)), np.zeros(len(n))]
    for _ in range(NAIVE):
        drawn = np.r_[rng.choice(m, len(m)), rng.choice(n, len(n))]
        roc_auc_score(truth, drawn)
        fpr, tpr, _ = roc_curve(truth, drawn)
        tpr[fpr <= FPR].max()


def measure(job: Callable[[], object], queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    job()  # the first call pays for imports and memory
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        job()
        times.append(time.process_time() - start)
    queue.put({"cpu_seconds": times, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


def run(name: str, job: Callable[[], object], factor: float = 1.0) -> dict:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=measure, args=(job, queue))
    process.start()
    row = {"job": name} | queue.get()
    process.join()
    return row | {"cpu_seconds": [factor * t for t in row["cpu_seconds"]], "extrapolated_from": None if factor == 1 else NAIVE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    out = parser.parse_args().out
    members, nonmembers = scores()
    one = members[0], nonmembers[0]
    others = scores(3, 1), scores(3, 2)
    rows = [
        run("interpreter, torch and the scores, no work", lambda: None),
        run("two-level bootstrap, one model", lambda: two_level(members, nonmembers, FPR, replicates=REPLICATES)),
        run("the same, BCa", lambda: two_level(members, nonmembers, FPR, kind="bca", replicates=REPLICATES)),
        run("paired difference of 3 unlearned and 3 retrained models", lambda: two_level_difference(*others[0], *others[1], FPR)),
        run("AUC by DeLong and TPR by order statistics, one model", lambda: (auc(*one), tpr_at_fpr(*one, FPR))),
        run("scikit-learn, replicate by replicate", lambda: naive(members, nonmembers), REPLICATES / NAIVE),
    ]
    lines = ["| job | CPU s, median | range | peak MiB |", "|---|---|---|---|"]
    for row in rows:
        t, mark = row["cpu_seconds"], " (extrapolated)" if row["extrapolated_from"] else ""
        lines.append(f"| {row['job']} | {statistics.median(t):.3g}{mark} | {min(t):.3g} to {max(t):.3g} | {row['peak_mib']:.0f} |")
    head = (
        f"{REPLICATES} replicates of AUC and TPR@{100 * FPR:g}% together, {N_MEMBERS} members and {N_NONMEMBERS} non-members, one thread:"
    )
    about = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/audit_statistics.py",
        "versions": provenance(),
        "platform": platform.platform(),
    }
    about |= {"members": N_MEMBERS, "nonmembers": N_NONMEMBERS, "replicates": REPLICATES, "fpr": FPR, "seeds": [0, 1, 2, 99]}
    (out / "audit_statistics.json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    (out / "audit_statistics.md").write_text(f"# What intervals cost\n\n{head}\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
