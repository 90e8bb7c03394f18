"""CKA: how alike two models arrange the same images in the features of a layer, up to rotation and scale.

    CKA(X, Y) = HSIC(X, Y) / √(HSIC(X, X) · HSIC(Y, Y)),    X (N, d) and Y (N, d') the features of the same N images, linear kernels K = XXᵀ, L = YYᵀ

    biased      HSIC = ‖X_cᵀ Y_c‖²,    X_c, Y_c centred
    debiased    HSIC = Σ_{i≠j} K_ij L_ij + (1ᵀK̃1)(1ᵀL̃1) / ((N − 1)(N − 2)) − 2 · 1ᵀK̃L̃1 / (N − 2),    K̃, L̃ without diagonals (up to a factor)

With fewer images than dimensions the biased CKA of unrelated features is near 1; the debiased one is 0 on average. A model that was unlearned by a change of its last layer
only has a CKA of 1 to the original in all others: no audit of its answers can see that.

Paper: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, arXiv:1905.00414; Song et al., JMLR 2012 (the unbiased HSIC); Nguyen et al., ICLR 2021, arXiv:2010.15327.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DataError
from ..metrics.agreement import own_variance
from ..metrics.answers import ONE_REFERENCE, half_width
from ..metrics.estimate import Estimate, check_level, unsupported
from .compared import spread_of_gaps

LEAST_IMAGES = 5  # the debiased HSIC needs 4, and each is left out once
ROWS = 2**22  # numbers of a kernel held at a time: 32 MB
FLAT = "features do not vary from image to image in one of the models"


@final
@dataclass(frozen=True, eq=False)
class LayerSimilarity:
    """How alike a model and retrained models are in one layer, and how alike these are to one another.

    Attributes:
        to_retrained: mean CKA to a retrained model; 1 = the same arrangement of images.
        floor: mean CKA between two retrained models. n/a with one.
        gap: to_retrained − floor, signed, paired over images; 0 = like retraining, negative = less like retrained models than they are. n/a with one.
        gap_floor: the gap of each retrained model to the others, signed: their mean, and the smallest and the largest (no confidence interval). n/a with fewer than three.
        n_retrained: how many.
    """

    to_retrained: Estimate
    floor: Estimate
    gap: Estimate
    gap_floor: Estimate
    n_retrained: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: v.to_dict() if isinstance(v, Estimate) else v for k, v in self.__dict__.items()}

    def __str__(self) -> str:
        return f"CKA to {self.n_retrained} retrained models {self.to_retrained}, among them {self.floor}, gap {self.gap}"


def cka(x: Tensor, y: Tensor, *, debiased: bool = True, level: float = 0.95) -> Estimate:
    """The linear CKA of the features of two models on the same images, in [0, 1]; the debiased estimate may be a little below 0 or above 1.

    The interval covers which images were drawn (jackknife, each image left out once), not the seeds of the models.

    Args:
        x, y: (N, d) and (N, d') features, N ≥ 5. The feature maps of convolutions are averaged over the image first (`features_at` does).
        debiased: the estimate whose mean does not depend on N; the biased one is that of most papers.
        level: confidence in (0, 1).

    Raises:
        ConfigError: level is out of range.
        DataError: shapes do not fit, too few images, or a feature is NaN or infinite.

    Cost: O(N · d · d') or O(N² · (d + d')), whichever is less; memory for d × d' numbers, or for some rows of an N × N kernel.

    Example:
        >>> x = torch.randn(50, 100, generator=torch.Generator().manual_seed(0))
        >>> y = torch.randn(50, 100, generator=torch.Generator().manual_seed(1))
        >>> round(cka(x, 3 * x.flip(1) + 1).value, 6), round(cka(x, y, debiased=False).value, 1), abs(cka(x, y).value) < 0.1
        (1.0, 0.7, True)

    Departures: the interval.
    """
    (x, y), z = _checked([x, y]), NormalDist().inv_cdf((1 + check_level(level)) / 2)
    similarity = _similarity(x, y, _own(x, debiased), _own(y, debiased), debiased)
    if similarity is None:
        return unsupported(FLAT, len(x))
    reach = z * math.sqrt(_jackknife(similarity.without))
    return Estimate(similarity.value, similarity.value - reach, max(similarity.value, min(1.0, similarity.value + reach)), len(x))


def cka_to_retrained(
    features: Mapping[str, Tensor], references: Sequence[Mapping[str, Tensor]], *, debiased: bool = True, level: float = 0.95
) -> dict[str, LayerSimilarity]:
    """For each layer the CKA of a model to retrained models, beside the CKA between these. Call it on forget, retain and test images apart.

    Intervals cover images (jackknife, paired in the gap) and retrained models; for 95 % of models that are just one more retrained model that of the gap holds 0, see
    `expunge.metrics.agreement`. Not covered: that several layers are looked at.

    Args:
        features: (N, d) of the audited model, by name of the layer: `features_at(model, stages(model, images), images)`.
        references: the same of M ≥ 1 retrained models, with the same layers; d may differ. 3 or more for a full interval of the gap.
        debiased: as in `cka`.
        level: confidence in (0, 1).

    Raises:
        ConfigError: level is out of range.
        DataError: no layer or no retrained model, a layer is missing, or as in `cka`.

    Cost: M (M + 3) / 2 times `cka`, for each layer.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> shared = torch.randn(60, 8, generator=rng)
        >>> models = [{"body": shared + 0.5 * torch.randn(60, 8, generator=rng)} for _ in range(4)]
        >>> found = cka_to_retrained(models[0], models[1:])["body"]
        >>> found.gap.low < 0 < found.gap.high, cka_to_retrained({"body": shared.flip(0)}, models[1:])["body"].gap.high < -0.3
        (True, True)
    """
    check_level(level)
    missing = [name for one in references for name in features if name not in one]
    if not references or not features or missing:
        raise DataError(
            f"CKA needs the layers {list(features)} of at least one retrained model; got {len(references)} models"
            f"{f' and no {missing[0]!r} in one of them' if missing else ''}. Collect features with features_at(model, layers, images) of every model."
        )
    return {name: _layer([features[name], *(one[name] for one in references)], debiased, level) for name in features}


class _Hsic(NamedTuple):
    """HSIC of all images, and without each one, (N,)."""

    value: Tensor
    without: Float[Tensor, " N"]


class _Similarity(NamedTuple):
    value: float
    without: Float[Tensor, " N"]


def _layer(models: list[Tensor], debiased: bool, level: float) -> LayerSimilarity:
    models = _checked(models)
    n, m = len(models[0]), len(models) - 1
    own = [_own(x, debiased) for x in models]
    found = {(i, j): _similarity(models[i], models[j], own[i], own[j], debiased) for i, j in itertools.combinations(range(m + 1), 2)}
    pairs = {which: pair for which, pair in found.items() if pair is not None}
    if len(pairs) < len(found):
        flat = unsupported(FLAT, n)
        return LayerSimilarity(flat, flat, flat, flat, m)
    ours = [pairs[0, j] for j in range(1, m + 1)]
    value, without = sum(x.value for x in ours) / m, torch.stack([x.without for x in ours]).mean(0)
    spread = float(torch.tensor([x.value for x in ours]).var()) / m if m > 1 else 0.0
    to_retrained = _estimate(value, without, spread, m, level, ONE_REFERENCE if m == 1 else None)
    if m == 1:
        alone = unsupported("needs two retrained models, got 1", n)
        return LayerSimilarity(to_retrained, alone, alone, unsupported("needs three retrained models, got 1", 1), m)
    theirs, matrix = [pair for (i, _), pair in pairs.items() if i > 0], torch.zeros(m, m, dtype=torch.float64)
    for (i, j), pair in pairs.items():
        if i > 0:
            matrix[i - 1, j - 1] = matrix[j - 1, i - 1] = pair.value
    floor, floor_without = sum(x.value for x in theirs) / len(theirs), torch.stack([x.without for x in theirs]).mean(0)
    a, two = own_variance(matrix), "two retrained models: the interval leaves out how retrained models differ" if m == 2 else None
    return LayerSimilarity(
        to_retrained,
        _estimate(floor, floor_without, 4 * a / m, m, level, two),
        _estimate(value - floor, without - floor_without, a * (1 + 1 / m), m, level, two),
        spread_of_gaps(matrix),
        m,
    )


def _estimate(value: float, without: Tensor, models: float, n_models: int, level: float, note: str | None) -> Estimate:
    reach = half_width(_jackknife(without), models, n_models, level)
    return Estimate(value, value - reach, max(value, min(1.0, value + reach)), len(without), note)


def _jackknife(without: Tensor) -> float:
    n = len(without)
    return float(without.var()) * (n - 1) ** 2 / n


def _own(x: Tensor, debiased: bool) -> _Hsic:
    return _hsic(x, x, debiased)


def _similarity(x: Tensor, y: Tensor, own_x: _Hsic, own_y: _Hsic, debiased: bool) -> _Similarity | None:
    """None where the features of a model do not vary, or those of all images but one do not."""
    if min(float(own.value) for own in (own_x, own_y)) <= 0 or min(float(own.without.min()) for own in (own_x, own_y)) <= 0:
        return None
    both = _hsic(x, y, debiased)
    return _Similarity(float(both.value / (own_x.value * own_y.value).sqrt()), both.without / (own_x.without * own_y.without).sqrt())


def _hsic(x: Tensor, y: Tensor, debiased: bool) -> _Hsic:
    """Of centred features. Without image i, sums over pairs lose its row and column; the centred product loses n / (n − 1) · x_i y_iᵀ."""
    n, products = len(x), _row_sums(x, y)  # Σ_j K_ij L_ij
    k, ell = x.square().sum(1), y.square().sum(1)
    if not debiased:
        scale = n / (n - 1)
        value = products.sum()
        return _Hsic(value, value - 2 * scale * products + scale**2 * k * ell)
    # r and s: sums of the rows of K̃ and L̃; those of K and L are 0 in centred features
    t, r, s = products - k * ell, -k, -ell
    cross = (r * s).sum()
    left = (
        cross - r * s - (x @ (x.T @ s) - k * s) - (y @ (y.T @ r) - ell * r) + t
    )  # the same sum without image i, of whose rows K̃_ji is gone too
    return _Hsic(
        _unbiased(t.sum(), r.sum() * s.sum(), cross, n), _unbiased(t.sum() - 2 * t, (r.sum() - 2 * r) * (s.sum() - 2 * s), left, n - 1)
    )


def _unbiased(pairs: Tensor, squares: Tensor, cross: Tensor, n: int) -> Tensor:
    """n (n − 3) times the unbiased HSIC; divided, so that different n can be compared."""
    return (pairs + squares / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    """Σ_j (x_i·x_j)(y_i·y_j) for each i: through the d × d' product, or through blocks of rows of the two N × N kernels, whichever is less work."""
    n, d, e = len(x), x.shape[1], y.shape[1]
    if d * e <= n * (d + e):
        return ((x @ (x.T @ y)) * y).sum(1)
    return torch.cat([((a @ x.T) * (b @ y.T)).sum(1) for a, b in zip(x.split(max(1, ROWS // n)), y.split(max(1, ROWS // n)), strict=True)])


def _checked(models: list[Tensor]) -> list[Tensor]:
    """Centred and scaled to an average norm of 1, float64 on the CPU: CKA changes with neither."""
    n = len(models[0])
    for features in models:
        if features.ndim != 2 or features.shape[1] == 0 or not features.is_floating_point() or len(features) != n:
            raise DataError(
                f"features must be floating point (N, d) of the same N images for all models; got {features.dtype} of shape {tuple(features.shape)} "
                f"and N = {n}. Average feature maps over the image, as features_at does, or flatten them."
            )
        if not torch.isfinite(features).all():
            raise DataError(
                f"features must be finite; got {int((~torch.isfinite(features)).sum())} NaN or infinite. Check the model's weights."
            )
    if n < LEAST_IMAGES:
        raise DataError(f"CKA needs at least {LEAST_IMAGES} images; got {n}. Pass hundreds, for a narrow interval.")
    centred = [x.detach().cpu().double() for x in models]
    centred = [x - x.mean(0) for x in centred]
    return [x / x.square().sum(1).mean().sqrt().clamp_min(1e-150) for x in centred]
