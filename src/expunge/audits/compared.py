"""What the audits of models share: who is the original, who is retrained, and how far a model is from the retrained ones on the same samples."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.images import Samples
from ..device import device_of, resolve_device
from ..errors import ConfigError, DataError
from ..metrics.answers import ONE_REFERENCE, half_width
from ..metrics.estimate import Estimate, unsupported
from ..report.twins import is_reference, numbered

Models = Mapping[str, nn.Module | Sequence[nn.Module]]
ORIGINAL, RETRAINED = "original", "retrained"


@final
@dataclass(frozen=True, eq=False)
class Cast:
    """The models of an audit by the part that they play.

    Attributes:
        original: trained on everything; None if there is none.
        retrained: never saw the forget set, by name; at least one.
        unlearned: all others, by name.
    """

    original: nn.Module | None
    retrained: dict[str, nn.Module]
    unlearned: dict[str, nn.Module]

    @property
    def named(self) -> dict[str, nn.Module]:
        """All models: the original, the unlearned ones, and then the retrained ones, as `audit` calls them."""
        return self.audited | self.retrained

    @property
    def audited(self) -> dict[str, nn.Module]:
        """All but the retrained ones."""
        return ({} if self.original is None else {ORIGINAL: self.original}) | self.unlearned


def one_by_one(models: Models) -> dict[str, nn.Module]:
    """Each model under a name of its own: a list under one name becomes "name", "name 2", …

    Raises:
        ConfigError: a name twice, because models of a list count as numbered.

    Example:
        >>> list(one_by_one({"original": nn.Identity(), "retrained": [nn.Identity(), nn.Identity()]}))
        ['original', 'retrained', 'retrained 2']
    """
    flat: dict[str, nn.Module] = {}
    for name, value in models.items():
        for k, model in enumerate(value if isinstance(value, Sequence) else [value]):
            if numbered(name, k) in flat:
                raise ConfigError(
                    f"each model must have a name of its own; got {numbered(name, k)!r} twice. The models of a list count as numbered."
                )
            flat[numbered(name, k)] = model
    return flat


def cast(models: Models, *, reference: str = RETRAINED, needs_original: bool = True) -> Cast:
    """The models by part, from the mapping that `audit` takes: {"original": …, "retrained": one or several, any other name: one or several}.

    Args:
        models: by name; a list under one name becomes "name", "name 2", …, and these may also stand in the mapping themselves.
        reference: the name of the retrained model. "retrained 2", "retrained 3", … are retrained as well.
        needs_original: whether the original must be there.

    Raises:
        ConfigError: no retrained model, no original where one is needed or several, the original as reference, or a name twice.

    Example:
        >>> one = nn.Identity()
        >>> list(cast({"original": one, "gold": one, "gold 2": one, "golden": one}, reference="gold").retrained)
        ['gold', 'gold 2']
    """
    if reference == ORIGINAL:
        raise ConfigError("the reference must be a retrained model; got 'original', which saw the forget set. Pass reference='retrained'.")
    flat = one_by_one(models)
    retrained = {name: model for name, model in flat.items() if is_reference(name, reference)}
    if not retrained or (needs_original and ORIGINAL not in flat) or numbered(ORIGINAL, 1) in flat:
        raise ConfigError(
            f"models must have one 'original' and at least one {reference!r}; got {', '.join(flat) or 'none'}. "
            f"Pass {{'original': model, 'unlearned': …, {reference!r}: [first, second, third]}}."
        )
    others = {name: model for name, model in flat.items() if name != ORIGINAL and name not in retrained}
    return Cast(flat.get(ORIGINAL), retrained, others)


def few(samples: Samples, most: int) -> Samples:
    """At most so many of the samples, evenly spread."""
    return samples if len(samples) <= most else samples.subset(spaced(len(samples), most))


def spaced(n: int, most: int) -> Tensor:
    """At most so many of the numbers below n, evenly spread, ascending.

    Example:
        >>> spaced(10, 4).tolist(), spaced(3, 4).tolist()
        ([0, 3, 6, 9], [0, 1, 2])
    """
    return torch.arange(n) if n <= most else torch.linspace(0, n - 1, most, dtype=torch.float64).round().long()


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

        √( z² s²_samples / N + t² s² (1 + 1/M) ),    s² the variance of the means of retrained models

    The interval covers which samples were drawn and, with two or more references, the seeds: those of the retrained models (s² / M) and that of the audited model, which has one
    of its own, too (s², as if it were retrained). So it is a test of "like retraining": for 95 % of models that are one more retrained model it holds 0.

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
    among = float(references.double().mean(1).var()) * (1 + 1 / m) if m > 1 else 0.0
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


def spread_of_gaps(pairs: Float[Tensor, "M M"]) -> Estimate:
    """What chance alone does to a gap "to retrained models, less among them": that of each of the M retrained models against the others, signed; `spread` of these.

    Args:
        pairs: how far (or how alike) each two retrained models are, symmetric; the diagonal does not count.

    Example:
        >>> print(spread_of_gaps(torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 2.0], [1.0, 2.0, 0.0]])))
        0.000 [-1.000, 0.500]
    """
    m = len(pairs)
    if m < 3:
        return unsupported(f"needs three retrained models, got {m}", n=m)
    off = pairs.double() * (1 - torch.eye(m, dtype=torch.float64))
    sums = off.sum(1)
    return spread((sums / (m - 1) - (off.sum() - 2 * sums) / ((m - 1) * (m - 2))).tolist())


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
