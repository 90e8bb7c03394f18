"""How often 95 % intervals hold the truth, and how often an audit sees something where there is nothing: simulation with known answers.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py [--repetitions 2000] [--out docs/results]     # about five CPU minutes, one thread

Scores are normal: non-members N(0, 1), members N(d, 1), so that AUC = Φ(d/√2) and TPR at FPR f = Φ(d − z_f). Pairs of models share 80 % of the variance of a sample's
score. Two-level: M models on the same samples, half of the variance shared, and each model's members shifted by A · N(0, 1); the truth is the mean over all such models. ε: the
share of bounds that do not exceed the truth, which is what a one-sided bound promises, at least 95 %. Writes coverage.json and .md.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from expunge.metrics.epsilon import epsilon_bounds
from expunge.metrics.estimate import Estimate, proportion_interval
from expunge.metrics.roc import auc, auc_difference, tpr_at_fpr
from expunge.metrics.two_level import two_level, two_level_difference
from expunge.provenance import provenance

SIZES, AUCS, FPR, SHARED = ((100, 1000), (1000, 5000)), (0.5, 0.6, 0.9), 0.01, 0.8
SMALL, TWO_LEVEL_REPLICATES = (100, 300), 200
Case = tuple[str, str, float, Callable[[torch.Generator, int], Estimate]]  # what, where, truth, one repetition


def shift(area: float) -> float:
    return float(ndtri(area)) * math.sqrt(2)


def groups(rng: torch.Generator, n1: int, n0: int, d: float) -> tuple[Tensor, Tensor]:
    return torch.randn(n1, generator=rng, dtype=torch.float64) + d, torch.randn(n0, generator=rng, dtype=torch.float64)


def correlated(rng: torch.Generator, sizes: tuple[int, int], ds: tuple[float, float]) -> list[Tensor]:
    """Members and non-members of model a, then of model b."""
    base = groups(rng, *sizes, 0.0)
    own = [groups(rng, *sizes, 0.0) for _ in ds]
    mixed = [[math.sqrt(SHARED) * b + math.sqrt(1 - SHARED) * o for b, o in zip(base, one, strict=True)] for one in own]
    return [x for (m, n), d in zip(mixed, ds, strict=True) for x in (m + d, n)]


def crossed(rng: torch.Generator, base: tuple[Tensor, Tensor], m: int, d: float, models: float) -> tuple[Tensor, Tensor]:
    own = [torch.randn(m, len(x), generator=rng, dtype=torch.float64) for x in base]
    scores = [(x + o) / math.sqrt(2) for x, o in zip(base, own, strict=True)]
    return scores[0] + d + models * torch.randn(m, 1, generator=rng, dtype=torch.float64), scores[1]


def one_level() -> Iterator[Case]:
    for n1, n0 in SIZES:
        where = f"{n1} members, {n0} non-members"
        for area in AUCS:
            d = shift(area)
            yield "AUC", f"{area}; {where}", area, lambda rng, r, s=(n1, n0), d=d: auc(*groups(rng, *s, d))
            tpr = float(ndtr(d + ndtri(FPR)))
            yield (
                f"TPR@{100 * FPR:g}%",
                f"AUC {area}, TPR {tpr:.3f}; {where}",
                tpr,
                lambda rng, r, s=(n1, n0), d=d: tpr_at_fpr(*groups(rng, *s, d), FPR, seed=r),
            )
        for a, b in ((0.5, 0.5), (0.6, 0.6), (0.6, 0.55), (0.9, 0.85)):
            ds = shift(a), shift(b)
            yield "AUC difference", f"{a} − {b}; {where}", a - b, lambda rng, r, s=(n1, n0), ds=ds: auc_difference(*correlated(rng, s, ds))


def two_levels() -> Iterator[Case]:
    options = {"fpr": 0.02, "replicates": TWO_LEVEL_REPLICATES}
    where = f"{SMALL[0]} members, {SMALL[1]} non-members"
    for m, models, kind in (
        (1, 0.0, "percentile"),
        (1, 0.0, "bca"),
        (3, 0.0, "percentile"),
        (3, 0.1, "percentile"),
        (3, 0.5, "percentile"),
        (6, 0.1, "percentile"),
    ):
        truth = float(ndtr(0.5 / math.sqrt(2 + models**2)))

        def one(rng: torch.Generator, r: int, m: int = m, models: float = models, kind: str = kind) -> Estimate:
            return two_level(*crossed(rng, groups(rng, *SMALL, 0.0), m, 0.5, models), seed=r, kind=kind, **options).auc

        yield "AUC, two levels", f"{m} models, A = {models}, {kind}; {where}", truth, one
    for m, models in ((1, 0.0), (3, 0.0), (3, 0.1), (6, 0.1)):

        def pair(rng: torch.Generator, r: int, m: int = m, models: float = models) -> Estimate:
            base = groups(rng, *SMALL, 0.0)
            return two_level_difference(*crossed(rng, base, m, 0.5, models), *crossed(rng, base, m, 0.5, models), seed=r, **options).auc

        yield "AUC difference, two levels", f"{m} and {m} models, A = {models}; {where}", 0.0, pair


def simulate(cases: Iterator[Case], repetitions: int) -> list[dict]:
    rows = []
    for number, (what, where, truth, one) in enumerate(cases):
        rng, start = torch.Generator().manual_seed(number), time.process_time()
        found = [one(rng, r) for r in range(repetitions)]
        below, above = sum(e.high < truth - 1e-12 for e in found), sum(e.low > truth + 1e-12 for e in found)
        hits = repetitions - below - above
        low, high = proportion_interval(hits, repetitions)
        rows.append({
            "what": what, "where": where, "truth": truth, "repetitions": repetitions, "coverage": hits / repetitions, "low": low, "high": high,
            "interval_below": below / repetitions, "interval_above": above / repetitions, "seed": number,
            "mean_width": sum(e.high - e.low for e in found) / repetitions, "cpu_seconds": time.process_time() - start,
        })  # fmt: skip
    return rows


def epsilons(repetitions: int) -> list[dict]:
    """Randomised response with a known ε: a model shows its true side with probability e^ε / (1 + e^ε); one column a repetition."""
    rows = []
    for truth in (0.0, 1.0):
        for n in (32, 128):
            for name, thresholds in (("split", None), ("Bonferroni, 5 thresholds", torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))):
                rng = torch.Generator().manual_seed(1000 + n)
                told = torch.rand(2, n, repetitions, generator=rng) < math.exp(truth) / (1 + math.exp(truth))
                sides = (told[0].double() * 2 - 1) + 0.0, (~told[1]).double() * 2 - 1
                noise = 0.1 * torch.randn(2, n, repetitions, generator=rng, dtype=torch.float64)  # no ties; says nothing
                found = epsilon_bounds(sides[0] + noise[0], sides[1] + noise[1], delta=0.0, thresholds=thresholds)
                hits = int((found.bounds <= truth).sum())
                low, high = proportion_interval(hits, repetitions)
                rows.append({
                    "what": "ε, lower bound", "where": f"ε = {truth:g}, {n} and {n} models, {name}", "truth": truth, "repetitions": repetitions,
                    "coverage": hits / repetitions, "low": low, "high": high, "interval_below": None, "interval_above": 1 - hits / repetitions,
                    "seed": 1000 + n, "mean_bound": float(found.bounds.mean()), "ceiling": found.ceiling,
                })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    rows = simulate(one_level(), options.repetitions) + simulate(two_levels(), options.repetitions) + epsilons(options.repetitions)
    lines = ["| what | where | coverage | 95 % interval of it | truth above the interval | below |", "|---|---|---|---|---|---|"]
    for r in rows:
        sides = [("" if r[k] is None else f"{100 * r[k]:.1f} %") for k in ("interval_below", "interval_above")]
        lines.append(
            f"| {r['what']} | {r['where']} | {100 * r['coverage']:.1f} % | {100 * r['low']:.1f} to {100 * r['high']:.1f} | {sides[0]} | {sides[1]} |"
        )
    head = (
        f"{options.repetitions} repetitions a row, so that a true 95 % shows as 94.0 to 95.9 in 19 of 20 rows. A null AUC or null difference is a false alarm in 100 % minus the "
        "coverage. ε is a one-sided bound: at least 95 % is the promise. Two-level intervals have 200 replicates each (1,000 is the default)."
    )
    about = {"command": f"OMP_NUM_THREADS=1 python benchmarks/coverage.py --repetitions {options.repetitions}", "versions": provenance()}
    about |= {"platform": platform.platform(), "cpu_seconds": time.process_time() - start, "shared_variance": SHARED}
    (options.out / "coverage.json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    (options.out / "coverage.md").write_text(f"# How often intervals hold the truth\n\n{head}\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines), f"\n{about['cpu_seconds']:.0f} CPU s")


if __name__ == "__main__":
    main()
