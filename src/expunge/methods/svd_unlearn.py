"""Deep Unlearning: taking out of every layer's input space what matters for a class and for no other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from .. import progress
from ..checks import setting
from ..data.few import few_of_each, share_of_few
from ..data.images import Samples, places
from ..data.split import Split
from ..errors import ModelError
from ..rng import draw_seed
from ..training.inference import logits_of
from ..training.inputs import Weighted, apply_importance, as_matrices, input_moments, weighted_layers
from .base import Method

ALPHAS_RETAIN = (1000.0, 100.0, 10.0)  # that are tried, the gentlest first
ALPHAS_FORGET = (1.0, 3.0, 10.0, 30.0, 100.0)
Weights = dict[str, Tensor]


@final
@dataclass(frozen=True, kw_only=True)
class SVDUnlearn(Method):
    """Projects the weights of every convolution and linear layer away from inputs that are important for the forget set and not for the retain set, without a gradient:

        R = inputs of the layer on retain images = U Σ Vᵀ,   s_i = σ_i² / Σ σ²,   Λ_ii = α_R s_i / ((α_R − 1) s_i + 1),   M_R = U Λ Uᵀ;   M_F likewise with α_F
        W ← W Pᵀ,    P = I − (M_F − M_F M_R)

    An input x loses (I − M_R) M_F x: its part in the directions of the forget set, less what of that the retain set needs. All inputs are those of the original's layers.

    Use when: whole classes must leave within seconds and a few images of every class are at hand. The class is not answered any more at all, which is less than a retrained
    model does with it. Cost: one forward pass over the few images, and one more for each pair (α_R, α_F) that is tried; d³ operations for each layer and coefficient, d = C·k·k inputs.

    Args:
        alpha_retain: α_R, how widely the retain set's directions are kept, in [0, 1e9]; 1 = in proportion to their energy, large = all of them whole, 0 = none. None = the best
            of 10 … 1000.
        alpha_forget: α_F, how widely the forget set's directions go, likewise; 0 = nothing changes. None = the best of 1 … 100. The best pair is that with the largest
            product of the accuracy on the retain images and of the error on the forget images, the gentler pair where that is equal.
        per_class: retain images of each class, drawn at random, ≥ 1. Authors: 100 on CIFAR-10.
        forget_per_class: forget images of each class, likewise. Authors: at most 900.
        n_inputs: inputs of a layer that are drawn from all images, ≥ 1: positions of a convolution, the same number of each image and at least one. Authors: 10 000.

    Raises:
        DataError: the split is of a part of a class, or has no retain samples.
        ModelError: the model has no nn.Conv2d or nn.Linear layer whose weights may change.

    Paper: Kodge, Saha, Roy, "Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting", TMLR 2024, arXiv:2312.00761.
    Departures: patches come from all positions of a layer's input map (the authors' from one small crop, whose borders are padded with zeros that the layer never sees there);
    M is computed from R Rᵀ by a Cholesky decomposition, which gives the same matrix without eigenvectors; retain images are training images (the authors' held out
    for validation); every group of a grouped convolution is a layer of its own; which values lie between the ends of the authors' grid is not known to us. As in the
    authors' main experiments, biases and BatchNorm stay, its statistics too; the authors' demo is another variant, with roots of Λ and a projection of the outputs as well.
    Example:
        >>> SVDUnlearn.as_published("cifar10_vgg11_class").alpha_forget
        3.0
    """

    name: ClassVar[str] = "svd_unlearn"
    paper: ClassVar[str] = "Kodge et al. 2024, arXiv:2312.00761"
    retain: ClassVar[str] = "subset"
    scenario: ClassVar[str] = "classes"
    tunes: ClassVar[str | None] = None
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10_vgg11_class": {"alpha_retain": 100.0, "alpha_forget": 3.0, "per_class": 100},
        "cifar100_class": {"alpha_retain": 1000.0, "alpha_forget": 30.0, "per_class": 10},
        "imagenet_class": {"alpha_retain": 100.0, "alpha_forget": 10.0, "per_class": 1},
    }

    alpha_retain: float | None = setting(None, ge=0, le=1e9)
    alpha_forget: float | None = setting(None, ge=0, le=1e9)
    per_class: int = setting(100, ge=1)
    forget_per_class: int = setting(900, ge=1)
    n_inputs: int = setting(10_000, ge=1)

    def cost(self, forget: float) -> float:
        images = share_of_few(self.per_class, 1 - forget) + share_of_few(self.forget_per_class, forget)
        trials = len(self._alphas_retain) * len(self._alphas_forget)
        return images / 3 * (1 + (trials if trials > 1 else 0))

    def run(self, model: nn.Module, split: Split) -> None:
        layers = weighted_layers(model)
        if not layers:
            raise ModelError(
                "SVDUnlearn changes nn.Conv2d and nn.Linear layers, at least one of which must have weights of its own that may change; got none. "
                "Set requires_grad=True on their weights."
            )
        retain = few_of_each(split.retain, self.per_class, draw_seed())
        forget = few_of_each(split.forget, self.forget_per_class, draw_seed())
        of_retain = input_moments(model, layers, retain, self.n_inputs)
        of_forget = input_moments(model, layers, forget, self.n_inputs)
        both = split.train.subset(places(split.train.ids, torch.cat([retain.ids, forget.ids])))
        _set(layers, self._best(model, layers, self._candidates(layers, of_retain, of_forget), both, torch.isin(both.ids, forget.ids)))

    @property
    def _alphas_retain(self) -> tuple[float, ...]:
        return ALPHAS_RETAIN if self.alpha_retain is None else (self.alpha_retain,)

    @property
    def _alphas_forget(self) -> tuple[float, ...]:
        return ALPHAS_FORGET if self.alpha_forget is None else (self.alpha_forget,)

    def _candidates(self, layers: dict[str, Weighted], of_retain: Weights, of_forget: Weights) -> Iterator[Weights]:
        """W Pᵀ = W − W (I − M_R) M_F of all layers, for each pair of coefficients."""
        first = {name: as_matrices(layer) for name, layer in layers.items()}
        n = len(self._alphas_retain)
        unneeded = {  # W (I − M_R) for all α_R below one another, so that each α_F takes one decomposition
            name: torch.cat([w - apply_importance(w, of_retain[name], alpha) for alpha in self._alphas_retain], dim=1)
            for name, w in first.items()
        }
        for alpha in self._alphas_forget:
            lost = {name: apply_importance(rows, of_forget[name], alpha).chunk(n, dim=1) for name, rows in unneeded.items()}
            for k in range(n):
                yield {name: w - lost[name][k] for name, w in first.items()}

    def _best(
        self, model: nn.Module, layers: dict[str, Weighted], candidates: Iterator[Weights], samples: Samples, forget: Tensor
    ) -> Weights:
        """The weights that answer retain images rightly and forget images wrongly; without a look at any image if there is no choice."""
        trials = len(self._alphas_retain) * len(self._alphas_forget)
        best, best_score = {}, -1.0
        for number, weights in enumerate(candidates):
            if trials == 1:
                return weights
            _set(layers, weights)
            right = _right(model, samples)
            score = float(right[~forget].mean() * (1 - right[forget].mean()))
            if score > best_score:
                best, best_score = weights, score
            progress.report("trying coefficients", number + 1, trials)
        return best


@torch.no_grad()
def _set(layers: dict[str, Weighted], weights: Weights) -> None:
    for name, layer in layers.items():
        layer.weight.copy_(weights[name].reshape(layer.weight.shape))


def _right(model: nn.Module, samples: Samples) -> Tensor:
    return (logits_of(model, samples).argmax(1) == samples.labels).double()
