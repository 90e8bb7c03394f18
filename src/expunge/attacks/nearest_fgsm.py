"""A near adversarial example on a straight line: the sign of one gradient, walked along until the label changes."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..checks import setting
from ..rng import seed_setting, uniform
from ..types import Images
from .active_set import ActiveSet, column
from .base import NearestAttack


@final
@dataclass(frozen=True, kw_only=True)
class NearestFGSM(NearestAttack):
    """Walks along the sign of the gradient in steps of eps; if that finds no other label, starts again from a slightly disturbed image.

        s ← sign ∇L(x);  x' ← clamp(x + k · eps · s, 0, 1) for k = 1 … steps, until argmax f(x') ≠ y
        else, up to `restarts` times, the same from clamp(x + u, 0, 1), u uniform in [−noise, noise]

    Use when: you want AMUN's weak attack, to see what a longer distance costs. Cost: one backward pass a sample and start, and as many
    forward passes as steps.

    Args:
        eps: step in every pixel (L∞), in (0, 1]. The paper's is not known; 0.002 is half a grey level of 256.
        steps: steps of one walk, ≥ 1; eps · steps is how far a pixel can go.
        restarts: walks after the first, ≥ 0.
        noise: largest disturbance of a pixel at a restart, in (0, 1].
        seed: decides the disturbances, in [0, 2**63), with the sample's id alone.
        batch_size: samples at work at the same time, ≥ 1.
        bisections: halvings of the segment from x to the result, ≥ 0.

    Raises:
        ConfigError: a setting is outside its range.

    Flags: AdversarialSearchFailed, ZeroGradients, InputsOutsideUnitRange.

    Paper: Ebrahimpour-Boroojeny et al., ICML 2025, arXiv:2503.00917, appendix ("FFGSM"), in words only: the numbers here are ours, and so
    is the choice to take the gradient anew at each disturbed image.
    Example:
        >>> NearestFGSM(eps=0.004)
        NearestFGSM(eps=0.004, steps=250, restarts=3, noise=0.01, seed=0, batch_size=256, bisections=0)
    """

    name: ClassVar[str] = "nearest_fgsm"
    paper: ClassVar[str] = "Ebrahimpour-Boroojeny et al. 2025, arXiv:2503.00917"
    passes: ClassVar[float] = 10

    eps: float = setting(0.002, gt=0, le=1)
    steps: int = setting(250, ge=1)
    restarts: int = setting(3, ge=0)
    noise: float = setting(0.01, gt=0, le=1)
    seed: int = seed_setting()
    batch_size: int = setting(256, ge=1)
    bisections: int = setting(0, ge=0, le=20)

    def begin(self, rows: ActiveSet) -> None:
        rows.taken = torch.zeros_like(rows.y)
        rows.walk = torch.zeros_like(rows.y)
        rows.start = rows.x.clone()
        rows.direction = torch.zeros_like(rows.x)

    def step(self, rows: ActiveSet, wrong: Tensor, uphill: Tensor) -> Tensor:
        rows.keep(wrong)
        rows.direction = torch.where(column(rows.taken == 0), uphill.sign(), rows.direction)
        last = (rows.taken == self.steps) & ~wrong
        failed = last & (rows.walk == self.restarts)
        again = last & ~failed
        if again.any():
            rows.walk = rows.walk + again
            rows.start[again] = self.disturbed(rows.x[again], rows.ids[again] * (self.restarts + 1) + rows.walk[again])
        rows.taken = torch.where(again, 0, rows.taken + 1)
        moved = (rows.start + column(rows.taken * self.eps) * rows.direction).clamp_(0, 1)
        rows.point = torch.where(column(failed), rows.point, torch.where(column(again), rows.start, moved))
        rows.wants_gradient = again
        return wrong | failed

    def disturbed(self, x: Images, counters: Tensor) -> Images:
        """The images with noise that is a function of (seed, sample, walk, pixel) alone."""
        pixels = torch.arange(x[0].numel(), device=x.device)
        draws = uniform(self.seed, ids=(counters[:, None] * len(pixels) + pixels).flatten(), high=2**24)
        return (x + self.noise * (draws.reshape(x.shape) / 2**23 - 1)).clamp_(0, 1)
