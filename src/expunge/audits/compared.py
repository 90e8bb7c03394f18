"""What the audits of models share: who is the original, who is retrained, and how far a model is from the retrained ones on the same samples."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..device import device_of, resolve_device
from ..errors import ConfigError, DataError
from ..metrics.answers import ONE_REFERENCE, half_width
from ..metrics.estimate import Estimate, unsupported

Models = Mapping[str, nn.Module | Sequence[nn.Module]]
ORIGINAL, RETRAINED = "original", "retrained"


@final
@dataclass(frozen=True, eq=False)
class Cast:
    """The models of an audit by the part that they play.

    Attributes:
        original: trained on everything; None if there is none.
        retrained: never saw the forget set; at least one.
        unlearned: all others, by name.
    """

    original: nn.Module | None
    retrained: list[nn.Module]
    unlearned: dict[str, nn.Module]

    @property
    def named(self) -> dict[str, nn.Module]:
        """All models: the original, the unlearned ones, and "retrained", "retrained 2", …, as `audit` calls them."""
        first = {} if self.original is None else {ORIGINAL: self.original}
        return first | self.unlearned | {_numbered(RETRAINED, k): model for k, model in enumerate(self.retrained)}


def cast(models: Models, *, needs_original: bool = True) -> Cast:
    """The models by part, from the mapping that `audit` takes: {"original": …, "retrained": one or several, any other name: one or several}.

    Raises:
        ConfigError: no retrained model, or no original where one is needed.
    """
    flat = {name: [value] if isinstance(value, nn.Module) else list(value) for name, value in models.items()}
    wanting = [name for name in ([ORIGINAL] if needs_original else []) + [RETRAINED] if not flat.get(name)]
    if wanting or len(flat.get(ORIGINAL, [])) > 1:
        raise ConfigError(
            f"models must have one 'original' and at least one 'retrained'; got {', '.join(flat) or 'none'}. "
            "Pass {'original': model, 'unlearned': …, 'retrained': [first, second, third]}."
        )
    others = {
        _numbered(name, k): model for name, several in flat.items() if name not in (ORIGINAL, RETRAINED) for k, model in enumerate(several)
    }
    return Cast(flat[ORIGINAL][0] if ORIGINAL in flat else None, flat[RETRAINED], others)


@contextlib.contextmanager
def placed(model: nn.Module, device: str | torch.device) -> Iterator[nn.Module]:
    """The model on this device inside the block, and afterwards where it was."""
    home = device_of(model)
    try:
        yield model.to(resolve_device(device))
    finally:
        model.to(home)


def difference(own: Float[Tensor, " N"], references: Float[Tensor, "M N"], level: float = 0.95, *, bounds: float = math.inf) -> Estimate:
    """The mean of `own` minus the mean of what the M retrained models have on the same N samples, with a paired interval.

    The interval covers which samples were drawn and, with two or more references, which retrained models were. It does not cover the seed of the audited model.

    Args:
        own: one number a sample, float64.
        references: the same of each retrained model.
        level: confidence in (0, 1).
        bounds: the largest possible difference; the interval ends there.

    Raises:
        DataError: fewer than two samples, or NaN.

    Example:
        >>> print(difference(torch.tensor([1.0, 0.0, 1.0, 1.0]).double(), torch.zeros(1, 4).double(), bounds=1.0))
        0.750 [0.260, 1.000]
    """
    apart = own.double() - references.double().mean(0)
    if len(apart) < 2 or apart.isnan().any():
        raise DataError(f"a paired difference needs at least two samples and no NaN; got {len(apart)} with {int(apart.isnan().sum())} NaN.")
    n, m = len(apart), len(references)
    among = float(references.double().mean(1).var()) / m if m > 1 else 0.0
    reach = half_width(float(apart.var()) / n, among, m, level)
    value = float(apart.mean())
    return Estimate(value, max(-bounds, value - reach), min(bounds, value + reach), n, None if m > 1 else ONE_REFERENCE)


def spread(values: Sequence[float]) -> Estimate:
    """A null floor from one value for each retrained model: their mean, and the smallest and the largest (no confidence interval). n = how many.

    Example:
        >>> print(spread([0.1, 0.3]), "|", spread([0.1]))
        0.200 [0.100, 0.300] | n/a (needs two retrained models, got 1)
    """
    if len(values) < 2:
        return unsupported(f"needs two retrained models, got {len(values)}", n=len(values))
    return Estimate(sum(values) / len(values), min(values), max(values), len(values))


def others_of(stacked: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each of M rows, and all the others."""
    for m in range(len(stacked)):
        yield stacked[m], torch.cat([stacked[:m], stacked[m + 1 :]])


def plain(value: Any) -> Any:
    """An estimate, or lists and mappings of them, as plain values for JSON; None where a number is unknown or without end."""
    if isinstance(value, Estimate):
        return plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbered(name: str, k: int) -> str:
    return name if k == 0 else f"{name} {k + 1}"
