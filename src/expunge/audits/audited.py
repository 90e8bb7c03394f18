"""What is audited, apart from the models: which samples there are, what was forgotten, and what shadow models answer on forget samples and non-members."""

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from ..errors import DataError
from ..metrics.gap import GROUPS
from ..types import Labels

MEMBERS = "forget"


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Audited:
    """The samples of an audit by group, without pixels and without models.

    Attributes:
        labels: int64, by group: "forget", "retain" (where there are retain data), "forget_test" (unseen samples of forgotten classes, where whole classes are
            forgotten), "test" (unseen samples of the other classes, or of all).
        classes: names of all classes.
        forget_classes: numbers of those that are forgotten as a whole.
        forget_ids: int64, what the forget samples are called; None = their positions.
        shadow_logits: (M, n, K), what M shadow models answer on the forget samples and then on the non-members; included: bool (M, n), which of them each was trained
            on. None without shadow models.
        shadow_accuracy: the shadow models' mean accuracy on samples that they were not trained on; None = not known.
        labels_only: whether models gave nothing but predicted labels.
        identity: what the report says about where the samples come from.

    Raises:
        DataError: no forget sample or no non-member, or shadow models on other samples.
    """

    labels: dict[str, Tensor]
    classes: tuple[str, ...]
    forget_classes: tuple[int, ...] = ()
    forget_ids: Tensor | None = None
    shadow_logits: Tensor | None = None
    included: Tensor | None = None
    shadow_accuracy: float | None = None
    labels_only: bool = False
    identity: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for group in (MEMBERS, "test"):
            if group not in self.labels or len(self.labels[group]) == 0:
                raise DataError(f"an audit needs samples of the groups 'forget' and 'test'; got none of {group!r}. Add them.")
        object.__setattr__(self, "labels", {group: self.labels[group] for group in GROUPS if group in self.labels})
        if self.shadow_logits is not None and self.shadow_logits.shape[1] != len(self.scored_labels):
            raise DataError(
                f"shadow models must be scored on the {len(self.scored_labels)} forget and {self.nonmembers} samples; got {self.shadow_logits.shape[1]} samples."
            )

    @property
    def nonmembers(self) -> str:
        """The group that forget samples are compared with: like them, but never trained on."""
        return "forget_test" if "forget_test" in self.labels else "test"

    @property
    def scored_labels(self) -> Labels:
        """Of the forget samples and then of the non-members: those that attacks score."""
        return torch.cat([self.labels[MEMBERS], self.labels[self.nonmembers]])

    @property
    def ids(self) -> Labels:
        """What the forget samples are called."""
        return torch.arange(len(self.labels[MEMBERS])) if self.forget_ids is None else self.forget_ids

    @property
    def n_shadows(self) -> int:
        return 0 if self.shadow_logits is None else len(self.shadow_logits)

    @property
    def sizes(self) -> dict[str, int]:
        """How many samples of each group, and shadow models, there are."""
        return {name: len(labels) for name, labels in self.labels.items()} | {"shadow_models": self.n_shadows}


def unseen_groups(labels: Labels, forget_classes: tuple[int, ...], classes: tuple[str, ...] | list[str]) -> dict[str, Tensor]:
    """Positions among unseen samples by group: where whole classes are forgotten, those of them are a group of their own.

    Raises:
        DataError: no unseen sample of a forgotten class, or none of the others.

    Example:
        >>> {name: where.tolist() for name, where in unseen_groups(torch.tensor([0, 1, 0]), (1,), ("cat", "dog")).items()}
        {'forget_test': [1], 'test': [0, 2]}
    """
    if not forget_classes:
        return {"test": torch.arange(len(labels))}
    forgotten = torch.isin(labels, torch.tensor(forget_classes))
    wanting = [classes[k] for k in forget_classes if not (labels == k).any()]
    if wanting or forgotten.all():
        raise DataError(
            f"test images must be of all classes, forgotten ones too: they show what models answer on a class that they should not know; "
            f"got none of {', '.join(map(repr, wanting)) or 'the other classes'}. Leave them in the test set."
        )
    return {"forget_test": forgotten.nonzero().flatten(), "test": (~forgotten).nonzero().flatten()}
