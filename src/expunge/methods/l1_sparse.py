"""ℓ1-sparse: fine-tuning that also makes the weights small."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor, nn

from ..checks import setting
from ..data.mixture import Batch
from ..data.split import Split
from ..training.last_layers import NORMS
from ..training.loop import sgd
from ..training.objectives import cross_entropy, l1_norm
from ..training.schedules import Constant, Schedule
from .base import Method

COEFFICIENTS: dict[str, Callable[[int, int], float]] = {  # γ_e / α, from the epoch e = 0 … E − 1 and E
    "constant": lambda epoch, epochs: 1.0,
    "linear_decay": lambda epoch, epochs: 1 - epoch / epochs,
    "linear_increase": lambda epoch, epochs: epoch / epochs,
}


@final
@dataclass(frozen=True, kw_only=True)
class L1Sparse(Method):
    """Fine-tunes on the retain set with a penalty on the sum of all absolute weights, so that what only the forget set needs shrinks:

        min_θ  E_{(x, y) ∈ D_R} CE(f_θ(x), y) + γ_e ‖θ‖₁,    γ_e = α (1 − e / E) in epoch e = 0 … E − 1

    Use when: fine-tuning alone forgets too little, and some accuracy may be lost for more. α decides how much of both. Cost: `epochs` passes over D_R.

    Args:
        epochs: E, passes over the retain set, ≥ 1. Paper: 10.
        alpha: α, ≥ 0; 0 = fine-tuning. Paper: 5e-4; others used 1e-4 to 3e-4. The default 0.2 of the authors' command line is for something else and destroys the model.
        coefficient: γ_e over the epochs: "linear_decay" (paper; α / E in the last), "linear_increase" (α e / E, from 0 on) or "constant".
        exclude_norm: leave scale and shift of normalisation layers out of the sum; authors: False.
        lr: SGD step per mini-batch of mean loss, > 0. Paper: 0.01.
        batch_size: samples in a step, ≥ 1.
        weight_decay: on all parameters, ≥ 0.
        schedule: learning rate over time.

    Raises:
        DataError: the split has no retain samples.

    Paper: Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, arXiv:2304.04934.
    Departures: none. As there, nothing is cut off at the end: the penalty makes weights small, not zero. AMUN's code for this method multiplies the coefficient by
    2 − 2e / E in every epoch, so that it grows almost tenfold before it falls; that is not offered.
    Example:
        >>> L1Sparse(alpha=1e-4).reads_retain
        True
    """

    name: ClassVar[str] = "l1_sparse"
    paper: ClassVar[str] = "Jia et al. 2023, arXiv:2304.04934"
    tunes: ClassVar[str | None] = "alpha"
    retain: ClassVar[str] = "full"
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar10_resnet18_random10": {"alpha": 5e-4, "coefficient": "linear_decay", "epochs": 10, "lr": 0.01, "batch_size": 256}
    }

    epochs: int = setting(10, ge=1)
    alpha: float = setting(5e-4, ge=0)
    coefficient: str = setting("linear_decay", choices=tuple(COEFFICIENTS))
    exclude_norm: bool = setting(False)
    lr: float = setting(0.01, gt=0)
    batch_size: int = setting(128, ge=1)
    weight_decay: float = setting(5e-4, ge=0)
    schedule: Schedule = setting(factory=Constant)

    def cost(self, forget: float) -> float:
        return self.epochs * (1 - forget)

    def run(self, model: nn.Module, split: Split) -> None:
        def sparse_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
            gamma = self.gamma(batch.epoch)
            # Before the forward pass, while ranks hold their parts of every weight: behind it some weights are whole.
            penalty = gamma * l1_norm(self._penalised(model)) if gamma else 0.0
            return cross_entropy(model, batch) + penalty

        sgd(
            model, split.retain, sparse_cross_entropy,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule,
        )  # fmt: skip

    def gamma(self, epoch: int) -> float:
        """γ_e, the coefficient of the sum in an epoch, from 0 on."""
        return self.alpha * COEFFICIENTS[self.coefficient](epoch, self.epochs)

    def _penalised(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters that may change, each once."""
        norms = {p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)} if self.exclude_norm else set()
        return [p for p in model.parameters() if p.requires_grad and p not in norms]
