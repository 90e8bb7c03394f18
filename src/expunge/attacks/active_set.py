"""The samples that an attack is working on, and what one pass through the model tells about them.

Some samples need 5 steps and some 500. Each row here is one sample with its own counters; when it is finished, another takes its place, so
that the model always sees a full batch.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..costs import count
from ..errors import ModelError
from ..types import Images, Labels, Logits, Scores


class ActiveSet(SimpleNamespace):
    """Named tensors with one row for each sample at work. Attacks add counters of their own as further names.

    Attributes:
        positions: int64 (B,), where the sample stands in the data.
        ids: int64 (B,), the sample's id, for randomness that does not depend on order.
        x: float32 (B, C, H, W), the image itself.
        y: int64 (B,), its true label.
        point: float32 (B, C, H, W), where the model is evaluated next.
        best: float32 (B, C, H, W), the result so far; `keep` sets it.
        found: bool (B,), whether there is a result.
        radius: float32 (B,), L2 radius that the search is confined to; inf = none.
        wants_gradient: bool (B,), whether the next pass has to go backward as well.
        passes: int64 (B,), forward passes spent so far.
    """

    best: Tensor
    found: Tensor

    @classmethod
    def of(cls, positions: Labels, ids: Labels, x: Images, y: Labels) -> "ActiveSet":
        # Copies, because `put` writes into these tensors.
        positions, ids, x, y = positions.clone(), ids.clone(), x.clone(), y.clone()
        false, zero = torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y)
        return cls(
            positions=positions, ids=ids, x=x, y=y, point=x.clone(), best=x.clone(), found=false, wants_gradient=~false, passes=zero,
            radius=torch.full_like(zero, torch.inf, dtype=torch.float32),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.y)

    def keep(self, chosen: Tensor) -> None:
        """Makes the present point the result of the chosen rows, bool (B,)."""
        self.best = torch.where(column(chosen), self.point, self.best)
        self.found = self.found | chosen

    def take(self, rows: Tensor) -> "ActiveSet":
        """These rows, by number or mask, as a set of their own."""
        return ActiveSet(**{name: values[rows] for name, values in vars(self).items()})

    def put(self, rows: Tensor, others: "ActiveSet") -> None:
        """Other samples in the place of these rows."""
        for name, values in vars(others).items():
            getattr(self, name)[rows] = values


def refill(rows: ActiveSet, finished: Tensor, todo: Tensor, enter: Callable[[Tensor], ActiveSet]) -> tuple[ActiveSet, Tensor]:
    """The rows with fresh samples in the place of finished ones, or without these where none are left; and what is still to do.

    Args:
        finished: bool (B,).
        todo: what waits, (M,), in any numbering that `enter` understands; it makes rows of some of it.
    """
    slots = finished.nonzero().flatten()
    fresh, todo = todo[: len(slots)], todo[len(slots) :]
    if len(fresh):
        rows.put(slots[: len(fresh)], enter(fresh))
    if len(fresh) < len(slots):
        stay = ~finished
        stay[slots[: len(fresh)]] = True
        rows = rows.take(stay)
    return rows, todo


def look(model: nn.Module, rows: ActiveSet) -> tuple[Tensor, Images]:
    """The model's answers at every row's point, int64 (B,), and the direction (L2 length 1) in which its loss rises fastest.

    One forward pass serves both. The direction is zero where it is not wanted and where the gradient is exactly zero.
    """
    answers, uphill = torch.empty_like(rows.y), torch.zeros_like(rows.point)
    for gradient in (True, False):
        chosen = (rows.wants_gradient == gradient).nonzero().flatten()
        if len(chosen) == 0:
            continue
        count(rows.ids[chosen], forward=1, input_gradients=int(gradient))
        with torch.set_grad_enabled(gradient):
            points = rows.point[chosen].requires_grad_(gradient)
            logits = finite(model(points))
            if gradient:
                # The sum, not the mean: a sample's gradient must not depend on how many others are in the batch.
                uphill[chosen] = unit(-torch.autograd.grad(margin(logits, rows.y[chosen]).sum(), points)[0])
        answers[chosen] = logits.detach().argmax(1)
    return answers, uphill


def margin(logits: Logits, labels: Labels) -> Scores:
    """φ = z_y − log Σ_{j≠y} exp z_j, (N,); negative where a wrong class has the largest logit.

    Cross-entropy is log(1 + exp(−φ)), so its gradient is −sigmoid(−φ) ∇φ: after division by its length, exactly that of −φ. But on images
    that the model is sure of, sigmoid(−φ) rounds to zero in float32 from φ ≈ 100 on, and much earlier to something too small to divide by;
    ∇φ does not fade.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return logits.gather(1, labels[:, None]).squeeze(1) - others


def unit(vectors: Images) -> Images:
    """Every image scaled to L2 length 1; zero where it is zero."""
    # Dividing by the largest element first keeps the squares of very small gradients from rounding to zero.
    scaled = vectors / column(vectors.abs().amax((1, 2, 3)))
    return torch.where(scaled.isfinite(), scaled, 0).div_(column(length(scaled).nan_to_num(1.0)))


def project(points: Images, x: Images, radius: Scores) -> Images:
    """The points, moved into the L2 ball of this radius around x and then into [0, 1]."""
    # Adding the change to x rounds every pixel by up to 2⁻²⁵; the ball is made smaller by the length of that error, so that the stored
    # image lies inside the true one.
    room = (radius - 2**-25 * x[0].numel() ** 0.5).maximum(radius / 2)
    change = points - x
    return (x + change * column((room / length(change)).clamp(max=1))).clamp_(0, 1)


def length(vectors: Images) -> Scores:
    """L2 norm of every image, (N,)."""
    return torch.linalg.vector_norm(vectors, dim=(1, 2, 3))


def column(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1), to be combined with images."""
    return values[:, None, None, None]


def finite(logits: Logits) -> Logits:
    """The logits, or ModelError where they are NaN or infinite."""
    if not logits.isfinite().all():
        raise ModelError(
            f"the model must give finite logits on every image in [0, 1]; got {int((~logits.isfinite()).sum())} NaN or infinite values "
            "near a training image. Check the weights, and that the model divides by nothing that can be zero."
        )
    return logits
