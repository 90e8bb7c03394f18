"""Fisher forgetting: noise on every weight, the more the less the weight matters for the retain set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from ..checks import setting
from ..data.few import classes_in
from ..data.split import Split
from ..training.head import last_linear
from ..training.per_sample import every_label, squared_gradients, trainable
from .base import Method

MOST, MOST_IN_HEAD = 1e3, 1e2  # of 1 / F, before α
FORGOTTEN = 1e-4  # variance of a forgotten class's own weights, before the factor of the last layer
LOUDER = 10  # factor on the variance of the last layer, of biases and of BatchNorm


@final
@dataclass(frozen=True, kw_only=True)
class FisherForgetting(Method):
    """Adds to each weight Gaussian noise whose variance is α over the weight's Fisher information on D_R; one draw:

        F_i = E_{x ∈ D_R} Σ_y p_θ(y|x) (∂CE(f_θ(x), y)/∂θ_i)²
        v = α · min(1 / (F + 1e-8), 1e3)  (1e2 in the last layer), averaged over a weight's input channels;  × 10 in the last layer, in biases and BatchNorm
        θ ← μ + √v ⊙ n,  n ~ N(0, I),  μ = θ_O;  where whole classes leave, their rows of the last layer have μ = 0 and v = 1e-4 (× 10)

    Use when: a baseline is wanted that adds noise instead of training. D_F is never read: it forgets what the retain set does not need. alpha is touchy, because noise on
    BatchNorm hits everything: on digits 3e-7 costs no retain accuracy, 1e-6 some 8 points and 3e-6 60. Try a grid, and report the mean over seeds. Cost: for K classes
    one forward and K backward passes over D_R, 7 passes for ten classes.

    Args:
        alpha: α, > 0. Authors' notebook: 1e-6. Elsewhere from 1e-9 to 3e-6, searched for each model.
        batch_size: images that go through the model together, ≥ 1; the result does not depend on it, but for rounding.

    Raises:
        DataError: the split has no retain samples.
        ModelError: the logits do not come from an nn.Linear layer.

    Paper: Golatkar et al., "Eternal Sunshine of the Spotless Net", CVPR 2020, arXiv:1911.04933.
    Departures: the noise is that of the authors' notebook, variance α / F; the paper's own has √(λσ² / F). The variance of a weight's input channels is their mean there.
    Of copies in other code we do not take over: squares of batch gradients; rows of a class that are wiped because 4500 samples leave; a last layer known by its shape.
    Example:
        >>> FisherForgetting(alpha=1e-7)
        FisherForgetting(alpha=1e-07, batch_size=32)
    """

    name: ClassVar[str] = "fisher_forgetting"
    paper: ClassVar[str] = "Golatkar et al. 2020, arXiv:1911.04933"
    tunes: ClassVar[str | None] = "alpha"
    retain: ClassVar[str] = "full"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {"notebook": {"alpha": 1e-6}}

    alpha: float = setting(1e-6, gt=0)
    batch_size: int = setting(32, ge=1)

    def cost(self, forget: float) -> float:
        return (1 / 3 + classes_in(1) * 2 / 3) * (1 - forget)

    def run(self, model: nn.Module, split: Split) -> None:
        fisher = squared_gradients(model, split.retain, every_label, batch_size=self.batch_size)
        head = set(last_linear(model, split.retain).parameters())
        for name, p in trainable(model).items():
            forgotten = list(split.forget_classes) if p in head else []
            _add_noise(p, variance(fisher[name], self.alpha, p in head, forgotten), forgotten)


def variance(fisher: Tensor, alpha: float, in_head: bool, forgotten: list[int]) -> Tensor:
    """v, of the shape of F: what each weight's noise has, by the rules above.

    Args:
        fisher: F of one parameter, ≥ 0.
        alpha: α.
        in_head: whether the parameter belongs to the last layer.
        forgotten: rows of the last layer that are forgotten.
    """
    v = alpha * (1 / (fisher + 1e-8)).clamp(max=MOST_IN_HEAD if in_head else MOST)
    if v.ndim > 1:
        v = v.mean(1, keepdim=True).expand_as(v).clone()
    if forgotten:
        v[forgotten] = FORGOTTEN
    return LOUDER * v if in_head or v.ndim == 1 else v


@torch.no_grad()
def _add_noise(p: nn.Parameter, v: Tensor, forgotten: list[int]) -> None:
    if forgotten:
        p[forgotten] = 0
    p.add_(v.sqrt() * torch.randn(p.shape).to(p.device))  # drawn on the CPU, so that a GPU gets the same
