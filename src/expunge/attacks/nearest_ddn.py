"""The nearest adversarial example by decoupling the direction and the norm of the change (Rony et al. 2019)."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..checks import setting
from .active_set import ActiveSet, column, length
from .base import NearestAttack


@final
@dataclass(frozen=True, kw_only=True)
class NearestDDN(NearestAttack):
    """Turns a change δ towards a wrong label while its norm shrinks after a success and grows after a failure; keeps the shortest success.

        for k = 0 … steps:  if x' is misclassified: keep it if it is the nearest yet;  ε ← (1 − γ)ε,  else ε ← (1 + γ)ε
                            δ ← (x' − x) + α_k ∇L / ‖∇L‖₂,   x' ← clamp(x + ε δ / ‖δ‖₂, 0, 1),   α_k from 1 to 0.01 by a cosine

    Use when: the distance matters more than parity with AMUN's code. Cost: steps + 1 forward and backward passes a sample, always.

    Args:
        steps: iterations, ≥ 1. Paper: 100 to 1000; 50 finds most of what they find.
        init_norm: first ε, L2 over the whole image in [0, 1], > 0. Paper: 1.
        gamma: relative change of ε after an iteration, in (0, 1). Paper: 0.05.
        batch_size: samples at work at the same time, ≥ 1.
        bisections: halvings of the segment from x to the result, ≥ 0.

    Raises:
        ConfigError: a setting is outside its range.

    Flags: AdversarialSearchFailed, ZeroGradients, InputsOutsideUnitRange.

    Paper: Rony et al., "Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses", CVPR 2019,
    arXiv:1811.09600.
    Departures: no rounding to 256 grey levels; ascends the negative logit margin instead of the cross-entropy (the same direction); a
    sample stops where its gradient is zero, instead of taking a random direction.
    Example:
        >>> NearestDDN(steps=100)
        NearestDDN(steps=100, init_norm=1.0, gamma=0.05, batch_size=256, bisections=0)
    """

    name: ClassVar[str] = "nearest_ddn"
    paper: ClassVar[str] = "Rony et al. 2019, arXiv:1811.09600"
    passes: ClassVar[float] = 34

    steps: int = setting(50, ge=1)
    init_norm: float = setting(1.0, gt=0)
    gamma: float = setting(0.05, gt=0, lt=1)
    batch_size: int = setting(256, ge=1)
    bisections: int = setting(0, ge=0, le=20)

    def begin(self, rows: ActiveSet) -> None:
        rows.taken = torch.zeros_like(rows.y)
        rows.norm = torch.full_like(rows.radius, self.init_norm)
        rows.shortest = torch.full_like(rows.radius, torch.inf)

    def step(self, rows: ActiveSet, wrong: Tensor, uphill: Tensor) -> Tensor:
        change = rows.point - rows.x
        distance = length(change)
        shorter = wrong & (distance < rows.shortest)
        rows.keep(shorter)
        rows.shortest = torch.where(shorter, distance, rows.shortest)
        rows.norm = rows.norm * torch.where(wrong, 1 - self.gamma, 1 + self.gamma)
        rate = 0.01 + 0.99 * (1 + torch.cos(math.pi * rows.taken / self.steps)) / 2
        direction = change + column(rate) * uphill
        moved = (rows.x + direction * column(rows.norm / length(direction).clamp(min=1e-12))).clamp_(0, 1)
        last = rows.taken == self.steps
        rows.point = torch.where(column(last), rows.point, moved)
        rows.taken = rows.taken + 1
        return last
