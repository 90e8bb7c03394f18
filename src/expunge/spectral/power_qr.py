"""The largest singular values of linear maps, by products with AᵀA alone (PowerQR), and with a memory that needs far fewer of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ModelError


class Singular(NamedTuple):
    """Values (L, b), largest first; right vectors v (L, b, n), orthonormal; AᵀAv (L, b, n), the better start for another search; residuals
    ‖AᵀAv − σ²v‖ (L, b); how many products with a block."""

    values: Tensor
    right: Tensor
    pushed: Tensor
    residuals: Tensor
    products: int

    def put(self, which: Tensor, others: "Singular") -> "Singular":
        """These, with those of `others` in the place of the maps at these numbers."""
        tensors = (mine.index_copy(0, which, new) for mine, new in zip(self[:4], others[:4], strict=True))
        return Singular(*tensors, self.products + others.products)

    @property
    def half_widths(self) -> Tensor:
        """(L, k), within which some singular value lies: ‖AᵀAv − σ²v‖ = ε puts some σᵢ² within ε of σ², so |σᵢ − σ| ≤ ε / (σᵢ + σ) ≤ ε / σ, and ≤ √ε."""
        smallest = torch.finfo(self.values.dtype).tiny
        return torch.minimum(self.residuals / self.values.clamp(min=smallest), self.residuals.sqrt())


def power_qr(
    gram: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    wanted: int,
    memory: int,
    tolerance: float = 0.0,
    products: int = 100,
    least: int = 1,
) -> Singular:
    """The b largest singular values of L maps at once, from any start of b vectors.

        Q ← qr(start)
        repeat:  H = QᵀGQ;  θ, Y = its eigenpairs;  X = Q Y[:, :b];  R = GX − Xθ      G = AᵀA, by a forward pass and a vector-Jacobian product
                 stop if ‖R‖ ≤ tolerance · θ₁  (half widths within tolerance · σ₁)
                 Q ← qr[Q, R], or [the best half of QY, R] where that is more than `memory` vectors

    With memory = b this is subspace iteration, PowerQR. Each product with a remembered block costs the same and is worth more: on the real
    convolutions of a CIFAR-10 ResNet 30 to 60 products reach a relative error of 1e-4 that takes PowerQR several hundred (docs/results/spectral.md).

    Args:
        gram: (L, n, b) → (L, n, b), products with AᵀA. It is called with b columns, but with all n where n ≤ memory: that is exact.
        start: (L, n, b), random columns, or those found before. A start of exact singular vectors stays there: add a random one.
        wanted: how many of the values must be within the tolerance, 1 to b.
        memory: columns held, ≥ 2 b.
        tolerance: stop when their half widths are at most this share of σ₁.
        products: stop after so many calls of `gram`. least: not before so many: singular vectors in the start hide larger ones from the residuals.

    Cost: each product is one forward and one backward pass (inputs only) of b vectors through the layer.
    Papers: Ebrahimpour-Boroojeny et al., "Spectrum Extraction and Clipping for Implicitly Linear Layers", AISTATS 2024, arXiv:2402.16017; with
    memory: Wu and Simon, "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems", SIAM J. Matrix Anal. Appl. 22 (2000).
    Departures: Rayleigh quotients in place of the diagonal of R, whose sign the authors' code loses, and no shift by the identity, which slows.
    """
    n, b = start.shape[1:]
    if n <= max(memory, b):
        start = torch.eye(n, dtype=start.dtype, device=start.device).expand(len(start), n, n)
    basis = torch.linalg.qr(start).Q
    images, done = gram(basis), 1
    while True:
        theta, turn = _eigen(basis.mT @ images)
        right, pushed = basis @ turn[..., :b], images @ turn[..., :b]
        rest = pushed - right * theta[:, None, :b]
        residuals = torch.linalg.vector_norm(rest, dim=1)
        found = Singular(theta[:, :b].clamp(min=0).sqrt(), right.mT, pushed.mT, residuals, done)
        close = bool((found.half_widths[:, :wanted] <= tolerance * found.values[:, :1]).all())
        if done >= products or basis.shape[2] == n or (close and done >= least):
            return found
        if basis.shape[2] + b > memory:
            best = turn[..., : max(b, (memory - b) // 2)]
            basis, images = basis @ best, images @ best
        new = _orthonormal_to(basis, rest)
        basis, images, done = torch.cat([basis, new], 2), torch.cat([images, gram(new)], 2), done + 1


def _eigen(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and vectors of small symmetric matrices; on the CPU in float64, where it is fast and exact."""
    small = matrices.to("cpu", torch.float64)
    if not small.isfinite().all():
        raise ModelError(
            "weights and the squares of a layer's singular values must be finite; got NaN or infinite products. "
            "Did training diverge? Look for weights that are NaN, or call .double() on a copy."
        )
    theta, turn = torch.linalg.eigh((small + small.mT) / 2)
    return theta.flip(-1).to(matrices), turn.flip(-1).to(matrices)


def _orthonormal_to(basis: Tensor, new: Tensor) -> Tensor:
    """Orthonormal columns for `new`, orthogonal to the basis.

    Three passes: what is left of a column that the basis holds already is rounding error, and only the passes after it make that orthogonal too.
    """
    for _ in range(3):
        new = torch.linalg.qr(new - basis @ (basis.mT @ new)).Q
    return new
