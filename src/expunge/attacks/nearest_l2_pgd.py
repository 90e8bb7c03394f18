"""The nearest adversarial example by projected gradient ascent in a ball that doubles until it holds one (AMUN, Algorithm 1)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..checks import setting
from .active_set import ActiveSet, column, project
from .base import NearestAttack


@final
@dataclass(frozen=True, kw_only=True)
class NearestL2PGD(NearestAttack):
    """Walks uphill on the loss inside an L2 ball around the image; if `steps` steps find no other label, the radius ε doubles.

        ε ← ε_init
        repeat:  steps times:  x' ← clamp(P_ε(x' + step_ratio · ε · ∇L / ‖∇L‖₂), 0, 1);  stop at the first x' with argmax f(x') ≠ y
                 ε ← 2ε

    Use when: you need AMUN's D_A. Cost: by the paper, fewer than 150 forward and backward passes a sample for
    CIFAR-10 models; half of the last ball's steps are spared where the border is crossed early.

    Args:
        eps_init: first radius, L2 over the whole image in [0, 1], > 0. Paper: 0.04 for CIFAR-10.
        steps: steps before the radius doubles, ≥ 1. Paper: 50.
        step_ratio: length of a step as a fraction of the radius, in (0, 1]. Paper: 0.1.
        max_doublings: give up after this many, ≥ 0; 12 is a radius of 164. Paper: no limit.
        early_stop: take the first misclassified iterate (the authors' code), instead of taking all `steps` steps and checking then.
        restart: go back to x when the radius doubles, instead of going on from the last iterate (the authors' code).
        batch_size: samples at work at the same time, ≥ 1.
        bisections: halvings of the segment from x to the result, ≥ 0. Authors: 0. 5 of them cost 5 forward passes a sample.

    Raises:
        ConfigError: a setting is outside its range.

    Flags: AdversarialSearchFailed, ZeroGradients, InputsOutsideUnitRange.

    Paper: Ebrahimpour-Boroojeny et al., "Not All Wrong is Bad: Using Adversarial Examples for Unlearning", ICML 2025, arXiv:2503.00917,
    Algorithm 1.
    Departures: ascends the negative logit margin, whose normalised gradient is that of the cross-entropy but does not vanish; nothing is
    added to the gradient's length; the ball is smaller by the rounding error of a pixel, so that stored images lie in it.
    Example:
        >>> NearestL2PGD(steps=5)
        NearestL2PGD(eps_init=0.04, steps=5, step_ratio=0.1, max_doublings=12, early_stop=True, restart=False, batch_size=256, bisections=0)
    """

    name: ClassVar[str] = "nearest_l2_pgd"
    paper: ClassVar[str] = "Ebrahimpour-Boroojeny et al. 2025, arXiv:2503.00917"
    passes: ClassVar[float] = 78

    eps_init: float = setting(0.04, gt=0)
    steps: int = setting(50, ge=1)
    step_ratio: float = setting(0.1, gt=0, le=1)
    max_doublings: int = setting(12, ge=0, le=60)
    early_stop: bool = setting(True)
    restart: bool = setting(False)
    batch_size: int = setting(256, ge=1)
    bisections: int = setting(0, ge=0, le=20)

    def begin(self, rows: ActiveSet) -> None:
        rows.radius = torch.full_like(rows.radius, self.eps_init)
        rows.taken = torch.zeros_like(rows.y)
        rows.doublings = torch.zeros_like(rows.y)

    def step(self, rows: ActiveSet, wrong: Tensor, uphill: Tensor) -> Tensor:
        last = rows.taken == self.steps
        hit = wrong if self.early_stop else wrong & last
        rows.keep(hit)
        failed = last & ~wrong & (rows.doublings == self.max_doublings)
        grow = last & ~wrong & ~failed
        rows.radius = torch.where(grow, 2 * rows.radius, rows.radius)
        rows.doublings = rows.doublings + grow
        # The pass that showed the last step to be in vain has the gradient for the first step in the larger ball. After a restart it is of
        # no use there.
        back = grow & self.restart
        rows.taken = torch.where(grow, 0, rows.taken) + ~back
        moved = project(rows.point + column(self.step_ratio * rows.radius) * uphill, rows.x, rows.radius)
        rows.point = torch.where(column(failed), rows.point, torch.where(column(back), rows.x, moved))
        return hit | failed
