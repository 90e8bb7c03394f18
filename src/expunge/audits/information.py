"""What the audits of features, Probes and IDI, share: the samples they ask about, the index of information differences with its interval, and what is compared of all models."""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from scipy.special import stdtrit
from torch import Tensor

from ..data.split import Split
from ..errors import DataError
from ..metrics.answers import ONE_REFERENCE, half_width
from ..metrics.estimate import Estimate, check_level, unsupported
from ..rng import permutation
from .compared import ORIGINAL, Cast, difference, others_of, spread

LEAST = 16  # samples a side: 8 to fit on, in four folds of 2

Bits = Float[Tensor, "S N"]  # of N held-out samples, by S critics


def drawn_samples(split: Split, max_per_side: int, seed: int, who: str) -> tuple[Tensor, Bool[Tensor, " N"], Bool[Tensor, " N"]]:
    """Positions in the training set, ascending; which are forget samples; and which ones are for fitting.

    Args:
        who: how the message of an error begins, such as "probes need".

    Raises:
        DataError: fewer than 16 forget or retain samples.
    """
    sides = split.forget_indices, split.retain.positions
    n = min(*map(len, sides), max_per_side)
    if n < LEAST:
        raise DataError(
            f"{who} at least {LEAST} forget and {LEAST} retain samples; got {len(sides[0])} and {len(sides[1])}. A membership audit takes fewer."
        )
    chosen = [side[permutation(len(side), seed, k)[:n]] for k, side in enumerate(sides)]
    positions, order = torch.cat(chosen).sort()
    return positions, (torch.arange(2 * n) < n)[order], (torch.arange(n) < n // 2).repeat(2)[order]


def information_difference_index(own: Bits, original: Bits, retrained: Float[Tensor, "M S N"], level: float = 0.95) -> Estimate:
    """IDI = (mean of own − R) / (mean of original − R), R the mean of the retrained models, on the same N samples by critics of the same S seeds: not clamped.

    The interval is Fieller's, of a ratio of paired means: all ρ for which own − ρ · original − (1 − ρ) · R is not told from 0. It covers which samples were drawn, the seeds of critics where there are several (paired, as samples are;
    t with S − 1 degrees of freedom) and, with two or more retrained models, which ones they are; not the seed of the audited model, so read it beside the floor of IDI. It has two ends exactly
    where the denominator is told from 0; elsewhere there is no value.

    Args:
        own, original: bits of each held-out sample by each critic, summed over layers.
        retrained: the same of M ≥ 1 retrained models.
        level: confidence in (0, 1).

    Example:
        >>> original = torch.linspace(0.5, 1.5, 100).double().repeat(2, 1)
        >>> print(information_difference_index(-0.25 * original + 0.1, original, torch.zeros(1, 2, 100).double()))
        -0.150 [-0.155, -0.144]
    """
    upper, (s, n), m = (1 + check_level(level)) / 2, own.shape, len(retrained)
    rest = retrained.double().mean(0)
    pair = torch.stack([own.double() - rest, original.double() - rest])
    a, b = pair.mean((1, 2)).tolist()
    error = torch.cov(pair.mean(1)) * NormalDist().inv_cdf(upper) ** 2 / n
    among = 0.0
    if s > 1:
        error += torch.cov(pair.mean(2)) * float(stdtrit(s - 1, upper)) ** 2 / s
    if m > 1:
        among = float(stdtrit(m - 1, upper)) ** 2 * float(retrained.double().mean((1, 2)).var()) / m
    (saa, sab), (_, sbb) = error.tolist()
    q2, q1, q0 = b * b - sbb - among, a * b - sab - among, a * a - saa - among
    if b <= 0 or q2 <= 0:
        return unsupported(
            f"the original cannot be told from retrained models: {b:.3f} bits more, ± {math.sqrt(max(0.0, sbb + among)):.3f}", n
        )
    reach = math.sqrt(max(0.0, q1 * q1 - q2 * q0))
    low, high = sorted(((q1 - reach) / q2, (q1 + reach) / q2))
    return Estimate(a / b, min(low, a / b), max(high, a / b), n, None if m > 1 else ONE_REFERENCE)


class ModelInformation(NamedTuple):
    """One model: bits of each layer, and less those of retrained models (none for the only retrained model); the index, over all critics and by each one."""

    model: str
    information: tuple[Estimate, ...]
    differences: tuple[Estimate, ...]
    idi: Estimate
    by_critic: tuple[float, ...]


class ComparedInformation(NamedTuple):
    """All models, and what chance alone does to one more retrained one: at each layer, and to the index."""

    rows: list[ModelInformation]
    total: Estimate
    floors: tuple[Estimate, ...]
    index_floor: Estimate


def compared_information(bits: Float[Tensor, "T L S N"], parts: Cast, level: float) -> ComparedInformation:
    """Each model beside the retrained ones (a retrained model beside the others), from the bits of L layers by S critics on N held-out samples; models in the order of `parts.named`."""
    names, n, layers = list(parts.named), bits.shape[3], range(bits.shape[1])
    of, first = dict(zip(names, bits, strict=True)), len(names) - len(parts.retrained)
    retrained, original = bits[first:], of[ORIGINAL].sum(0)
    rows = []
    for name, own in of.items():
        peers = retrained[[k for k in range(len(retrained)) if names[first + k] != name]]
        gaps: tuple[Estimate, ...] = ()
        by_critic: tuple[float, ...] = ()
        index = unsupported("the only retrained model is the yardstick", n)
        if len(peers):
            gaps = tuple(difference(own[k].mean(0), peers[:, k].mean(1), level) for k in layers)
            index = information_difference_index(own.sum(0), original, peers.sum(1), level)
            rest = peers.sum(1).mean((0, 2))
            by_critic = tuple(((own.sum(0).mean(1) - rest) / (original.mean(1) - rest)).tolist()) if index.supported else ()
        rows.append(ModelInformation(name, tuple(_mean(own[k], level) for k in layers), gaps, index, by_critic))
    means = retrained.mean((2, 3))
    floors = tuple(spread([abs(float(one[k] - rest[:, k].mean())) for one, rest in others_of(means)]) for k in layers)
    total = difference(original.mean(0), retrained.sum(1).mean(1), level)
    if rows[0].idi.supported:  # of the original
        floor = spread([float(one.sum() - rest.sum(1).mean()) / total.value for one, rest in others_of(means)])
    else:
        floor = unsupported("the original cannot be told from retrained models", n)
    return ComparedInformation(rows, total, floors, floor)


def _mean(bits: Bits, level: float) -> Estimate:
    value, (critics, n) = float(bits.mean()), bits.shape
    among = float(bits.mean(1).var()) / critics if critics > 1 else 0.0
    reach = half_width(float(bits.mean(0).var()) / n, among, critics, level)
    return Estimate(value, value - reach, min(1.0, value + reach), n)
