"""ESC: erasing the directions in which the features of the forget set lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from ..checks import setting
from ..data.split import Split
from ..errors import ModelError
from ..training.head import features_of, last_linear
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class ESC(Method):
    """Takes the strongest directions of the forget set's features out of what the last linear layer sees:

        F = (φ(x))_{x ∈ D_F} = U Σ Vᵀ,    P = I − U_k U_kᵀ,    W ← W P

    φ(x) are the d features in front of that layer, U_k the k left singular vectors of F (not centred) with the largest singular values. W P φ(x) = W (P φ(x)): the projection
    of the features is part of the weights, so that nothing can be taken off again, and the model keeps its form.

    Use when: a class must leave in seconds, without retain data and without training. It closes the last layer only: everything before it stays as it is, and a new last
    layer trained on its features knows the class again (linear probing, relearning). What all classes' features share lies in the first direction too, so that accuracy on
    the others falls as `share` grows. Cost: one forward pass over D_F and one eigenvalue problem of size d.

    Args:
        share: k / d, share of the feature directions that go, in [0, 1); k is rounded down, but is at least 1 where share > 0, and at most the number of directions in
            which D_F has features. 0 = nothing changes. Authors: 0.015, which is k = 7 of 512. Several classes need a direction each at least.

    Raises:
        ModelError: the logits do not come from an nn.Linear layer with weights of its own that may change.

    Paper: Lee et al., "ESC: Erasing Space Concept for Knowledge Deletion", CVPR 2025, arXiv:2504.02199.
    Departures: the projection is folded into the weights (the authors' is a module of its own, without which the original is back); features are those of the model in eval
    mode on un-augmented images (in the authors' code the model is left in training mode, which also moves BatchNorm's statistics); at least one direction goes
    where the authors' rounding gives none. The trained variant ESC-T, whose mask on U is learnt, is left out: its optimiser is not known to us.
    Example:
        >>> ESC(share=0.02).reads_retain
        False
    """

    name: ClassVar[str] = "esc"
    paper: ClassVar[str] = "Lee et al. 2025, arXiv:2504.02199"
    retain: ClassVar[str] = "none"
    scenario: ClassVar[str] = "classes"
    tunes: ClassVar[str | None] = "share"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cifar10_allcnn_class": {"share": 0.015}}

    share: float = setting(0.015, ge=0, lt=1)

    def cost(self, forget: float) -> float:
        return forget / 3

    def run(self, model: nn.Module, split: Split) -> None:
        head = last_linear(model, split.forget)
        if "weight" not in head._parameters or not head.weight.requires_grad:
            raise ModelError(
                "ESC changes the weights of the last linear layer, which must be a parameter of it that may change; got a frozen or parametrised one. "
                "Set head.weight.requires_grad=True, or remove the parametrisation first."
            )
        directions = strongest_directions(features_of(model, head, split.forget).to(head.weight.device), self.share)
        weight = head.weight.detach().double()
        with torch.no_grad():
            head.weight.copy_(weight - (weight @ directions) @ directions.T)


def strongest_directions(features: Tensor, share: float) -> Tensor:
    """The directions that ESC erases: an orthonormal basis, float64 (d, k), of the k = max(1, ⌊share · d⌋) strongest directions of features (N, d); none for share = 0.

    Directions in which the features are zero are never among them: which ones of them would be a matter of rounding.

    Example:
        >>> strongest_directions(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), 0.5).abs().tolist()
        [[1.0], [0.0]]
    """
    d = features.shape[1]
    rows = features.double()
    energies, basis = torch.linalg.eigh(rows.T @ rows)  # ascending
    rank = int((energies > energies[-1] * d * torch.finfo(torch.float32).eps ** 2).sum())  # features are float32
    k = min(max(1, int(d * share)), rank) if share else 0
    return basis[:, d - k :]
