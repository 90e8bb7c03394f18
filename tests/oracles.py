"""Slow and obvious formulas, written down once more from the papers, to compare the fast code with; loops over samples and pairs."""

import copy
import math

import numpy as np
import torch
from scipy.stats import norm
from torch import nn


def auc_by_pairs(members, nonmembers) -> float:
    """The share of (member, non-member) pairs that are in the right order, ties half."""
    wins = [1.0 if m > n else 0.5 if m == n else 0.0 for m in members for n in nonmembers]
    return sum(wins) / len(wins)


def tpr_by_thresholds(members, nonmembers, fpr: float) -> float:
    """The best TPR over all thresholds "score > t" whose false positives do not exceed fpr · n₀."""
    best = 0.0
    for t in [math.inf, -math.inf, *members, *nonmembers]:
        if sum(n > t for n in nonmembers) <= fpr * len(nonmembers) + 1e-9:
            best = max(best, sum(m > t for m in members) / len(members))
    return best


def softmax(logits) -> np.ndarray:
    """In extended precision, for one row."""
    z = np.asarray(logits, dtype=np.longdouble)
    e = np.exp(z - z.max())
    return e / e.sum()


def margin(logits, label: int) -> float:
    """log p_y − log(1 − p_y), with 1 − p_y summed from the other classes."""
    p = softmax(logits)
    return float(np.log(p[label]) - np.log(sum(p[j] for j in range(len(p)) if j != label)))


def entropy(logits) -> float:
    return float(-sum(q * np.log(q) for q in softmax(logits)))


def modified_entropy(logits, label: int) -> float:
    p = softmax(logits)
    rest = [sum(p[i] for i in range(len(p)) if i != j) for j in range(len(p))]  # 1 − p_j without cancellation
    return float(-rest[label] * np.log(p[label]) - sum(p[j] * np.log(rest[j]) for j in range(len(p)) if j != label))


def copied_modified_entropy(logits, labels) -> np.ndarray:
    """What widely copied code amounts to: log p for log(1 − p), and each label of the batch treated as the label of every row."""
    rows = []
    for row in logits:
        p = [float(q) for q in softmax(row)]
        rows.append(sum((1 - q if j in set(labels.tolist()) else q) * -math.log(max(q, 1e-30)) for j, q in enumerate(p)))
    return np.array(rows)


def jsd(logits_a, logits_b) -> float:
    p, q = softmax(logits_a), softmax(logits_b)
    m = (p + q) / 2
    kl = [float(sum(x * np.log(x / y) for x, y in zip(r, m, strict=True) if x > 0)) for r in (p, q)]
    return (kl[0] + kl[1]) / 2


def taylor_softmax(logits, label: int, temperature=2.0, order=3, soft_margin=0.6) -> float:
    def t(z):
        return sum(z**i / math.factorial(i) for i in range(order + 1))

    z = [float(x) / temperature for x in logits]
    own = t(z[label] - soft_margin)
    return own / (own + sum(t(z[j]) for j in range(len(z)) if j != label))


def lira(target, shadow, included, variance="shrunk", online=True, *, prior_weight=10.0) -> np.ndarray:
    n_samples = len(target)
    groups = {
        side: [[s for s, inc in zip(shadow[:, i], included[:, i], strict=True) if inc == side] for i in range(n_samples)]
        for side in (True, False)
    }
    fits = {}
    for side in (True, False) if online else (False,):
        scatter = [sum((s - np.mean(g)) ** 2 for s in g) for g in groups[side]]
        pooled = sum(scatter) / sum(len(g) - 1 for g in groups[side])
        fits[side] = []
        for g, ss in zip(groups[side], scatter, strict=True):
            own = ss / (len(g) - 1)
            shrunk = (prior_weight * pooled + (len(g) - 1) * own) / (prior_weight + len(g) - 1)
            fits[side].append((np.mean(g), math.sqrt({"per_example": own, "fixed": pooled, "shrunk": shrunk}[variance])))
    scores = []
    for i in range(n_samples):
        if online:
            scores.append(norm.logpdf(target[i], *fits[True][i]) - norm.logpdf(target[i], *fits[False][i]))
        else:
            scores.append((target[i] - fits[False][i][0]) / fits[False][i][1])
    return np.array(scores)


def rmia_log_ratio(target, shadow, included, online=True, offline_a=0.3) -> np.ndarray:
    ratios = []
    for i in range(len(target)):
        p_in = [math.exp(s) for s, inc in zip(shadow[:, i], included[:, i], strict=True) if inc]
        p_out = [math.exp(s) for s, inc in zip(shadow[:, i], included[:, i], strict=True) if not inc]
        p = (np.mean(p_in) + np.mean(p_out)) / 2 if online else ((1 + offline_a) * np.mean(p_out) + 1 - offline_a) / 2
        ratios.append(target[i] - math.log(p))
    return np.array(ratios)


def rmia_share(ratio, gamma: float, population=None) -> np.ndarray:
    """The pairwise comparison on plain ratios; without a population, against all other samples."""
    scores = []
    for i, r in enumerate(ratio):
        others = population if population is not None else [z for j, z in enumerate(ratio) if j != i]
        scores.append(np.mean([(r / z if z != 0 else math.copysign(math.inf, r) if r != 0 else math.nan) >= gamma for z in others]))
    return np.array(scores)


def leave_one_out(attack, shadow, included, drop_mates=True) -> np.ndarray:
    """An attack on each model by the others, one after the other."""
    rows = []
    for t in range(len(shadow)):
        kept = [m for m in range(len(shadow)) if m != t and not (drop_mates and (included[m] != included[t]).all())]
        rows.append(attack(shadow[t], shadow[kept], included[kept]))
    return np.stack(rows)


def halves(n_models: int, n_samples: int, seed: int = 0) -> torch.Tensor:
    """Who trained on what, bool (M, N), in complementary random halves: models 2k and 2k + 1 are complements."""
    first = torch.rand(n_models // 2, n_samples, generator=torch.Generator().manual_seed(seed)) < 0.5
    return torch.stack([first, ~first], 1).flatten(0, 1)


def dense(layer: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """The matrix of x ↦ f(x) − f(0), column by column, float64 (n_in, n_out)."""
    n, layer = torch.Size(shape).numel(), copy.deepcopy(layer).double().eval()
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    with torch.no_grad():
        return (layer(basis) - layer(torch.zeros_like(basis))).flatten(1)
