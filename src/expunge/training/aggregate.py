"""Several models that answer as one."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ..types import Images, Logits

AGGREGATES = ("mean", "votes")


class Aggregate(nn.Module):
    """The log of what the models answer together, so that it may be read as logits.

    Args:
        models: classifiers of the same classes.
        aggregate: "mean" of their probabilities, or "votes": the number of their first choices, ties broken by that mean.
    """

    def __init__(self, models: Sequence[nn.Module], aggregate: str) -> None:
        super().__init__()
        self.models, self.aggregate = nn.ModuleList(models), aggregate

    def forward(self, images: Images) -> Logits:
        each = torch.stack([functional.log_softmax(model(images).float(), 1) for model in self.models])
        mean = each.logsumexp(0) - math.log(len(self.models))  # of logs, so that nothing is rounded to 0
        if self.aggregate == "mean":
            return mean
        votes = functional.one_hot(each.argmax(2), each.shape[2]).sum(0)
        return torch.logaddexp(votes.float().log(), mean)
