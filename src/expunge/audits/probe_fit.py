"""Small classifiers of "forget or retain" on features, many at once, and what each held-out sample tells about them in bits.

    i(z, y) = log₂ q(y|z) − log₂ ½,    E i ≤ I(Z; Y)

q is fitted on one half of the samples, and i is taken on the other: its mean is a lower bound of the mutual information of features and membership, for
balanced classes, whatever q is. A bad q makes the bound loose, never too high but for chance; it can come out below 0. Every q is mixed with 1 % of a coin toss: that
costs at most 0.0072 bits, and no single confident mistake outweighs all other samples (it counts −6.6 bits at worst), so that intervals hold.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ..rng import generator

Features = Float[Tensor, "B N d"]
Bits = Float[Tensor, "B H"]

RIDGES = tuple(10.0**k for k in range(2, -5, -1))  # on the mean loss of standardised features; the strongest all but ignores them
COIN = 0.01  # share of ½ in q
INTERCEPT_RIDGE = 1e-6  # keeps the Hessian invertible where every sample is fitted perfectly
FOLDS = 4
NEWTON_STEPS = 25
LENGTHS = (1.0, 0.5, 0.25, 0.125, 0.0)
HIDDEN, MLP_STEPS, MLP_LR = 32, 200, 0.02
BLOCK = 2**24  # numbers in the largest temporary: 128 MB


def held_out_bits(features: Features, forget: Bool[Tensor, " N"], fit: Bool[Tensor, " N"], probe: str = "linear", seed: int = 0) -> Bits:
    """What each held-out sample tells about probes that were fitted on the others, i(z, y) in bits, in [−6.65, 0.993]: float64 (B, H), held-out samples in order.

    Args:
        features: of B models or layers on the same N samples. Standardised here, by the fitting half.
        forget: y, as many True as False both in the fitting half and in the other.
        fit: the samples that probes are fitted on.
        probe: "linear" (logistic regression; its ridge is chosen by 4-fold cross-validation inside the fitting half) or "mlp" (one hidden layer of 32, stopped where a
            quarter of the fitting half is predicted best).
        seed: of the first weights of the MLP.

    Cost: B · 35 Newton fits of N/2 samples; for N = 2,000 and d = 64, 256, 512, 2048: 0.1, 0.5, 1.8, 9 s of CPU (linear); "mlp": about 1 s.

    Example:
        >>> z = torch.tensor([[[1.0], [-1.0]] * 32])
        >>> y = torch.tensor([True, False] * 32)
        >>> bits = held_out_bits(z, y, torch.arange(64) < 32)
        >>> bits.shape, round(float(bits.min()), 2)
        (torch.Size([1, 32]), 0.99)
    """
    z = _standardised(features.double(), fit)
    folds = _folds(forget[fit])
    fitter = _fit_linear if probe == "linear" else _fit_mlp
    size = max(1, BLOCK // ((FOLDS + 1) * features.shape[1] * features.shape[2]))
    margins = torch.cat([fitter(part[:, fit], forget[fit], folds, part[:, ~fit], seed) for part in z.split(size)])
    return 1 + ((1 - COIN) * torch.sigmoid(margins * _signs(forget[~fit])) + COIN / 2).log2()


def _standardised(z: Tensor, fit: Tensor) -> Tensor:
    mean, std = z[:, fit].mean(1, keepdim=True), z[:, fit].std(1, keepdim=True)
    return torch.where(std > 1e-12 * (1 + mean.abs()), (z - mean) / std, 0.0)  # a dead feature tells nothing, whatever rounding does to it


def _signs(forget: Tensor) -> Tensor:
    return torch.where(forget, 1.0, -1.0).double()


def _folds(forget: Tensor) -> Tensor:
    """A fold for each sample, int64 (n,), balanced in y; samples come in no order that matters."""
    folds = torch.empty(len(forget), dtype=torch.int64)
    for side in (True, False):
        folds[forget == side] = torch.arange(int((forget == side).sum())) % FOLDS
    return folds


def _fit_linear(x: Tensor, forget: Tensor, folds: Tensor, held: Tensor, seed: int) -> Tensor:
    """Margins (B, H) of ridge-penalised logistic regressions on held-out features."""
    if x.shape[2] > x.shape[1]:  # the solution lies in the span of the samples
        basis = torch.linalg.qr(x.mT).Q
        x, held = x @ basis, held @ basis
    x, held = (torch.cat([part, torch.ones_like(part[..., :1])], -1) for part in (x, held))
    signs = _signs(forget)
    # Row k leaves fold k out, and the last row nothing: the fits that choose the ridge, and the one that is used.
    used = torch.cat([folds[None] != torch.arange(FOLDS)[:, None], torch.ones(1, len(folds), dtype=torch.bool)]).double()
    w = x.new_zeros(len(x), FOLDS + 1, x.shape[2])
    best, chosen = x.new_full((len(x),), -math.inf), w[:, -1]
    for ridge in RIDGES:
        w = _newton(x, signs, used, w, ridge)
        margins = signs * (w[:, :-1] @ x.mT)
        left_out = logsigmoid(margins).gather(1, folds.expand(len(x), 1, -1))[:, 0].mean(1)
        better = left_out > best
        best, chosen = torch.where(better, left_out, best), torch.where(better[:, None], w[:, -1], chosen)
    return (held @ chosen[..., None])[..., 0]


def _newton(x: Tensor, signs: Tensor, used: Tensor, w: Tensor, ridge: float) -> Tensor:
    """Minimises the mean of log(1 + exp(−margin)) over the used samples + ridge/2 · |w|², for (B, F) fits at once, from w (B, F, d)."""
    share = used / used.sum(1, keepdim=True)
    penalty = torch.cat([w.new_full((w.shape[2] - 1,), ridge), w.new_full((1,), INTERCEPT_RIDGE)])
    lengths = w.new_tensor(LENGTHS)[:, None, None]
    for _ in range(NEWTON_STEPS):
        margins = signs * (w @ x.mT)
        wrong = torch.sigmoid(-margins)
        gradient = -(share * wrong * signs) @ x + penalty * w
        if float(gradient.abs().max()) < 1e-7:
            break
        curvature = share * wrong * (1 - wrong)
        hessian = (x.mT[:, None] * curvature[:, :, None]) @ x[:, None] + torch.diag(penalty)
        step = torch.cholesky_solve(-gradient[..., None], torch.linalg.cholesky(hessian))[..., 0]
        change = signs * (step @ x.mT)
        tried = w + lengths[..., None] * step
        costs = (share * softplus(-(margins + lengths[..., None] * change))).sum(-1) + (penalty * tried.square()).sum(-1) / 2
        w = w + lengths[costs.argmin(0)][..., 0] * step
    return w


def _fit_mlp(x: Tensor, forget: Tensor, folds: Tensor, held: Tensor, seed: int) -> Tensor:
    """Margins (B, H) of networks with one hidden layer, each stopped at its own best step."""
    rng, (n_nets, _, d) = generator(seed), x.shape
    hidden = (torch.randn(d, HIDDEN, generator=rng, dtype=torch.float64) / math.sqrt(d)).expand(n_nets, -1, -1)
    zeros = (x.new_zeros(n_nets, 1, HIDDEN), x.new_zeros(n_nets, HIDDEN, 1), x.new_zeros(n_nets, 1, 1))  # step 0 says nothing: 0 bits
    parameters = [p.clone().requires_grad_() for p in (hidden, *zeros)]
    adam = torch.optim.Adam(parameters, lr=MLP_LR)
    signs, checks = _signs(forget), folds == 0
    best, answers = x.new_full((n_nets,), -math.inf), held.new_zeros(held.shape[:2])
    for _ in range(MLP_STEPS):
        likelihood = logsigmoid(signs * _network(parameters, x))
        better = likelihood[:, checks].mean(1) > best
        if better.any():
            with torch.no_grad():
                best = torch.where(better, likelihood[:, checks].mean(1), best)
                answers = torch.where(better[:, None], _network(parameters, held), answers)
        adam.zero_grad()
        (-likelihood[:, ~checks].mean(1).sum()).backward()  # the sum: networks learn side by side, each from its own loss
        adam.step()
    return answers


def _network(parameters: list[Tensor], x: Tensor) -> Tensor:
    first, shift, second, bias = parameters
    return (torch.tanh(x @ first + shift) @ second + bias)[..., 0]
