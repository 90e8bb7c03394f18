"""Training that forget samples be answered at random: what RandomLabel does, and SalUn with a mask."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import relabel
from ..data.mixture import Batch
from ..data.split import Split
from .loop import sgd
from .objectives import cross_entropy
from .orders import in_turn, shuffled
from .targets import other_classes, random_labels

DRAWS = ("epoch", "once")
MIXES = {"shuffled": shuffled, "in_turn": in_turn}


def sgd_on_random_labels(
    model: nn.Module, split: Split, *, use_retain: bool, exclude_true: bool, draw: str, mix: str = "shuffled", **options: Any
) -> None:
    """`sgd` on the forget samples with labels drawn at random, together with the retain set.

    Args:
        model: trained in place.
        split: what to forget.
        use_retain: whether D_R is in the fine-tuning set; False = no retain sample is read.
        exclude_true: as in `labels_at_random`.
        draw: "epoch" = a new label at every visit, which comes once in an epoch; "once" = the same label throughout.
        mix: "shuffled" = forget and retain samples in the same batches; "in_turn" = in every epoch all forget batches first, and then the retain set.
        options: of `sgd`.

    Raises:
        DataError: exclude_true, and no class is left to draw. And what `sgd` raises.

    Cost: `sgd`'s.
    """

    def redrawn_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
        forget = batch.source == 0
        labels = batch.labels.clone()
        labels[forget] = labels_at_random(labels[forget], split, exclude_true).to(labels.device)
        return cross_entropy(model, dataclasses.replace(batch, labels=labels))

    once = draw == "once"
    forget = relabel(split.forget, labels_at_random(split.forget.labels, split, exclude_true)) if once else split.forget
    objective = cross_entropy if once else redrawn_cross_entropy
    sgd(model, [forget, split.retain] if use_retain else forget, objective, order=MIXES[mix], **options)


def labels_at_random(labels: Tensor, split: Split, exclude_true: bool) -> Tensor:
    """A class for each forget sample, int64 (N,): any, or none of its own and, where whole classes are forgotten, none of them.

    Raises:
        DataError: exclude_true, and no class is left to draw.
    """
    n_classes = len(split.train.classes)
    if exclude_true:
        return random_labels(other_classes(labels, split.forget_classes, n_classes))
    return random_labels(torch.ones(len(labels), n_classes))
