"""Why unlearning with adversarial examples went well or badly: the factors of AMUN's theorem, measured on the models at hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .attacks.adversarial_set import AdversarialSet
from .attacks.base import NearestAttack
from .attacks.nearest_l2_pgd import NearestL2PGD
from .attacks.transfer import Transfer, no_transfer, nothing_found, transferred, usable
from .audits.factors import Factors, Layer, LossTerms
from .data.images import Samples
from .data.split import Split
from .errors import ConfigError, DataError
from .metrics.accuracy import accuracy_of
from .metrics.agreement import ONE_IMAGE
from .metrics.answers import half_width
from .metrics.estimate import Estimate, check_level, mean_estimate, unsupported
from .metrics.median import median
from .metrics.signals import loss
from .spectral.bound import Bound
from .spectral.spectrum import spectrum
from .training.inference import check_model, logits_of

UNLEARNED, RETRAINED = "an unlearned", "a retrained"


def factors(
    original: nn.Module,
    forget: Split | Samples,
    adversarial: AdversarialSet | None = None,
    *,
    unlearned: nn.Module | None = None,
    retrained: nn.Module | Sequence[nn.Module] | None = None,
    attack: NearestAttack | None = None,
    level: float = 0.95,
) -> Factors:
    """The factors of AMUN's theorem, which say *why* an unlearned model is near to the retrained one or far from it:

        ‖θ' − θ_R‖² ≤ ‖θ_O − θ_R‖² + (2/β)(Lδ − C),
        C = ℓ(f_O(x_adv), y) + ℓ(f_U(x_adv), y_adv) − ℓ(f_R(x), y) − ℓ(f_R(x_adv), y_adv)

    Small is good for δ, the distance of an adversarial example, and for L, how much the original can stretch it; large is good for C: an attack
    that succeeds clearly, examples that transfer to retrained models with the same wrong label, fine-tuning that does not learn the
    examples by heart, and retrained models that generalise to the forget images.

    A diagnostic, not a guarantee. The theorem is about one step of gradient descent for one image, and supposes a loss that is convex in the
    weights, which no network's is, and that the loss ℓ(f(·), y) itself is L-Lipschitz in the image: for the cross-entropy that takes √2 times the
    constant of the logits, which is the L given here. L is an upper bound and usually far above the truth. Compare methods, attacks and
    originals by their factors; do not weigh Lδ against C.

    Args:
        original: the model before unlearning.
        forget: a split, or the forget images themselves, with their true labels.
        adversarial: examples of these images (or of more) that an attack made with `original`; None = made here.
        unlearned: a method's model. Without it, its term and C are n/a.
        retrained: one or more models that never saw the forget images. Without one, transfer, their terms and C are n/a.
        attack: makes the examples if there are none; default `NearestL2PGD()`, AMUN's.
        level: confidence in (0, 1).

    Returns:
        Each factor as an estimate. Means have Student's interval over images, and over retrained models as well where there are several
        (each with its own quantile, as in `half_width`): these are averaged for each image first. The seeds of the original and of the unlearned model
        are in no interval; unlearned models held against the same retrained ones share three of the four terms, so that C's interval is too wide
        for comparing them: compare `unlearned_adversarial`. The median's interval is exact, from order statistics. Images that the original gets wrong by itself are left out.

    Raises:
        ConfigError: both `adversarial` and `attack`, an empty list of retrained models, or level outside (0, 1).
        DataError: no image, or adversarial examples of another model or of other images.
        ModelError: outputs that do not fit the labels, or a model that the attack cannot take.

    Flags: those of the attack; ProbabilitiesNotLogits, NondeterministicModel.

    Cost: the attack, unless examples are given; two forward passes of each retrained model, one of the others, and one `spectrum`.
    Paper: Ebrahimpour-Boroojeny et al. 2025, arXiv:2503.00917, Theorem 4.1. Departures: theirs is for one image and a one-step θ'; here are means
    over the forget set, and θ' is the method's result.
    Example:
        >>> from expunge import architecture, forget_random, load_data
        >>> train, test = load_data("digits")
        >>> _ = torch.manual_seed(0)  # some networks that have learnt nothing give no wrong label anywhere
        >>> found = factors(architecture("small", train)(), forget_random(train, 20), attack=NearestL2PGD(steps=5))
        >>> found.bound.value > 0, str(found.c)
        (True, 'n/a (needs an unlearned and a retrained model)')
    """
    check_level(level)
    samples = forget.forget if isinstance(forget, Split) else forget
    if not isinstance(samples, Samples) or len(samples) == 0:
        raise DataError(f"forget must be a split or at least one image with its label; got {samples!r}. Pass forget_samples(train, […]).")
    if adversarial is not None and attack is not None:
        raise ConfigError(f"adversarial examples are either given or made; got a set and {attack!r}. Leave one of them out.")
    others = [] if retrained is None else [retrained] if isinstance(retrained, nn.Module) else list(retrained)
    if retrained is not None and not others:
        raise ConfigError("retrained must be a model or at least one in a list; got none. Leave it out where there is no retrained model.")
    for model in [*([unlearned] if unlearned is not None else []), *others]:
        check_model(model, samples)
    if adversarial is None:
        adversarial = (attack or NearestL2PGD())(original, samples)
    else:
        adversarial.check(original)
    examples = adversarial.for_samples(samples)
    bound, layer = _smoothness(original, samples)
    distance, median, stretch = _distances(examples, bound, level)
    transfer, terms, c = _answers(original, unlearned, others, samples, examples, level)
    right = ~examples.already_wrong
    return Factors(
        distance, median, accuracy_of(examples.found[right], level) if right.any() else unsupported(nothing_found(examples), 0),
        bound, layer, stretch, transfer, terms, c,
        n=len(samples), n_used=len(usable(examples)), n_wrong=int((~right).sum()), n_retrained=len(others), attack=examples.attack, ids=samples.ids,
    )  # fmt: skip


def _smoothness(original: nn.Module, samples: Samples) -> tuple[Bound, Layer | None]:
    found = spectrum(original, samples.shape)
    name = max(found.norms, key=lambda layer: found.norms[layer], default=None)
    return found.bound, None if name is None else Layer(name, found.norms[name])


def _distances(examples: AdversarialSet, bound: Bound, level: float) -> tuple[Estimate, Estimate, Estimate]:
    """Mean and median δ, and Lδ."""
    distances = examples.distances[usable(examples)].double()
    if len(distances) == 0:
        return (unsupported(nothing_found(examples), 0),) * 3
    mean = _mean(distances[None], level, least=0.0)
    stretch = (
        unsupported("needs the bound L", len(distances))
        if bound.value is None
        else Estimate(bound.value * mean.value, bound.value * mean.low, bound.value * mean.high, mean.n, mean.note)
    )
    return mean, median(distances.tolist(), level=level), stretch


def _answers(
    original: nn.Module, unlearned: nn.Module | None, others: list[nn.Module], samples: Samples, examples: AdversarialSet, level: float
) -> tuple[Transfer, LossTerms, Estimate]:
    """What depends on what the models answer: transfer, the terms of C, and C."""
    at = usable(examples)
    if len(at) == 0:
        why = nothing_found(examples)
        none = unsupported(why, 0)
        return no_transfer(why), LossTerms(none, none, none, none), none
    y, y_adv, attacked, clean = examples.true_labels[at], examples.labels[at], examples.subset(at), samples.subset(at)
    transfer = no_transfer(f"needs {RETRAINED} model")
    losses = {"original_adversarial": loss(logits_of(original, attacked).double(), y)[None]}
    if unlearned is not None:
        losses["unlearned_adversarial"] = loss(logits_of(unlearned, attacked).double(), y_adv)[None]
    if others:
        on_attacked, on_clean = (torch.stack([logits_of(m, images).double() for m in others]) for images in (attacked, clean))
        transfer = transferred(y_adv, y, on_attacked.argmax(2), on_clean.argmax(2), level)
        losses |= {"retrained_clean": loss(on_clean, y), "retrained_adversarial": loss(on_attacked, y_adv)}
    wanting = {name: UNLEARNED if name.startswith("unlearned") else RETRAINED for name in LossTerms._fields if name not in losses}
    terms = LossTerms(
        *(
            unsupported(f"needs {wanting[name]} model", len(at)) if name in wanting else _mean(losses[name], level, least=0.0)
            for name in LossTerms._fields
        )
    )
    if wanting:
        return transfer, terms, unsupported(f"needs {' and '.join(dict.fromkeys(wanting.values()))} model", len(at))
    first, second, third, fourth = (losses[name] for name in LossTerms._fields)
    return transfer, terms, _mean(first + second - third - fourth, level)


def _mean(values: Float[Tensor, "M N"], level: float, least: float = -math.inf) -> Estimate:
    """The mean over M models and N images, with an interval over both; `least` is the smallest that a mean can be."""
    (n_models, n), images = values.shape, mean_estimate(values.mean(0).tolist(), level)
    if n == 1:
        return replace(images, note=ONE_IMAGE)
    models = half_width(0.0, float(values.mean(1).var()) / n_models, n_models, level) if n_models > 1 else 0.0
    reach = math.hypot(images.high - images.value, models)
    return Estimate(images.value, max(least, images.value - reach), images.value + reach, n)
