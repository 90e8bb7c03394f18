"""Where a model sends the images of a forgotten class, and how far that is from where retrained models send them.

Everything is a pure function of logits on images of the forgotten classes, best unseen ones: (N, K) for a model, (M, N, K) for M retrained
models on the same images in the same order. Probabilities are float64. Cost: a softmax and a few passes over M·N·K numbers.
"""

import itertools
import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from ..errors import DataError
from ..rng import generator
from .estimate import Estimate, check_level, unsupported
from .signals import check_logits

Answer = Float[Tensor, " K"]  # a distribution over classes

ONE_REFERENCE = "one retrained model: the interval leaves out how retrained models differ"
MAX_REGROUPINGS = 10_000


def mean_answer(logits: Tensor) -> Answer:
    """The mean of the predicted probabilities over images (N, K), float64 (K,), of sum 1.

    Raises:
        DataError: not (N, K) with an image.
        ModelError: logits are NaN or infinite.

    Example:
        >>> mean_answer(torch.tensor([[0.0, 0.0], [0.0, 90.0]])).tolist()
        [0.25, 0.75]
    """
    return _probabilities(logits).mean(0)


def predicted_shares(logits: Tensor) -> Answer:
    """The share of images (N, K) that each class is the top class of, float64 (K,), of sum 1: the forgotten class's row of the confusion matrix.

    Raises:
        DataError: not (N, K) with an image.
        ModelError: logits are NaN or infinite.

    Example:
        >>> predicted_shares(torch.tensor([[0.0, 1.0], [0.0, 9.0]])).tolist()
        [0.0, 1.0]
    """
    top = _probabilities(logits).argmax(1)
    return torch.bincount(top, minlength=logits.shape[1]).double() / len(top)


def total_variation(logits: Tensor, references: Tensor, level: float = 0.95) -> Estimate:
    """How differently a model and the average of retrained models answer the same image, mean over images, in [0, 1]:

        TV = E_x ½ Σ_y |p(y|x) − p̄(y|x)|,    p̄ the mean probabilities of the references

    The interval covers which images were drawn and, with two or more references, which retrained models were (leave-one-out jackknife). It
    does not cover the seed of the audited model. TV cannot be negative and p̄ is noisy, so a model that is just one more retrained model has
    a TV above 0: read it against `total_variation_floor`.

    Args:
        logits: of the audited model, (N, K).
        references: of M ≥ 1 retrained models on the same images, (M, N, K).
        level: confidence in (0, 1).

    Raises:
        DataError: shapes do not fit.
        ModelError: logits are NaN or infinite.

    Example:
        >>> references = torch.tensor([[[0.0, 0.0]] * 4, [[0.0, 90.0]] * 4])  # p̄ = (0.25, 0.75)
        >>> total_variation(torch.tensor([[90.0, 0.0]] * 4), references).value
        0.75

    Paper: Ebrahimpour-Boroojeny et al., arXiv:2506.20893, first version. Departures: their formula is not known to us, this is a
    reconstruction; the interval is ours.
    """
    answers, others = _probabilities(logits), _of_references(references, logits.shape)
    distances, n_references = _distances(answers, others.mean(0)), len(references)
    value, n = float(distances.mean()), len(distances)
    check_level(level)
    if n == 1:
        return Estimate(value, 0.0, 1.0, n, "one image: nothing is known about others")
    jackknife, note = 0.0, None if n_references > 1 else ONE_REFERENCE
    if n_references > 1:
        without = torch.stack([_distances(answers, rest).mean() for rest in _leaving_one_out(others)])
        jackknife = float(without.var()) * (n_references - 1) ** 2 / n_references
    reach = half_width(float(distances.var()) / n, jackknife, n_references, level)
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach), n, note)


def mean_total_variation(logits: Tensor, references: Tensor) -> float:
    """½ Σ_y |E_x p(y|x) − E_x p̄(y|x)|, in [0, 1]: the same for the mean answers of the class; never above `total_variation`.

    Raises:
        DataError: shapes do not fit.
        ModelError: logits are NaN or infinite.

    Example:
        >>> swapped = torch.tensor([[90.0, 0.0], [0.0, 90.0]])
        >>> mean_total_variation(swapped, swapped.flip(0)[None]), total_variation(swapped, swapped.flip(0)[None]).value
        (0.0, 1.0)
    """
    answers, others = _probabilities(logits), _of_references(references, logits.shape)
    return float(_distances(answers.mean(0), others.mean((0, 1))))


def total_variation_floor(references: Tensor) -> Estimate:
    """The TV that retraining itself has: each retrained model (M, N, K) against the mean of the others.

    Value: the mean over the M models. low and high are the smallest and the largest of them, not a confidence interval. n is M. The mean of M − 1
    models is a little noisier than the mean of M that an unlearned model is held against, so the floor is a little high for small M.

    Raises:
        DataError: not (M, N, K).
        ModelError: logits are NaN or infinite.

    Example:
        >>> print(total_variation_floor(torch.tensor([[[0.0, 0.0]], [[0.0, 90.0]]])))
        0.500 [0.500, 0.500]
    """
    others = _of_references(references)
    if len(others) < 2:
        return unsupported("needs two retrained models, got 1", n=1)
    floors = [float(_distances(one, rest).mean()) for one, rest in zip(others, _leaving_one_out(others), strict=True)]
    return Estimate(sum(floors) / len(floors), min(floors), max(floors), len(floors))


