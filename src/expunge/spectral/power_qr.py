"""The largest singular values of linear maps, by products with AᵀA alone (PowerQR), and with a memory that needs far fewer of them."""

import itertools
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
        values, right, pushed, residuals = (mine.index_copy(0, which, new) for mine, new in zip(self[:4], others[:4], strict=True))
        return Singular(values, right, pushed, residuals, self.products + others.products)

    @property
    def half_widths(self) -> Tensor:
        """(L, k), within which some singular value lies: ‖AᵀAv − σ²v‖ = ε puts some σᵢ² within ε of σ², so |σᵢ − σ| ≤ ε / (σᵢ + σ) ≤ ε / σ, and ≤ √ε."""
        return _half_widths(self.values, self.residuals)


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

        X ← orthonormal(start)
        repeat:  Q ← [Q, X];  Z = GX;  C = QᵀZ: the last rows and columns of H = QᵀGQ      G = AᵀA, by a forward pass and a vector-Jacobian product
                 R = Z − QC;  θ, Y = eigenpairs of H: values √θ, vectors QY, and ‖G QY − QYθ‖ = ‖R Y[last rows]‖
                 stop if that is ≤ tolerance · θ₁                                         (half widths within tolerance · σ₁)
                 where Q is full: Q ← the best half of QY, H ← its θ
                 X ← orthonormal(R)

    Each product costs the same as one of PowerQR, which forgets, and is worth more: on the real convolutions of a CIFAR-10 ResNet 30 to 60
    products reach a relative error of 1e-4 that takes PowerQR several hundred (docs/results/README.md).

    Args:
        gram: (L, b, n) → (L, b, n), products with AᵀA. It is called with b vectors, but with all n where n ≤ memory: that is exact.
        start: (L, b, n), random vectors, or those found before. A start of exact singular vectors stays there: add a random one.
        wanted: how many of the values must be within the tolerance, 1 to b.
        memory: how many vectors Q holds; 2 b at least.
        tolerance: stop when their half widths are at most this share of σ₁.
        products: stop after so many calls of `gram`. least: not before so many: singular vectors in the start hide larger ones from the residuals.

    Cost: each product is one forward and one backward pass (inputs only) of b vectors through the layer.
    Papers: Ebrahimpour-Boroojeny et al., "Spectrum Extraction and Clipping for Implicitly Linear Layers", AISTATS 2024, arXiv:2402.16017; with
    memory: Wu and Simon, "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems", SIAM J. Matrix Anal. Appl. 22 (2000).
    Departures: Rayleigh quotients in place of the diagonal of R, whose sign the authors' code loses, and no shift by the identity, which slows.
    """
    maps, b, n = start.shape
    memory = max(memory, 2 * b)
    if n <= memory:
        return _exact(gram, start)
    store, h, m = start.new_empty(maps, memory, n), start.new_zeros(maps, memory, memory), 0
    new = torch.linalg.qr(start.mT).Q.mT
    for done in itertools.count(1):
        store[:, m : m + b], m = new, m + b
        basis, images = store[:, :m], gram(new)
        parts = images @ basis.mT
        h[:, m - b : m, :m], h[:, :m, m - b : m] = parts, parts.mT
        rest = torch.baddbmm(images, parts, basis, alpha=-1)
        if tolerance or done >= products or m + b > memory:
            theta, turn = _eigen(h[:, :m, :m])
            best, values = theta[:, :b, None], theta[:, :b].clamp(min=0).sqrt()
            outside = turn[:, m - b :, :b].mT @ rest
            residuals = torch.linalg.vector_norm(outside, dim=2) + torch.finfo(theta.dtype).eps * theta[:, :1]  # and what is rounded off
            close = bool((_half_widths(values, residuals)[:, :wanted] <= tolerance * values[:, :1]).all())
            if done >= products or (close and done >= least):
                right = turn[..., :b].mT @ basis
                return Singular(values, right, right * best + outside, residuals, done)
        if m + b > memory:
            m = max(b, (memory - b) // 2)
            store[:, :m] = turn[..., :m].mT @ basis
            h[:, :m, :m] = theta[:, :m].diag_embed()
        new = _orthonormal(rest, store[:, :m])
    raise AssertionError


def _exact(gram: Callable[[Tensor], Tensor], start: Tensor) -> Singular:
    """Of maps with so few inputs that one product with all of them tells everything."""
    maps, b, n = start.shape
    images = gram(torch.eye(n, dtype=start.dtype, device=start.device).expand(maps, n, n))
    theta, turn = _eigen(images)
    right, values = turn[..., :b].mT, theta[:, :b]
    pushed = right @ images
    residuals = torch.linalg.vector_norm(pushed - right * values[..., None], dim=2)
    return Singular(values.clamp(min=0).sqrt(), right, pushed, residuals, 1)


def _half_widths(values: Tensor, residuals: Tensor) -> Tensor:
    return torch.minimum(residuals / values.clamp(min=torch.finfo(values.dtype).tiny), residuals.sqrt())


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


def _orthonormal(new: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal vectors for `new`, (L, b, n), orthogonal to the basis (L, m, n).

    Twice: what is left of a vector that the basis holds already is rounding error, and only the second pass makes that orthogonal too.
    """
    for _ in range(2):
        new = torch.linalg.qr(torch.baddbmm(new, new @ basis.mT, basis, alpha=-1).mT).Q.mT
    return new
