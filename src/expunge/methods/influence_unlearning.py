"""Influence unlearning: one Newton step towards the optimum without the forget set (the "IU" of later comparisons, with WoodFisher)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from ..checks import setting
from ..data.images import Samples
from ..data.split import Split
from ..rng import draw_seed, permutation
from ..training import per_sample
from ..training.gradient_products import gradient_slopes, gradient_sum, inverse_by_conjugate_gradients, inverse_by_woodbury, unflat
from ..training.per_sample import gradient_matrix, gradient_rows, trainable
from .base import Method

INVERSES = ("auto", "woodbury", "conjugate_gradients", "identity", "official")


@final
@dataclass(frozen=True, kw_only=True)
class InfluenceUnlearning(Method):
    """One step along the influence of D_F, with the damped empirical Fisher of m retain samples in the place of the Hessian:

        v = (1/N) [Σ_{D_F} ∇ℓ − (n_F/n_R) Σ_{D_R} ∇ℓ],    F = λI + (1/m) Σ_i g_i g_iᵀ
        θ ← θ_O + α F⁻¹ v

    At an optimum of the loss on D this is α times Newton's step for the loss on D_R, and exact to first order for α = 1 where F is the Hessian: for logistic
    regression whose answers are right on average. Of networks neither holds.

    Use when: the classic baseline is wanted. Where the training set is fitted perfectly, v is next to nothing and F little more than its damping, and only alpha / damping
    counts: raise it until the accuracy on D_F falls to that on unseen images. On digits a class leaves at 30 with 99 % of the retain set right, while random samples
    and retain samples go together. Cost: one pass over D; conjugate gradients 2 m more samples in each iteration.

    Args:
        alpha: α, > 0; 1 = the theory's. Tables of later papers search in [1, 20] or [1, 100], with the official inverse, whose F starts as the identity.
        inverse: "woodbury" = F⁻¹v exactly, from the m × m matrix of inner products; stores m gradients, at most 2²⁹ numbers (2 GiB).
            "conjugate_gradients" = the same to a residual of 1e-4, storing none.
            "auto" = the first where it fits, else the second.
            "identity" = v itself, F = I.
            "official" = the recursion of the public code, with M = `fisher_samples`, bug for bug. Its second vector never leaves the first sample's gradient, so that
            the result is v but for its part along that one gradient.
        fisher_samples: m, retain samples that F is made of, ≥ 1, drawn at random ("official": the first ones); all of D_R if there are fewer. Authors: 1000.
        damping: λ, > 0; without effect on "identity" and "official". It is the size of F where no gradient points, that is nearly everywhere: steps there are v / λ.
            A hundredth of the default ruined four of the five models of digits that we tried.
        iterations: of conjugate gradients at most, ≥ 1.

    Raises:
        DataError: the split has no retain samples.
        ConfigError: "woodbury" with more than would fit; conjugate gradients that do not converge, because the damping is too small.

    Paper: Izzo et al., "Approximate Data Deletion from Machine Learning Models", AISTATS 2021, arXiv:2002.10077; WoodFisher of Singh and Alistarh, NeurIPS 2020,
        arXiv:2004.14340; as "IU" in Jia et al., arXiv:2304.04934.
    Departures: the inverse is right, and F is damped; images are un-augmented (public code: augmented). "official" is what published tables were made with.
    Example:
        >>> InfluenceUnlearning(inverse="identity", alpha=5.0)
        InfluenceUnlearning(alpha=5.0, inverse='identity', fisher_samples=128, damping=0.1, iterations=100)
    """

    name: ClassVar[str] = "influence_unlearning"
    paper: ClassVar[str] = "Izzo et al. 2021, arXiv:2002.10077"
    tunes: ClassVar[str | None] = "alpha"
    retain: ClassVar[str] = "full"

    alpha: float = setting(1.0, gt=0)
    inverse: str = setting("auto", choices=INVERSES)
    fisher_samples: int = setting(128, ge=1)
    damping: float = setting(0.1, gt=0)
    iterations: int = setting(100, ge=1)

    def cost(self, forget: float) -> float:
        return (
            1 + {"identity": 0, "woodbury": 1, "official": 1}.get(self.inverse, 50) * self.fisher_samples / 50_000
        )  # of so many images, 25 iterations

    def run(self, model: nn.Module, split: Split) -> None:
        step = self._inverse(model, split.retain, direction(model, split))
        with torch.no_grad():
            parameters = trainable(model)
            for name, part in unflat(step, parameters).items():
                parameters[name].add_(part, alpha=self.alpha)

    def _inverse(self, model: nn.Module, retain: Samples, v: Tensor) -> Tensor:
        m = min(self.fisher_samples, len(retain))
        if self.inverse == "identity":
            return v
        if self.inverse == "official":
            return official_recursion(v, gradient_rows(model, retain.subset(torch.arange(m))), self.fisher_samples)
        chosen = retain.subset(permutation(len(retain), draw_seed())[:m])
        if self.inverse == "woodbury" or (self.inverse == "auto" and m * len(v) <= per_sample.MOST_NUMBERS):
            return inverse_by_woodbury(v, gradient_matrix(model, chosen), self.damping)
        return inverse_by_conjugate_gradients(
            v, lambda u: gradient_sum(model, chosen, gradient_slopes(model, chosen, u) / m), self.damping, iterations=self.iterations
        )


def direction(model: nn.Module, split: Split) -> Tensor:
    """v = (1/N) [Σ_{D_F} ∇ℓ − (n_F/n_R) Σ_{D_R} ∇ℓ], float32 (P,): uphill on D_F and downhill on D_R. Cost: one pass over D."""
    n_forget, n_retain = len(split.forget), len(split.retain)
    return (gradient_sum(model, split.forget) - n_forget / n_retain * gradient_sum(model, split.retain)) / (n_forget + n_retain)


def official_recursion(v: Tensor, rows: Iterable[Tensor], m: int) -> Tensor:
    """What public code computes for F⁻¹v, from batches of gradients (B, P) in order: k ← k − (k·g)/(M + o·g) o, o ← o − (o·g)/(M + o·g) o, with o = g_1 at first.

    o is only ever rescaled. In the true recursion it would be F_{t−1}⁻¹ g_t, another vector for each sample.
    """
    k, o = v.clone(), None
    for batch in rows:
        for g in batch:
            if o is None:
                o = g.clone()
                continue
            s = o @ g
            k -= (k @ g) / (m + s) * o
            o -= s / (m + s) * o
    return k
