"""What it costs to turn the scores of shadow models into membership scores and intervals, against the formulas written as loops.

    OMP_NUM_THREADS=1 python benchmarks/audit_scoring.py [--samples 60000] [--models 128] [--out docs/results]

One thread. Every job runs in its own process, so that its peak memory is its own. A loop over the pairs or the samples would take hours: it
runs on a part of the samples, and the time is extrapolated with its known growth (linear in the samples for LiRA and U-LiRA, in samples × population
for RMIA). Writes docs/results/audit_scoring.json and .md.
"""

import argparse
import json
import math
import multiprocessing
import os
import pathlib
import platform
import resource
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from expunge.audits.lira import lira, lira_leave_one_out
from expunge.audits.rmia import rmia, rmia_leave_one_out, rmia_log_ratio
from expunge.audits.u_lira import u_lira
from expunge.audits.u_lira_pool import u_lira_pool
from expunge.metrics.bootstrap import ResampledAUC, blocks, draw_counts, generator
from expunge.metrics.roc import auc, tpr_at_fpr

N_SCORES, N_MEMBERS, REPLICATES = 15000, 5000, 1000


def scores(n_samples: int, n_models: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of a target and of shadow models trained on complementary halves, float32."""
    rng = torch.Generator().manual_seed(0)
    first = torch.rand(n_models // 2, n_samples, generator=rng) < 0.5
    included = torch.stack([first, ~first], 1).flatten(0, 1)
    odds = torch.randn(n_models + 1, n_samples, generator=rng)
    odds[1:] += included
    log_p = torch.nn.functional.logsigmoid(2 * odds)
    return log_p[0], log_p[1:], included


def groups() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(N_MEMBERS, generator=rng) + 0.3, torch.randn(N_SCORES - N_MEMBERS, generator=rng)


def bootstrap_auc() -> None:
    members, nonmembers = groups()
    resampled, rng = ResampledAUC(members, nonmembers), generator(0)
    for size in blocks(REPLICATES):
        resampled(draw_counts(len(members), size, rng), draw_counts(len(nonmembers), size, rng))


def loop_bootstrap(replicates: int) -> None:
    """Resample, sort, count: AUC and TPR of each replicate from scratch."""
    members, nonmembers = (group.numpy() for group in groups())
    rng = np.random.default_rng(0)
    for _ in range(replicates):
        m, n = rng.choice(members, len(members)), np.sort(rng.choice(nonmembers, len(nonmembers)))
        (np.searchsorted(n, m) + np.searchsorted(n, m, side="right")).sum() / (2 * len(m) * len(n))
        (m > n[len(n) - 1 - len(n) // 1000]).mean()


def loop_lira(target: np.ndarray, shadow: np.ndarray, included: np.ndarray, n: int) -> None:
    """The Gaussian fits of one sample after the other, for n of them."""
    for i in range(n):
        value = 0.0
        for sign, group in ((1, shadow[included[:, i], i]), (-1, shadow[~included[:, i], i])):
            value += sign * (-0.5 * ((target[i] - group.mean()) / group.std(ddof=1)) ** 2 - math.log(group.std(ddof=1)))


def loop_u_lira_pool(after: np.ndarray, included: np.ndarray, n: int) -> None:
    """Each model in turn the target, its mate left out too, the fits of one sample after the other, for n of them; without the interval."""
    for t in range(len(after)):
        kept = np.arange(len(after)) // 2 != t // 2  # models 2k and 2k + 1 are mates
        scores = np.empty(n)
        for i in range(n):
            seen, column = included[kept, i], after[kept, i]
            scores[i] = 0.0
            for sign, group in ((1, column[seen]), (-1, column[~seen])):
                scores[i] += sign * (-0.5 * ((after[t, i] - group.mean()) / group.std(ddof=1)) ** 2 - math.log(group.std(ddof=1)))
        members, nonmembers = scores[included[t, :n]], np.sort(scores[~included[t, :n]])
        (np.searchsorted(nonmembers, members) / len(nonmembers)).mean()


def loop_rmia(ratio: np.ndarray, n: int) -> None:
    """The pairwise comparison of n samples with all the others.

    The ratios are computed once; public code computes them anew for every sample.
    """
    for i in range(n):
        others = np.concatenate([ratio[:i], ratio[i + 1 :]])
        (ratio[i] / others >= 2.0).mean()


def measure(job: Callable[[], None], queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    job()  # the first call pays for imports and memory; the second is measured
    start, wall = time.process_time(), time.perf_counter()
    job()
    queue.put({
        "cpu_seconds": time.process_time() - start,
        "wall_seconds": time.perf_counter() - wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    })  # fmt: skip


def run(name: str, job: Callable[[], None], factor: float = 1.0) -> dict:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=measure, args=(job, queue))
    process.start()
    row = {"job": name} | queue.get()
    process.join()
    row["cpu_seconds"], row["wall_seconds"] = row["cpu_seconds"] * factor, row["wall_seconds"] * factor
    row["extrapolated_from"] = None if factor == 1 else 1 / factor
    return row


def table(record: dict) -> str:
    machine = record["machine"]
    lines = [
        f"# What scoring costs\n\n{record['samples']} samples, {record['models']} shadow models; {machine['processor']}, {machine['threads']} thread, torch {machine['torch']}:\n",
        "| job | CPU s | wall s | peak MiB |\n|---|---|---|---|",
    ]
    for row in record["rows"]:
        mark = " (extrapolated)" if row["extrapolated_from"] else ""
        lines.append(f"| {row['job']} | {row['cpu_seconds']:.3f}{mark} | {row['wall_seconds']:.3f}{mark} | {row['peak_mib']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=60000)
    parser.add_argument("--models", type=int, default=128)
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    args = parser.parse_args()
    n, m, part = args.samples, args.models, 400

    rows = [run("interpreter and torch, no data", lambda: None)]
    inputs = scores(n, m)
    arrays, ratio = [x.numpy() for x in inputs], rmia_log_ratio(*inputs).exp().numpy()
    rows += [
        run("the scores themselves", lambda: None),
        run("LiRA, online, shrunk", lambda: lira(*inputs)),
        run("LiRA, offline", lambda: lira(*inputs, online=False)),
        run("LiRA, a loop over samples", lambda: loop_lira(*arrays, part), n / part),
        run("LiRA, every model by the others", lambda: lira_leave_one_out(*inputs[1:])),
        run("U-LiRA, one target, half of the models unlearned", lambda: u_lira(inputs[0], inputs[1][: m // 2], inputs[1][m // 2 :])),
        run("U-LiRA, the pool design, every model by the others, with intervals", lambda: u_lira_pool(*inputs[1:])),
        run("U-LiRA, the pool design, a loop over models and samples", lambda: loop_u_lira_pool(*arrays[1:], 20), n / 20),
        run("RMIA, online", lambda: rmia(*inputs)),
        run("RMIA, offline", lambda: rmia(*inputs, online=False)),
        run("RMIA, a loop over samples", lambda: loop_rmia(ratio, part), n / part),
        run("RMIA, every model by the others", lambda: rmia_leave_one_out(*inputs[1:])),
        run(f"AUC with DeLong interval, {N_SCORES} scores", lambda: auc(*groups())),
        run(f"TPR@0.1% with {REPLICATES} bootstrap replicates, {N_SCORES} scores", lambda: tpr_at_fpr(*groups(), 0.001)),
        run(f"AUC of {REPLICATES} bootstrap replicates, {N_SCORES} scores", bootstrap_auc),
        run(f"both, resampled one by one, {N_SCORES} scores", lambda: loop_bootstrap(50), REPLICATES / 50),
    ]
    machine = {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__, "threads": 1}
    record = {"samples": n, "models": m, "machine": machine, "rows": rows}
    (args.out / "audit_scoring.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / "audit_scoring.md").write_text(table(record))
    print(table(record))


if __name__ == "__main__":
    main()
