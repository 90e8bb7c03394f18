"""Projected gradient ascent within a fixed radius, in L2 or L∞: the usual measure of adversarial robustness (Madry et al. 2018)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from ..checks import setting
from ..data.images import Samples
from ..device import device_of
from ..progress import report
from ..rng import seed_setting, uniform
from ..types import Images, Labels
from .active_set import ActiveSet, column, look, refill, unit
from .bounded import NORMS, BoundedAttack, Tried

STAGE = "images within the radius"
MOST_WALKS = 1000


@final
@dataclass(frozen=True, kw_only=True)
class PGD(BoundedAttack):
    """Walks uphill on the loss within the ball of radius eps, and stops at the first image that the model gets wrong, or goes on to the end.

        x' ← x + u, u random in the ball (L∞: uniform; L2: uniform on the sphere), or x' ← x
        steps times:  x' ← clamp(P_ε(x' + step_ratio · ε · d), 0, 1),   d = sign ∇L (L∞) or ∇L / ‖∇L‖₂ (L2)
        if no x' was wrong, up to `restarts` times the same from another random u

    Use when: you need the accuracy within a given radius, or the numbers of a paper with PGD. A walk heads for the class that is ahead
    where it starts; what lies nearer in another direction it can miss, and AutoAttack, with its targets, finds more. Cost: up to steps + 1
    forward and steps backward passes a sample and walk; samples that are fooled leave the batch, and others take their place.

    Args:
        norm: "linf", eps is the largest change of a pixel; or "l2", over the whole image.
        eps: radius for images in [0, 1], > 0. 8/255 is usual for L∞ and CIFAR-10, 0.5 (128/255) for L2.
        steps: steps of a walk, ≥ 1. FastClip: 50. Madry: 7 to 100.
        step_ratio: length of a step as a fraction of eps, in (0, 2]. FastClip: 0.1. Madry: 2.5 / steps for MNIST, 0.25 for CIFAR-10.
        random_start: whether the first walk, too, starts at a random point; the walks after it always do.
        restarts: walks after the first, in [0, 1000), for samples that it has not fooled. More of them can only lower the robust accuracy;
            with 9, PGD found as many as AutoAttack on a small network for digits (L2, eps 0.5: 82 of 125 right; 1 walk: 87).
        seed: decides the random points, in [0, 2**63), with the sample's id and the number of the walk alone.
        early_stop: stop a walk at the first wrong image, which is all that robust accuracy needs; False = take all steps and keep the last wrong
            one, far behind the border, which fools other models more often (`transfer`).
        batch_size: samples at work at the same time, ≥ 1. Results do not depend on it, but for rounding.

    Raises:
        ConfigError: a setting is outside its range.

    Flags: ZeroGradients, InputsOutsideUnitRange.

    Paper: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083. Steps as in
    Ebrahimpour-Boroojeny et al., "Spectrum Extraction and Clipping for Implicitly Linear Layers" (FastClip), AISTATS 2024, arXiv:2402.16017.
    Departures: ascends the negative logit margin instead of the cross-entropy (the same direction, but it does not vanish); keeps the first
    wrong image instead of the last image, which cannot raise the robust accuracy; the ball is smaller by the rounding error of a pixel, so
    that stored images lie in it. FastClip's script attacks images that are already mean/std-normalised and clips these to [0, 1]; here eps
    is in units of the image, and Normalize belongs to the model.
    Example:
        >>> PGD(eps=0.5, norm="l2")
        PGD(norm='l2', eps=0.5, steps=50, step_ratio=0.1, random_start=True, restarts=0, seed=0, early_stop=True, batch_size=256)
    """

    name: ClassVar[str] = "pgd"
    paper: ClassVar[str] = "Madry et al. 2018, arXiv:1706.06083"

    norm: str = setting("linf", choices=NORMS)
    eps: float = setting(8 / 255, gt=0)
    steps: int = setting(50, ge=1)
    step_ratio: float = setting(0.1, gt=0, le=2)
    random_start: bool = setting(True)
    restarts: int = setting(0, ge=0, lt=MOST_WALKS)
    seed: int = seed_setting()
    early_stop: bool = setting(True)
    batch_size: int = setting(256, ge=1)

    def search(self, model: nn.Module, data: Samples, positions: Tensor, layout: torch.memory_format) -> Tried:
        return _Walks(self, model, data, positions, layout).run()

    def start(self, x: Images, ids: Labels, walk: Labels) -> Images:
        """A random image within the radius of each x, a function of (seed, sample, walk, pixel) alone."""
        pixels = torch.arange(x[0].numel(), device=x.device)
        counters = (ids * MOST_WALKS + walk)[:, None] * len(pixels) + pixels
        # Odd numbers over 2²³, less 1: exact in float32, and never −1 or 1, where the inverse of the error function is infinite.
        noise = (2 * uniform(self.seed, ids=counters.flatten(), high=2**23) + 1).reshape(x.shape).float() / 2**23 - 1
        direction = noise if self.norm == "linf" else unit(noise.erfinv())  # normal but for a factor: no direction is preferred
        return self.into_ball(x + self.eps * direction, x)

    def step(self, rows: ActiveSet, uphill: Images) -> Images:
        """Where one step along the gradient leads."""
        direction = uphill if self.norm == "l2" else uphill.sign()
        return self.into_ball(rows.point + self.step_ratio * self.eps * direction, rows.x)


class _Walks:
    """The walks of all samples at some positions: `batch_size` of them at a time, while there are enough."""

    def __init__(self, attack: PGD, model: nn.Module, data: Samples, positions: Tensor, layout: torch.memory_format) -> None:
        self.attack, self.model, self.data, self.positions, self.layout = attack, model, data, positions, layout
        self.device, n = device_of(model), len(positions)
        self.images, self.forward, self.backward = torch.empty(n, *data.shape), 0, 0
        self.found, self.blind = (torch.zeros(n, dtype=torch.bool) for _ in range(2))

    def run(self) -> Tried:
        n, size = len(self.positions), self.attack.batch_size
        todo = torch.arange(n)
        rows, todo = self.enter(todo[:size]), todo[size:]
        while len(rows):
            finished = self.advance(rows)
            if finished.any():
                self.leave(rows.take(finished))
                rows, todo = refill(rows, finished, todo, self.enter)
                report(STAGE, n - len(todo) - len(rows), n)
        return Tried(self.images, self.found, self.blind, self.forward, self.backward)

    def advance(self, rows: ActiveSet) -> Tensor:
        """One pass through the model, and each row's next point; returns which rows are finished, bool (B,)."""
        answers, uphill = look(self.model, rows)
        self.forward, self.backward = self.forward + len(rows), self.backward + int(rows.wants_gradient.sum())
        rows.keep(answers != rows.y)
        rows.blind = rows.wants_gradient & (uphill == 0).flatten(1).all(1)
        stopped = rows.blind | (rows.taken == self.attack.steps) | (rows.found & self.attack.early_stop)
        again = stopped & ~rows.found & (rows.walk < self.attack.restarts)
        finished = stopped & ~again
        rows.walk = rows.walk + again
        rows.taken = torch.where(again, 0, rows.taken + 1)
        rows.wants_gradient = rows.taken < self.attack.steps
        rows.point = torch.where(column(finished), rows.point, self.attack.step(rows, uphill))
        if again.any():
            rows.point[again] = self.attack.start(rows.x[again], rows.ids[again], rows.walk[again])
        return finished

    def enter(self, slots: Tensor) -> ActiveSet:
        at = self.positions[slots]
        x = self.data.fetch(at).to(self.device, memory_format=self.layout)
        rows = ActiveSet.of(slots.to(self.device), self.data.ids[at].to(self.device), x, self.data.labels[at].to(self.device))
        rows.walk, rows.taken, rows.blind = torch.zeros_like(rows.y), torch.zeros_like(rows.y), torch.zeros_like(rows.found)
        if self.attack.random_start:
            rows.point = self.attack.start(rows.x, rows.ids, rows.walk)
        return rows

    def leave(self, rows: ActiveSet) -> None:
        at = rows.positions.cpu()
        images = torch.where(column(rows.found), rows.best, rows.point)  # a later point may be right again
        self.images[at], self.found[at], self.blind[at] = images.cpu(), rows.found.cpu(), (rows.blind & ~rows.found).cpu()
