"""The simplest audit: members have a smaller loss. No shadow models; a floor that the strong audits must beat."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from ..metrics.signals import logit_margin
from ..types import Included, Labels, Logits, Scores
from .base import MembershipAudit


@final
@dataclass(frozen=True, kw_only=True)
class LossThreshold(MembershipAudit):
    """Ranks samples by minus the loss.

    The score is the logit margin log p_y − log(1 − p_y), an increasing function of minus the loss: the ROC is the same, and confident
    samples do not tie at a loss of 0.

    Example:
        >>> import torch
        >>> LossThreshold()(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
        tensor([3., 1.])

    Paper: Yeom et al., "Privacy Risk in Machine Learning", CSF 2018, arXiv:1709.01604.
    """

    name: ClassVar[str] = "loss_threshold"
    paper: ClassVar[str] = "Yeom et al., CSF 2018, arXiv:1709.01604"
    needs_shadows: ClassVar[bool] = False

    def scores(
        self, target_logits: Logits, labels: Labels, shadow_logits: Tensor | None = None, included: Included | None = None
    ) -> Scores:
        return logit_margin(target_logits, labels)
