"""The factors of AMUN's theorem, as `expunge.factors` measures them: ready to print, to store, or to show in an audit's report."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

from ..attacks.transfer import Transfer
from ..metrics.estimate import Estimate
from ..report.factors_section import basis
from ..spectral.bound import Bound
from ..types import Labels
from .tables import factor_table, lines


class Layer(NamedTuple):
    """The affine layer with the largest spectral norm."""

    name: str
    norm: float


class LossTerms(NamedTuple):
    """The four terms of C, cross-entropies in nats, mean over the images that have an adversarial example; those of retrained models also over these.

    Attributes:
        original_adversarial: ℓ(f_O(x_adv), y), the original on the example with the true label.
        unlearned_adversarial: ℓ(f_U(x_adv), y_adv), the unlearned model on the example with the label that it was taught.
        retrained_clean: ℓ(f_R(x), y), the retrained models on the image itself.
        retrained_adversarial: ℓ(f_R(x_adv), y_adv), the retrained models on the example with that label.
    """

    original_adversarial: Estimate
    unlearned_adversarial: Estimate
    retrained_clean: Estimate
    retrained_adversarial: Estimate


@final
@dataclass(frozen=True, eq=False)
class Factors:
    """The result of `expunge.factors`. `print(factors)` shows a table with a sentence on each.

    Attributes:
        distance, median_distance: δ, L2 distance of the adversarial examples from their images, over those that were found.
        found: the share of images with an example, of those that the original gets right.
        bound: L, an upper bound on the original's Lipschitz constant, or the reason why there is none.
        layer: the layer with the largest spectral norm; None where the model calls no affine layer.
        stretch: L times the mean distance.
        transfer: how often the examples fool the retrained models.
        terms: the four loss terms. c: C, the first two minus the last two, image by image.
        n, n_used, n_wrong: forget images; those with an example, on which everything but `found` rests; those that the original gets wrong, which are left out.
        n_retrained: how many retrained models.
        attack: repr of the attack that made the examples.
        ids: of the forget images.

    Example:
        >>> import torch, expunge
        >>> train, _ = expunge.load_data("digits")
        >>> _ = torch.manual_seed(0)
        >>> found = expunge.factors(expunge.architecture("small", train)(), expunge.forget_random(train, 20), attack=expunge.NearestDDN(steps=5))
        >>> found.n, found.n_retrained, found.bound.value > 0
        (20, 0, True)
    """

    distance: Estimate
    median_distance: Estimate
    found: Estimate
    bound: Bound
    layer: Layer | None
    stretch: Estimate
    transfer: Transfer
    terms: LossTerms
    c: Estimate
    n: int
    n_used: int
    n_wrong: int
    n_retrained: int
    attack: str
    ids: Labels = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        every = {name: getattr(self, name) for name in ("distance", "median_distance", "found", "stretch", "c")}
        every |= self.transfer._asdict() | self.terms._asdict()
        return {
            "estimates": {name: estimate.to_dict() for name, estimate in every.items()},
            "bound": self.bound._asdict(), "layer": self.layer and self.layer._asdict(), "attack": self.attack,
            "n": self.n, "n_used": self.n_used, "n_wrong": self.n_wrong, "n_retrained": self.n_retrained,
        }  # fmt: skip

    def __str__(self) -> str:
        found = self.to_dict()
        return "\n".join([*lines(factor_table({"value": found}, meanings=True)), f"Intervals in brackets. {basis(found)}."])
