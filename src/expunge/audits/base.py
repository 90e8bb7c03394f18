"""The seam between "score these samples for membership" and the attack that does it.

An audit is a pure function of logits: what the target model says about each sample, and, for the strong ones, what shadow models say that
did or did not train on it. The class checks everything once; `scores` holds only the attack. Higher = more likely a member.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..checks import check_settings
from ..errors import ConfigError, DataError
from ..metrics.signals import check_logits
from ..types import Included, Labels, Logits, Scores
from .groups import check_groups


@dataclass(frozen=True, kw_only=True)
class MembershipAudit(ABC):
    """A membership-inference attack, used to measure what a model still remembers.

    Subclasses are frozen dataclasses of their hyperparameters and implement `scores`. They are used by calling them, like a function.

    Attributes:
        name: what users type.
        paper: where it comes from.
        needs_shadows: whether it reads `shadow_logits` and `included`.
        revision: raised when the algorithm changes, so that only its stored results go stale.

    Example:
        >>> import torch, expunge
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> expunge.LossThreshold()(logits, torch.tensor([0, 0])).argmax().item()  # the sample with the smaller loss is more likely a member
        0
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_shadows: ClassVar[bool]
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def scores(
        self, target_logits: Logits, labels: Labels, shadow_logits: Tensor | None = None, included: Included | None = None
    ) -> Scores:
        """The attack itself, on inputs that have been checked: (N,) scores, higher = more likely a member of the target's training set."""

    @property
    def models_needed(self) -> tuple[int, int]:
        """How many shadow models (trained on a sample, not trained on it) each sample needs at least; none of the first where a setting `online` is off."""
        if not self.needs_shadows:
            return 0, 0
        return (2 if getattr(self, "online", True) else 0), 2

    @final
    def __call__(
        self, target_logits: Tensor, labels: Tensor, shadow_logits: Tensor | None = None, included: Tensor | None = None
    ) -> Tensor:
        """Scores each sample after checking the inputs.

        Args:
            target_logits: (N, K), of the model under audit.
            labels: (N,) int64 in [0, K).
            shadow_logits: (M, N, K), of M shadow models on the same samples. Ignored by audits that need none.
            included: (M, N) bool, which shadow model trained on which sample.

        Returns:
            (N,) scores, higher = more likely a member.

        Raises:
            ConfigError: the audit needs shadow models and got none.
            DataError: shapes do not fit, or a sample has too few shadow models with it or without it.
            ModelError: logits of the target or of a shadow model are NaN or infinite.
        """
        check_logits(target_logits, labels, "target logits")
        if not self.needs_shadows:
            return self.scores(target_logits, labels)
        if shadow_logits is None or included is None:
            missing = " and ".join(name for name, x in (("shadow_logits", shadow_logits), ("included", included)) if x is None)
            raise ConfigError(
                f"{type(self).__name__} needs the logits of shadow models and which samples each of them trained on; got no {missing}. "
                "Train some with train_shadow_models, or use LossThreshold, which needs none."
            )
        self._check_shadows(target_logits, labels, shadow_logits, included)
        return self.scores(target_logits, labels, shadow_logits, included)

    def _check_shadows(self, target_logits: Tensor, labels: Tensor, shadow_logits: Tensor, included: Tensor) -> None:
        if shadow_logits.ndim != 3 or shadow_logits.shape[1:] != target_logits.shape:
            raise DataError(
                f"shadow_logits must have the shape (M, {', '.join(map(str, target_logits.shape))}): M models on the target's samples; "
                f"got {tuple(shadow_logits.shape)}. Score every shadow model on the samples that the target is scored on."
            )
        if included.dtype != torch.bool or included.shape != shadow_logits.shape[:2]:
            raise DataError(
                f"included must be bool of shape {tuple(shadow_logits.shape[:2])}; got {included.dtype} of shape {tuple(included.shape)}."
            )
        check_groups(included, *self.models_needed)
        for m, logits in enumerate(shadow_logits):
            check_logits(logits, labels, f"logits of shadow model {m}")


def signal_of_models(signal: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Labels) -> Tensor:
    """One signal for M models: (M, N, K) → (M, N), model by model, so that no second copy of all logits is made."""
    return torch.stack([signal(one, labels) for one in logits])
