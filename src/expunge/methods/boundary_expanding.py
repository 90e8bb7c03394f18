"""Boundary Expanding: moving a forgotten class into a shadow class that is then cut off."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from ..checks import setting
from ..data.images import relabel
from ..data.split import Split
from ..training.head import features_and_logits, last_linear
from ..training.loop import BATCHNORM
from ..training.objectives import cross_entropy
from ..training.schedules import Constant, Schedule
from ..training.until import sgd_until_gone
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class BoundaryExpanding(Method):
    """Adds one row to the last linear layer, a shadow class K that takes all forget samples in, and drops the row afterwards:

        f⁺_θ(x) = (f_θ(x), w · h_θ(x) + b),    h = features before the last layer,    w ~ Xavier normal, b = 0
        min_{θ, w, b}  E_{x ∈ D_F} CE(f⁺_θ(x), K);    then f_θ alone is kept

    Use when: whole classes must leave at once, without retain data and without an attack. Cost: `epochs` passes over D_F.

    Args:
        epochs: passes over the forget set, ≥ 1. Paper: 10.
        lr: SGD step per mini-batch of mean loss, > 0. Authors' code: 1e-5, for 790 steps.
        batch_size: samples in a step, ≥ 1. Authors' code: 64.
        weight_decay: on all parameters, ≥ 0. Authors' code: 0.
        batchnorm: "frozen_statistics", "train" (the authors': running statistics drift to the forget class's, which costs half of the retain accuracy on small
            sets) or "frozen", as in `sgd`.
        schedule: learning rate over time.
        until: None = `lr` as it is. Else the step doubles, from `lr` on and from the original anew, until at most this share of the class's training images is
            still answered with it (see `sgd_until_gone`). A shadow that has taken all samples in stops pushing, so that some stay in their class once it is cut off, and
            a step that moves them too costs more retain accuracy than it is worth.

    Raises:
        DataError: the split is not of whole classes: samples like those that go into the shadow would still be wanted in their class.
        ModelError: the logits do not come from an nn.Linear layer.

    Paper: Chen et al., "Boundary Unlearning", CVPR 2023, arXiv:2303.11570.
    Departures: BatchNorm keeps its statistics. The row lies beside the model instead of in a larger layer, which computes the same; so it cannot be forgotten to cut it off, as in two
    public ports, which count answers into the shadow as forgetting.
    Example:
        >>> BoundaryExpanding().scenario
        'classes'
    """

    name: ClassVar[str] = "boundary_expanding"
    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2303.11570"
    retain: ClassVar[str] = "none"
    scenario: ClassVar[str] = "classes"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10_allcnn_class": {
            "epochs": 10, "lr": 1e-5, "batch_size": 64, "weight_decay": 0.0, "batchnorm": "train", "until": None,
        },
    }  # fmt: skip

    epochs: int = setting(10, ge=1)
    lr: float = setting(1e-5, gt=0)
    batch_size: int = setting(64, ge=1)
    weight_decay: float = setting(0.0, ge=0)
    batchnorm: str = setting("frozen_statistics", choices=BATCHNORM)
    schedule: Schedule = setting(factory=Constant)
    until: float | None = setting(None, ge=0, lt=1)

    def cost(self, forget: float) -> float:
        return self.epochs * forget

    def step_search(self, split: Split) -> float | None:
        return self.until

    def run(self, model: nn.Module, split: Split) -> None:
        head = last_linear(model, split.forget)
        expanded = _Expanded(model, head)
        shadow = torch.full_like(split.forget.labels, head.out_features)
        sgd_until_gone(
            expanded, relabel(split.forget, shadow), cross_entropy,
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=self.weight_decay, schedule=self.schedule,
            batchnorm=self.batchnorm, until=self.step_search(split), forget=split.forget, classifier=model,
        )  # fmt: skip


class _Expanded(nn.Module):
    """The model with one class more."""

    def __init__(self, model: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.shadow = nn.Linear(head.in_features, 1, bias=head.bias is not None)
        nn.init.xavier_normal_(self.shadow.weight)
        if head.bias is not None:
            nn.init.zeros_(self.shadow.bias)
        self.shadow.to(head.weight)

    def forward(self, images: Tensor) -> Tensor:
        features, logits = features_and_logits(self.model, self.head, images)
        return torch.cat([logits, self.shadow(features)], 1)
