"""How often adversarial examples of one model fool another one that was trained independently: with the same wrong label, and with any.

AMUN teaches a model the wrong labels of its own adversarial examples. That moves it towards a retrained model only as far as the retrained one
gives the examples these very labels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from ..data.images import Samples
from ..errors import ConfigError
from ..metrics.accuracy import accuracy_of
from ..metrics.answers import half_width
from ..metrics.estimate import Estimate, proportion_interval, unsupported
from ..training.inference import check_model, logits_of
from ..types import Labels
from .adversarial_set import AdversarialSet

Answers = Int64[Tensor, "M N"]  # top classes, one row for each model


class Transfer(NamedTuple):
    """How often adversarial examples fool models that they were not made with; fractions in [0, 1].

    Attributes:
        same: the share whose top class is y_adv, of those examples whose image (without the attack) the other model gets right. n counts these.
        any: the share whose top class is any wrong one, of the same examples; never below `same`.
        same_of_all, any_of_all: the same of all examples, also of images that the other model gets wrong by itself.

    Example:
        >>> import torch, expunge
        >>> x = torch.tensor([0.3, 0.45, 0.55, 0.7]).reshape(4, 1, 1, 1)
        >>> data = expunge.ImageData(x, torch.tensor([0, 0, 1, 1]), ("dark", "bright"))
        >>> bright = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2))
        >>> _ = bright.load_state_dict({"1.weight": torch.tensor([[-1.0], [1.0]]), "1.bias": torch.tensor([0.5, -0.5])})
        >>> found = expunge.transfer(expunge.NearestDDN()(bright, data), data, bright)
        >>> found.same.value, found.any.value
        (1.0, 1.0)
    """

    same: Estimate
    any: Estimate
    same_of_all: Estimate
    any_of_all: Estimate


def transfer(adversarial: AdversarialSet, data: Samples, models: nn.Module | Sequence[nn.Module], level: float = 0.95) -> Transfer:
    """How often the adversarial examples of these images fool one model, or several, that they were not made with.

    A model is fooled only where it was right before: of an image that it gets wrong anyway, a wrong answer shows nothing. Examples that were not
    found, and images that the attacked model itself got wrong (`already_wrong`), count nowhere. Nearest examples lie just behind the attacked
    model's border, so that they fool others far more rarely than examples that were pushed on within a radius.

    Args:
        adversarial: made by an attack on some model; may have more examples than `data` has images.
        data: the images that the examples are wanted of, with their true labels; matched by id, and checked.
        models: one model, or several that were trained independently, on the same classes. They are scored where their weights are.
        level: confidence in (0, 1).

    Returns:
        For one model, shares with exact (Clopper-Pearson) intervals. For M models the mean of their shares. Models share the images, so M
        times the answers are not M times the evidence: the interval joins Clopper and Pearson's for as many images as one model has
        (as if all models answered alike, the worst case; it has a width at shares of 0 and 1, too) with Student's over the M shares, as
        `half_width` does.

    Raises:
        ConfigError: no model, or level outside (0, 1).
        DataError: an image without an example, or an example that was made from another image.
        ModelError: outputs that do not fit the labels.

    Cost: two forward passes of each model.
    Paper: factor (b) of C in Ebrahimpour-Boroojeny et al. 2025, arXiv:2503.00917, section 4. Departures: they give no formula; the denominator
    and the intervals are ours.
    Example:
        >>> from expunge import NearestL2PGD
        >>> from expunge.data.images import ImageData
        >>> images = ImageData(torch.tensor([0.2, 0.3, 0.7, 0.8]).reshape(4, 1, 1, 1), torch.tensor([0, 0, 1, 1]), ("dark", "bright"))
        >>> def model(border):
        ...     net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
        ...     _ = net[1].weight.data.copy_(torch.tensor([[-1.0], [1.0]])), net[1].bias.data.copy_(torch.tensor([border, -border]))
        ...     return net
        >>> examples = NearestL2PGD()(model(0.5), images)
        >>> transfer(examples, images, model(0.5)).same.value, transfer(examples, images, model(0.4)).same.value
        (1.0, 0.5)
    """
    models = [models] if isinstance(models, nn.Module) else list(models)
    if not models:
        raise ConfigError("a transfer needs at least one model that the examples were not made with; got none. Pass a retrained model.")
    examples = adversarial.for_samples(data)
    for model in models:
        check_model(model, data, labels=torch.cat([examples.labels, examples.true_labels]))
    used = usable(examples)
    if len(used) == 0:
        return no_transfer(nothing_found(examples))
    attacked, clean = (torch.stack([logits_of(m, images.subset(used)).argmax(1) for m in models]) for images in (examples, data))
    return transferred(examples.labels[used], examples.true_labels[used], attacked, clean, level)


def usable(examples: AdversarialSet) -> Labels:
    """Positions of the examples that were searched for and found."""
    return (examples.found & ~examples.already_wrong).nonzero().flatten()


def nothing_found(examples: AdversarialSet) -> str:
    """Why there is no number where `usable` has no position."""
    return f"no adversarial example was found for any of {len(examples)} images that the attacked model gets right"


def no_transfer(reason: str) -> Transfer:
    """A transfer without values, for this reason."""
    return Transfer(*[unsupported(reason, 0)] * 4)


def transferred(adversarial_labels: Labels, labels: Labels, attacked: Answers, clean: Answers, level: float = 0.95) -> Transfer:
    """`transfer` from what the models answer: a pure function.

    Args:
        adversarial_labels, labels: y_adv and y, (N,), N ≥ 1, different everywhere.
        attacked, clean: (M, N), M ≥ 1, top classes of each model on the examples and on the images without the attack.
        level: confidence in (0, 1).

    Example:
        >>> y, y_adv, attacked = torch.zeros(4).long(), torch.ones(4).long(), torch.tensor([[1, 2, 0, 1]])
        >>> found = transferred(y_adv, y, attacked, torch.tensor([[0, 0, 0, 1]]))
        >>> [round(share.value, 3) for share in found], found.same.n
        ([0.333, 0.667, 0.5, 0.75], 3)
    """
    same, wrong, right = attacked == adversarial_labels, attacked != labels, clean == labels
    everything = torch.ones_like(right)
    return Transfer(*(_share(hits, counted, level) for counted in (right, everything) for hits in (same, wrong)))


def _share(hits: Bool[Tensor, "M N"], counted: Bool[Tensor, "M N"], level: float) -> Estimate:
    counts, n_models = counted.sum(1), len(hits)
    if (counts == 0).any():
        return unsupported(f"a model is right on none of {hits.shape[1]} images, so that nothing can fool it", 0)
    if n_models == 1:
        return accuracy_of(hits[0][counted[0]], level)
    shares = (hits & counted).sum(1).double() / counts
    value, n = float(shares.mean()), int(counts.double().mean())
    low, high = proportion_interval(value * n, n, level)
    reach = half_width(0.0, float(shares.var()) / n_models, n_models, level)
    return Estimate(value, max(0.0, value - math.hypot(value - low, reach)), min(1.0, value + math.hypot(high - value, reach)), n)
