"""How often verdicts are wrong: simulated audits in which the truth is known.

    python benchmarks/null_verdicts.py            # about three CPU minutes; one thread

A model's score of a sample is the sample's difficulty, plus noise of its own, plus, for forget samples, a shift that training draws: this is how retrained models differ.
Three attacks see the same model with other noise. Under the null the unlearned model is drawn like the retrained ones; else its forget samples are shifted by more.
Writes docs/results/null_verdicts.json and .md.
"""

import argparse
import json
import pathlib
import time
from collections import Counter

import torch

from expunge.audits.verdict import area_contrast, judge
from expunge.metrics.estimate import proportion_interval
from expunge.provenance import provenance

ATTACKS, OWN = 3, 0.5  # attacks; noise of a model's own beside difficulties of standard deviation 1
SETTINGS = [(n, n_references) for n in ((200, 1000), (1000, 5000)) for n_references in (3, 5, 8)]
SHIFTS = {"the null": 0.0, "a shift of 0.1": 0.1, "a shift of 0.5": 0.5}
WOBBLES = (0.02, 0.1)  # standard deviation of the shift that training draws: an AUC of 0.5 ± 0.006, and ± 0.028


def scores(rng: torch.Generator, difficulty: tuple, shift: float, wobble: float) -> list[tuple]:
    """One model under all attacks."""
    drawn = shift + wobble * torch.randn((), generator=rng)
    noise = lambda n: OWN * torch.randn(ATTACKS, n, generator=rng)  # noqa: E731
    members, nonmembers = difficulty
    return list(zip(members + noise(len(members)) + drawn, nonmembers + noise(len(nonmembers)), strict=True))


def word(seed: int, sizes: tuple, n_references: int, shift: float, wobble: float) -> str:
    rng = torch.Generator().manual_seed(seed)
    difficulty = tuple(torch.randn(n, generator=rng) for n in sizes)
    mine, *others = [scores(rng, difficulty, s, wobble) for s in (shift, *[0.0] * n_references)]
    contrasts = [area_contrast(f"attack {a}", mine[a], *(one[a] for one in others)) for a in range(ATTACKS)]
    return judge("unlearned", contrasts, n_references=n_references).word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--out", default="docs/results", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, rows, lines = time.process_time(), [], []
    for wobble in WOBBLES:
        for sizes, n_references in SETTINGS:
            for name, shift in SHIFTS.items():
                n = options.repetitions if shift == 0 else options.repetitions // 10
                counts = Counter(word(seed, sizes, n_references, shift, wobble) for seed in range(n))
                shares = {w: counts[w] / n for w in ("indistinguishable", "distinguishable", "cannot tell")}
                interval = proportion_interval(counts["distinguishable"], n)
                rows.append(
                    {"sizes": sizes, "retrained": n_references, "wobble": wobble, "shift": shift, "n": n, **shares, "interval": interval}
                )
                lines.append(
                    f"| {sizes[0]} / {sizes[1]} | {n_references} | {wobble} | {name} | {shares['indistinguishable']:.1%} | "
                    f"{shares['distinguishable']:.1%} [{interval[0]:.1%}, {interval[1]:.1%}] | {shares['cannot tell']:.1%} |"
                )
                print(lines[-1], flush=True)
    head = (
        "| forget / test samples | retrained models | spread of retraining | truth | indistinguishable | distinguishable | cannot tell |\n"
        + "|---" * 7
        + "|\n"
    )
    text = (
        "# How often verdicts are wrong (simulated)\n\n`python benchmarks/null_verdicts.py`\n\nUnder the null, «distinguishable» is a false alarm: at most 5 % are allowed. "
        "With a shift of 0.5 (an AUC of 0.62), «indistinguishable» is one.\n\n" + head + "\n".join(lines) + "\n"
    )
    record = {"versions": provenance(), "cpu_seconds": time.process_time() - start, "rows": rows}
    (options.out / "null_verdicts.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "null_verdicts.md").write_text(text)


if __name__ == "__main__":
    main()
