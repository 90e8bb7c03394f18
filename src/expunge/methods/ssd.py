"""SSD: weights that matter for the forget set much more than for the rest are made smaller, without training."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from ..checks import setting
from ..data.split import Split
from ..errors import ConfigError
from ..training.importances import Importances
from ..training.per_sample import squared_gradients, trainable
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class SSD(Method):
    """Selective synaptic dampening: compares each weight's importance for D_F with that for all of D, and shrinks it where the first is much larger:

        I_S = E_{(x, y) ∈ S} (∂CE(f_θ(x), y)/∂θ)²
        θ_i ← min(λ I_{D,i} / I_{D_F,i}, 1) θ_i    where I_{D_F,i} > α I_{D,i}

    Use when: a class should leave within one pass, or the retain data are gone and `importances` were stored before. Random samples share their weights with all others:
    SSD then does next to nothing or ruins the model, depending on alpha (tried on digits). Cost: one pass over D; over D_F alone with stored importances.

    The ratio I_{D_F,i} / I_{D,i} is never above |D| / |D_F|, because D_F is a part of D: at that alpha and above nothing changes at all. With a tenth of the data
    forgotten, the authors' alpha = 10 is such a one.

    Args:
        alpha: α, from which ratio on a weight is dampened, > 0; less changes more weights. Authors: 10, for squares of batch gradients, which have other ratios. None =
            10, but at most a share of the largest possible ratio: 0.5 |D| / |D_F| for whole classes, 0.8 |D| / |D_F| for samples, where less takes the retain set
            along (on digits).
        dampening: λ, > 0; a weight that is dampened keeps less than λ/α of itself. Authors: 1; 0.1 for PinsFace, with alpha 50.
        importances: of all of D, made before with `importances(model, train)`; None = computed here. They are exact for every request to the model that they were
            made of, whatever it forgets; the retain data may be gone.
        transferred: accept importances of another model or data set: those of the original for the requests after the first, where D and the weights are no longer
            quite those; then they are an approximation.

    Raises:
        DataError: `importances` are of another model or training set, or lack a weight.

    Paper: Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024, arXiv:2308.07707.
    Departures: each sample has its own gradient; the authors' code squares gradients of batches, so that its importances shrink with the batch size (and a last, small
    batch counts as much as a full one). Images are un-augmented; in the authors' code they are augmented once, and stay so.
    Example:
        >>> SSD(alpha=4.0)
        SSD(alpha=4.0, dampening=1.0, importances=None, transferred=False)
    """

    name: ClassVar[str] = "ssd"
    paper: ClassVar[str] = "Foster et al. 2024, arXiv:2308.07707"
    tunes: ClassVar[str | None] = "alpha"

    alpha: float | None = setting(None, gt=0)
    dampening: float = setting(1.0, gt=0)
    importances: Importances | None = setting(None)
    transferred: bool = setting(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transferred and self.importances is None:
            raise ConfigError(
                "SSD: transferred=True needs the importances that are transferred; got importances=None. Pass importances=importances(other_model, train)."
            )

    @property
    def retain(self) -> str:
        return "full" if self.importances is None else "none"

    def cost(self, forget: float) -> float:
        return 1 if self.importances is None else forget

    def to_tune(self, split: Split) -> tuple[str, float] | None:
        return "alpha", self._alpha(split)

    def run(self, model: nn.Module, split: Split) -> None:
        of_forget = squared_gradients(model, split.forget)
        of_all, alpha = self._of_all(model, split, of_forget), self._alpha(split)
        with torch.no_grad():
            for name, p in trainable(model).items():
                p.mul_(dampened(of_all[name].to(p.device), of_forget[name], alpha, self.dampening))

    def _alpha(self, split: Split) -> float:
        n = len(split.train) if self.importances is None else self.importances.n
        return self.alpha or min(10.0, (0.5 if split.forget_classes else 0.8) * n / len(split.forget))

    def _of_all(self, model: nn.Module, split: Split, of_forget: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.importances is None:
            of_retain = squared_gradients(model, split.retain)
            share = len(split.forget) / len(split.train)  # D is D_F and D_R, so that neither is looked at twice
            return {name: share * of_forget[name] + (1 - share) * of_retain[name] for name in of_retain}
        if not self.transferred:
            self.importances.check(model, split.train if split.has_retain else None)
        self.importances.fit(model)
        return dict(self.importances.tensors)


def dampened(of_all: Tensor, of_forget: Tensor, alpha: float, dampening: float) -> Tensor:
    """The factor of each weight: min(λ I_D / I_F, 1) where I_F > α I_D, else 1. A weight that matters for nothing keeps its value."""
    factor = (dampening * of_all / of_forget).clamp(max=1)
    return torch.where(of_forget > alpha * of_all, factor, 1.0)
