"""What the audits say where there is nothing to find: AUC on pure noise, for 8, 16 and 64 shadow models.

    python benchmarks/null_auc.py [--out docs/results]            # half a minute on one core

A fresh target: one model whose scores are noise, half of 4,000 samples called members, against M shadow models of noise. Leave-one-out: each of the M models in turn is the target, its
complement dropped. Errors are in standard errors of an AUC of independent scores; leave-one-out pairs are dependent, so that theirs is up to √2 larger.
Writes docs/results/null_auc.json and .md.
"""

import argparse
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from expunge.audits import lira, lira_leave_one_out, rmia_leave_one_out, rmia_log_ratio
from expunge.metrics import auc
from expunge.provenance import provenance
from expunge.training.shadow import halves


def standard_error(n1: int, n0: int) -> float:
    return math.sqrt((n1 + n0 + 1) / (12 * n1 * n0))


def rows(m: int, n: int) -> Iterator[tuple[str, Tensor, Callable[[bool], Tensor]]]:
    """For each audit its name, the scores of a fresh target, and leave-one-out scores with or without the mate dropped."""
    noise = torch.randn(m, n, generator=torch.Generator().manual_seed(m))
    target = torch.randn(n, generator=torch.Generator().manual_seed(1000 + m))
    included, log = halves(n, m, seed=0), torch.nn.functional.logsigmoid
    for v in ("per_example", "shrunk", "fixed"):
        yield f"LiRA {v}", lira(target, noise, included, v), partial(lira_leave_one_out, noise, included, v)
    yield "RMIA", rmia_log_ratio(log(target), log(noise), included), partial(rmia_leave_one_out, log(noise), included)


def measured(m: int, n: int) -> Iterator[dict]:
    """The AUCs of every audit with m shadow models and n samples."""
    member, included = halves(n, 2, seed=99)[0], halves(n, m, seed=0)
    one, every = standard_error(n // 2, n // 2), standard_error(m * n // 2, m * n // 2)
    for name, fresh, leave_one_out in rows(m, n):
        alone = auc(fresh[member], fresh[~member]).value
        dropped, kept = (auc(s[included], s[~included]).value for s in (leave_one_out(drop_mates=True), leave_one_out(drop_mates=False)))
        yield {
            "shadow_models": m, "audit": name, "fresh": alone, "fresh_errors": (alone - 0.5) / one,
            "leave_one_out": dropped, "leave_one_out_errors": (dropped - 0.5) / every, "mate_kept": kept,
        }  # fmt: skip


def main(n: int = 4000) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    out = parser.parse_args().out
    lines = [
        "# AUC on pure noise\n\n`python benchmarks/null_auc.py`; errors in standard errors (SE) of an AUC of independent scores\n",
        "| shadow models | audit | fresh target | in SE | leave-one-out | in SE | leave-one-out with the mate kept |\n|---|---|---|---|---|---|---|",
    ]
    found = [row for m in (8, 16, 64) for row in measured(m, n)]
    for row in found:
        lines.append(
            f"| {row['shadow_models']} | {row['audit']} | {row['fresh']:.4f} | {row['fresh_errors']:+.1f} | "
            f"{row['leave_one_out']:.4f} | {row['leave_one_out_errors']:+.1f} | {row['mate_kept']:.4f} |"
        )
    (out / "null_auc.json").write_text(json.dumps({"versions": provenance(), "samples": n, "rows": found}, indent=1) + "\n")
    (out / "null_auc.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
