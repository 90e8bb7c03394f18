"""Teachers: frozen models whose answers a student copies, or flees from."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from ..costs import count
from ..data.images import Augment, Samples
from ..data.mixture import Batch
from ..types import Logits


class Teacher:
    """A copy of a model in eval mode that does not learn, and what it answers for batches of some sets.

    Where the sets are not augmented a sample looks the same in every epoch: it is answered once, and its answer is remembered.

    Args:
        model: copied.
        data: the sets that batches will be of; no two samples with one id.
    """

    def __init__(self, model: nn.Module, data: Sequence[Samples]) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.remembers = all(samples.augment == Augment() and samples.root.resident for samples in data)
        self.ids = torch.cat([samples.ids for samples in data]).sort().values
        self.answers: Logits | None = None
        self.known = torch.zeros(len(self.ids), dtype=torch.bool)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Logits:
        """What it answers for the batch as the student sees it, augmentation included; (B, K), float32."""
        if not self.remembers:
            return self._asked(batch)
        rows = torch.searchsorted(self.ids, batch.ids.cpu())
        if self.answers is None or not self.known[rows].all():
            answers = self._asked(batch)
            if self.answers is None:
                self.answers = answers.new_empty(len(self.ids), answers.shape[1])
            self.answers[rows.to(answers.device)], self.known[rows] = answers, True
        return self.answers[rows.to(self.answers.device)]

    def _asked(self, batch: Batch) -> Logits:
        count(batch.ids, forward=1)
        return self.model(batch.images).float()