class TwoSample(NamedTuple):
    """A permutation test over models.

    Attributes:
        statistic: mean over classes of |mean of one group − mean of the other|.
        p_value: the share of regroupings with a statistic at least as large.
        n_permutations: how many regroupings were looked at.
        smallest_p: the smallest p-value that this many models allow; if it is above the level you test at, train more models.
    """

    statistic: float
    p_value: float
    n_permutations: int
    smallest_p: float


def profile_test(a: Float[Tensor, "A K"], b: Float[Tensor, "B K"], seed: int = 0) -> TwoSample:
    """Tests whether two groups of models treat a class alike, from one profile over classes for each model (a `mean_answer`, say).

    Models are exchanged between the groups, not images: two retrained models of different seeds answer the same images differently, so
    that a test over images rejects retraining itself, the more surely the more images there are.
    All regroupings are tried if they are at most 10,000; otherwise 10,000 random ones, and the one at hand.

    Args:
        a, b: (A, K) and (B, K), A, B ≥ 1.
        seed: of the random regroupings; own generator.

    Example:
        >>> profile_test(torch.zeros(3, 2), torch.ones(3, 2))
        TwoSample(statistic=1.0, p_value=0.1, n_permutations=20, smallest_p=0.1)
    """
    profiles, n_a, n = torch.cat([a, b]).double(), len(a), len(a) + len(b)
    if math.comb(n, n_a) <= MAX_REGROUPINGS:
        chosen = torch.tensor(list(itertools.combinations(range(n), n_a)))  # the grouping at hand comes first
        smallest = (2 if 2 * n_a == n else 1) / len(chosen)  # exchanging equal groups leaves the statistic as it is: each value comes twice
    else:
        others = torch.rand(MAX_REGROUPINGS, n, generator=generator(seed)).argsort(1)[:, :n_a]
        chosen = torch.cat([torch.arange(n_a)[None], others])
        smallest = 1 / len(chosen)
    first = torch.zeros(len(chosen), n, dtype=torch.float64).scatter(1, chosen, 1.0)
    statistics = (first @ profiles / n_a - (1 - first) @ profiles / (n - n_a)).abs().mean(1)
    as_large = statistics >= statistics[0] - 1e-12  # sums in another order
    return TwoSample(float(statistics[0]), float(as_large.double().mean()), len(chosen), smallest)


def half_width(image_variance: float, reference_variance: float, n_references: int, level: float = 0.95) -> float:
    """Half the width of an interval with two independent sources of error: √(z² · image_variance + t² · reference_variance).

    Each variance is one of the estimate, not of a single draw. z is normal, because images are many; t has n_references − 1 degrees of freedom,
    because retrained models are few. Each term with its own quantile covers at least as often as `level` says (Banerjee, Sankhyā
    1960), and few retrained models do not blow up the term of the images.

    Example:
        >>> round(half_width(1.0, 0.0, 2), 2), round(half_width(0.0, 1.0, 2), 2)
        (1.96, 12.71)
    """
    upper = (1 + check_level(level)) / 2
    reach = NormalDist().inv_cdf(upper) ** 2 * image_variance
    if n_references > 1:
        reach += float(stdtrit(n_references - 1, upper)) ** 2 * reference_variance
    return math.sqrt(reach)


def check_references(references: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Raises DataError unless `references` is (M ≥ 1, N, K), with the (N, K) that is given; ModelError if a model's logits are NaN or infinite."""
    if references.ndim != 3 or len(references) == 0 or (shape is not None and references.shape[1:] != shape):
        expected = ", ".join(map(str, shape or ("N", "K")))
        raise DataError(
            f"references must have the shape (M, {expected}), at least one retrained model on the images of the audited one; "
            f"got {tuple(references.shape)}. Score every retrained model on those images; for a single one pass logits[None]."
        )
    for m, logits in enumerate(references):
        _check(logits, f"logits of retrained model {m}")


def _check(logits: Tensor, what: str) -> None:
    check_logits(logits, torch.zeros(logits.shape[:1], dtype=torch.int64, device=logits.device), what)


def _probabilities(logits: Tensor) -> Tensor:
    _check(logits, "logits")
    return logits.double().softmax(1)


def _of_references(references: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    check_references(references, shape)
    return references.double().softmax(2)


def _leaving_one_out(answers: Tensor) -> Tensor:
    """For each of M models the mean answers of the others, (M, N, K)."""
    return (answers.sum(0) - answers) / (len(answers) - 1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().sum(-1) / 2
