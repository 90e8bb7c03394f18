"""Products with the matrix of per-sample gradients G (m, P) that never store it: sums Gᵀw in backward passes, slopes Gv in forward ones, and F⁻¹v from both.

P counts all trainable parameters, flat, in `named_parameters`' order. G is of cross-entropies in eval mode, on un-augmented images.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional

from ..costs import count
from ..data.images import Samples
from ..data.mixture import Batch, Mixture
from ..device import device_of, exact
from ..errors import ConfigError
from .per_sample import trainable

COLUMNS = 2**16  # of G, at a time in float64


def gradient_sum(model: nn.Module, samples: Samples, weights: Tensor | None = None, *, batch_size: int = 256) -> Tensor:
    """Gᵀw = Σ_i w_i ∇ℓ_i, float32 (P,) on the model's device; weights (m,), None = 1 each. Cost: one pass over the samples."""
    parameters = trainable(model)
    total = torch.zeros(sum(p.numel() for p in parameters.values()), device=device_of(model))
    for batch, rows in _batches(model, samples, batch_size):
        losses = functional.cross_entropy(model(batch.images).float(), batch.labels, reduction="none")
        loss = losses.sum() if weights is None else losses @ weights[rows].to(losses)
        total += flat(torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True))
        count(batch.ids, forward=1, backward=1)
    return total


def gradient_slopes(model: nn.Module, samples: Samples, direction: Tensor, *, batch_size: int = 256) -> Tensor:
    """Gv, float32 (m,) on the model's device: how fast each sample's loss changes along a direction (P,), by forward-mode differentiation.

    Cost: one pass over the samples (a forward pass, and a derivative that takes two).
    """
    parameters = {name: p.detach() for name, p in trainable(model).items()}
    tangents = unflat(direction, parameters)
    slopes = []
    for batch, _ in _batches(model, samples, batch_size):

        def losses(parameters: dict[str, Tensor], batch: Batch = batch) -> Tensor:
            logits = functional_call(model, parameters, (batch.images,)).float()
            return functional.cross_entropy(logits, batch.labels, reduction="none")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch compiles its rules at the first call, in a way that it calls old itself
            slopes.append(jvp(losses, (parameters,), (tangents,))[1])
        count(batch.ids, forward=1, backward=1)
    return torch.cat(slopes)


def inverse_by_woodbury(vector: Tensor, rows: Tensor, damping: float) -> Tensor:
    """(λI + GᵀG/m)⁻¹ v = (v − Gᵀ(λI_m + GGᵀ/m)⁻¹ Gv/m) / λ, exactly; float32 (P,).

    Args:
        vector: v, (P,).
        rows: G, (m, P).
        damping: λ > 0.

    In float64, some columns at a time: along the gradients themselves v and what is taken from it nearly cancel.
    """
    m = len(rows)
    kernel, slopes = torch.zeros(m, m, dtype=torch.float64, device=rows.device), torch.zeros(m, dtype=torch.float64, device=rows.device)
    for narrow, v in zip(rows.split(COLUMNS, 1), vector.split(COLUMNS), strict=True):
        part = narrow.double()
        kernel += part @ part.T
        slopes += part @ v.double()
    kernel = kernel / m + damping * torch.eye(m, dtype=torch.float64, device=rows.device)
    weights = torch.linalg.solve(kernel, slopes) / m
    parts = zip(rows.split(COLUMNS, 1), vector.split(COLUMNS), strict=True)
    return torch.cat([((v.double() - part.double().T @ weights) / damping).float() for part, v in parts])


def inverse_by_conjugate_gradients(
    vector: Tensor, product: Callable[[Tensor], Tensor], damping: float, *, iterations: int, tolerance: float = 1e-4
) -> Tensor:
    """(λI + A)⁻¹ v for a symmetric A ≥ 0 that is known by its products alone, float32 (P,).

    Args:
        vector: v, (P,).
        product: u ↦ Au, float32.
        damping: λ > 0.
        iterations: at most; each costs one product. With A of rank m, m + 1 would do in exact arithmetic.
        tolerance: stop where the residual has this length relative to v.

    Raises:
        ConfigError: the residual is still above a hundred times the tolerance after all iterations.
    """
    solution, residual = torch.zeros_like(vector, dtype=torch.float64), vector.double()
    direction, length = residual, residual @ residual
    goal = tolerance**2 * length
    for _ in range(iterations):
        if length <= goal:
            return solution.float()
        image = damping * direction + product(direction.float()).double()
        step = length / (direction @ image)
        solution, residual = solution + step * direction, residual - step * image
        before, length = length, residual @ residual
        direction = residual + length / before * direction
    if length > 1e4 * goal:
        raise ConfigError(
            f"conjugate gradients must bring the residual below {100 * tolerance:g} of v; got {float((length / goal).sqrt()) * tolerance:.2g} "
            f"after {iterations} iterations. Allow more, or raise the damping ({damping:g})."
        )
    return solution.float()


def flat(tensors: dict[str, Tensor] | tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """All numbers of the tensors as one vector."""
    return torch.cat([t.flatten() for t in (tensors.values() if isinstance(tensors, dict) else tensors)])


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vector (P,) as tensors of these names and shapes; views of it."""
    parts = vector.split([t.numel() for t in like.values()])
    return {name: part.view(t.shape) for (name, t), part in zip(like.items(), parts, strict=True)}


def _batches(model: nn.Module, samples: Samples, batch_size: int) -> Iterator[tuple[Batch, slice]]:
    """The samples in batches, un-augmented, with the model in eval mode meanwhile; and which samples they are."""
    mixture = Mixture([samples], device_of(model), augment=False)
    with exact(model):
        for k, batch in enumerate(mixture.epoch(torch.arange(len(samples)).split(batch_size), 0)):
            yield batch, slice(k * batch_size, (k + 1) * batch_size)
