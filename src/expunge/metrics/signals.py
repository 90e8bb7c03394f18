"""How a classifier treats one labelled image, as one number: the signals that membership inference is made of.

Every function takes logits (never probabilities) and works in logit space, because a float32 probability near 1 has lost what an audit
looks for: at a logit gap of 16 log p − log(1 − p) is already wrong, and at 20 it is infinite. Each row is treated by itself, so a value
cannot depend on which images share its batch.
A leading axis of models is allowed: logits (M, N, K) with labels (N,) give (M, N).
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from ..errors import DataError, ModelError
from ..types import Labels

LogitsOfModels = Float[Tensor, "*models N K"]
Signal = Float[Tensor, "*models N"]


def logit_margin(logits: LogitsOfModels, labels: Labels) -> Signal:
    """The log-odds of the true class, φ = log p_y − log(1 − p_y) = z_y − logsumexp of the other logits; higher = more confident and right.

    Args:
        logits: (N, K) or (M, N, K), K ≥ 2. Half precision is computed in float32.
        labels: (N,) int64 in [0, K).

    Returns:
        (N,) or (M, N) in (−∞, ∞), in the precision of the logits. p_y = σ(φ).

    Example:
        >>> logit_margin(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor([2.])
    """
    logits = _at_least_float32(logits)
    return _margin(logits, labels.expand(logits.shape[:-1]))


def true_log_prob(logits: LogitsOfModels, labels: Labels) -> Signal:
    """log p_y, the log-probability of the true class, in (−∞, 0]: log σ(φ), which stays exact where log-softmax rounds to 0.

    Example:
        >>> print(*(f"{x:.3g}" for x in true_log_prob(torch.tensor([[0.0, 0.0], [30.0, 0.0]]), torch.tensor([0, 0]))))
        -0.693 -9.36e-14
    """
    return logsigmoid(logit_margin(logits, labels))


def loss(logits: LogitsOfModels, labels: Labels) -> Signal:
    """The cross-entropy −log p_y in nats, in [0, ∞).

    Example:
        >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.6931])
    """
    return -true_log_prob(logits, labels)


def hinge(logits: LogitsOfModels, labels: Labels) -> Signal:
    """z_y − max of the other logits, in (−∞, ∞); positive = classified correctly. φ ≤ hinge ≤ φ + log(K − 1).

    Example:
        >>> hinge(torch.tensor([[2.0, 0.5, 1.0]]), torch.tensor([0]))
        tensor([1.])
    """
    logits = _at_least_float32(logits)
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    return logits.gather(-1, index).squeeze(-1) - logits.scatter(-1, index, -torch.inf).amax(-1)


def entropy(logits: LogitsOfModels) -> Signal:
    """−Σ_j p_j log p_j in nats, in [0, log K]; low = confident, whether right or wrong.

    Example:
        >>> entropy(torch.tensor([[0.0, 0.0]]))
        tensor([0.6931])
    """
    log_p = _log_probs(_at_least_float32(logits))
    return -_weigh(log_p.exp(), log_p).sum(-1)


def modified_entropy(logits: LogitsOfModels, labels: Labels) -> Signal:
    """−(1 − p_y) log p_y − Σ_{j≠y} p_j log(1 − p_j) in nats, in [0, ∞): 0 for confident and right, large for confident and wrong.

    Unlike the entropy it depends on the label. Widely copied code writes the label's column for all rows of a batch at once and takes log p
    for log(1 − p), so that its value depends on the batch and hardly on the label.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0]])
        >>> [round(float(modified_entropy(logits, torch.tensor([y]))), 3) for y in (0, 1)]
        [0.001, 7.892]

    Paper: Song and Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX Security 2021, arXiv:2003.10595.
    """
    logits = _at_least_float32(logits)
    labels, top = labels.expand(logits.shape[:-1]), logits.argmax(-1)
    log_p = _log_probs(logits)
    # log(1 − p_j): every class but the top one has p_j ≤ 1/2, where log1p is exact; the top one needs the logits of the others.
    log_rest = torch.log1p(-log_p.exp()).scatter(-1, top.unsqueeze(-1), logsigmoid(-_margin(logits, top)).unsqueeze(-1))
    margin = _margin(logits, labels)
    own = torch.sigmoid(-margin) * logsigmoid(margin)
    return -_weigh(log_p.exp(), log_rest).scatter(-1, labels.unsqueeze(-1), own.unsqueeze(-1)).sum(-1)


def taylor_softmax(logits: LogitsOfModels, labels: Labels, temperature: float = 2.0, order: int = 3, margin: float = 0.6) -> Signal:
    """The soft-margin Taylor softmax of the true class, the signal that AMUN's RMIA numbers are made with.

        t(z) = Σ_{i=0}^{order} z^i / i!,    s = t(z_y/T − m) / (t(z_y/T − m) + Σ_{j≠y} t(z_j/T))

    Near [0, 1] for ordinary logits, but a polynomial of odd order is negative far below 0: for very negative logits the value is negative
    or above 1. That is part of the signal and is kept. So there is no logarithm of it.

    Args:
        logits: (N, K) or (M, N, K).
        labels: (N,) int64 in [0, K).
        temperature: T > 0, divides the logits. AMUN: 2.
        order: highest power of the polynomial, ≥ 1. AMUN: 3.
        margin: m, subtracted from the scaled true logit. AMUN: 0.6.

    Example:
        >>> taylor_softmax(torch.tensor([[4.0, 0.0]]), torch.tensor([0]))
        tensor([0.7933])

    Paper: Banerjee et al., "Exploring Alternatives to Softmax Function", 2020, arXiv:2011.11538; used by Zarifzadeh et al. (RMIA), ICML
    2024, arXiv:2312.03262.
    """
    scaled = logits.double() / temperature
    index = labels.expand(scaled.shape[:-1]).unsqueeze(-1)
    own = _taylor(scaled.gather(-1, index).squeeze(-1) - margin, order)
    others = _taylor(scaled, order).scatter(-1, index, 0.0).sum(-1)
    return (own / (own + others)).to(_at_least_float32(logits).dtype)


def jsd(logits_a: Float[Tensor, "*models N K"], logits_b: Float[Tensor, "*models N K"]) -> Signal:
    """The Jensen-Shannon divergence between two models' outputs, row by row, in [0, ln 2] nats: ½ KL(p, m) + ½ KL(q, m) with m = (p + q)/2.

    Example:
        >>> jsd(torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]]))
        tensor([0.6931])
    """
    log_p, log_q = log_softmax(logits_a.double(), -1), log_softmax(logits_b.double(), -1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    terms = _weigh(log_p.exp(), log_p - log_m) + _weigh(log_q.exp(), log_q - log_m)
    return (terms.sum(-1) / 2).clamp(0, math.log(2)).to(_at_least_float32(logits_a).dtype)


def check_logits(logits: Tensor, labels: Tensor, what: str = "logits") -> None:
    """Raises DataError for shapes or labels that do not fit, ModelError for logits that are NaN or infinite."""
    if logits.ndim != 2 or not logits.is_floating_point() or logits.shape[1] < 2 or len(logits) == 0:
        raise DataError(
            f"{what} must be floating point of shape (N, K) with N ≥ 1 and K ≥ 2; got {logits.dtype} of shape {tuple(logits.shape)}."
        )
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        raise DataError(
            f"labels must be int64 of shape ({len(logits)},), one for each row of {what}; "
            f"got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    outside = (labels < 0) | (labels >= logits.shape[1])
    if outside.any():
        raise DataError(f"labels must lie in [0, {logits.shape[1]}), the number of columns of {what}; got {int(labels[outside][0])}.")
    broken = ~torch.isfinite(logits).all(1)
    if broken.any():
        raise ModelError(
            f"{what} must be finite; got NaN or infinity for {int(broken.sum())} of {len(logits)} samples "
            f"(first: sample {int(broken.nonzero()[0])}). "
            "The model has diverged, or it computes in half precision: check its training loss, or score it in float32."
        )


def _margin(logits: Tensor, classes: Int64[Tensor, "*models N"]) -> Tensor:
    index = classes.unsqueeze(-1)
    return logits.gather(-1, index).squeeze(-1) - logits.scatter(-1, index, -torch.inf).logsumexp(-1)


def _log_probs(logits: Tensor) -> Tensor:
    """log-softmax, with the top class from its margin: where p is nearly 1, log-softmax rounds log p to 0."""
    top = logits.argmax(-1)
    return log_softmax(logits, -1).scatter(-1, top.unsqueeze(-1), logsigmoid(_margin(logits, top)).unsqueeze(-1))


def _weigh(p: Tensor, x: Tensor) -> Tensor:
    """p · x, with 0 · (±∞) = 0."""
    return torch.where(p > 0, p * x, 0.0)


def _taylor(z: Tensor, order: int) -> Tensor:
    total = torch.ones_like(z)
    for i in range(order, 0, -1):  # Horner: 1 + z (1 + z/2 (1 + z/3 (…)))
        total = 1 + z / i * total
    return total


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
