"""Critics of IDI: what a layer passes on, read by all layers behind it, trained again to say "forget" or "retain".

    c(z, y) = f(z) · g(y),    f = the remaining layers and a projection,    g = two learned vectors
    I_NCE = E (1/K) Σ_k i_k,    i_k = log₂ exp c(z_k, y_k) − log₂ (1/K) Σ_j exp c(z_k, y_j)

For K samples that were not trained on, I_NCE is a lower bound of the mutual information I(Z; Y), whatever c is. With two labels, of shares π₀ and π₁ among the K samples, the sum
over j has two kinds of terms, Σ_y π_y exp c(z_k, y), so that i_k ≤ −log₂ π of its own label: I_NCE is at most H(Y), which is 1 bit for balanced labels and
less for all others (log₂ K, the ceiling of InfoNCE for many labels, is above it).
"""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from ..costs import count
from ..data.images import Samples
from ..device import device_of, exact_float32, fast_layout, without_autocast
from ..errors import ModelError
from ..modes import eval_mode
from ..rng import generator
from ..training.features import features_at, pooled
from ..training.inference import logits_of
from .probe_fit import COIN

PROJECTION = 64  # dimensions in which f and g meet
CHECKED = 4  # every fourth fitting sample of a side chooses the step at which a critic is best, and trains nothing
FRESH = 10  # times the learning rate of the copied layers, for what is new: the projection and the label vectors
CHECK_EVERY, PATIENCE = 10, 100  # steps: between two looks, and without a better one until a training ends
BLOCK = 512  # samples that are scored at a time

Numbers = Mapping[str, Tensor]  # what critics of different seeds have learnt, side by side: (S, *shape)


def info_nce(scores: Float[Tensor, "*S K 2"], forget: Bool[Tensor, " K"]) -> Float[Tensor, "*S K"]:
    """i_k in bits for each of K samples; their mean is the InfoNCE bound, at most H(Y) of these labels: 1 bit where they are balanced.

    Args:
        scores: c(z_k, y) for y = retain and y = forget.
        forget: y_k.

    Example:
        >>> sure = torch.tensor([[0.0, 50.0], [50.0, 0.0]])
        >>> info_nce(sure, torch.tensor([True, False])).tolist(), info_nce(sure, torch.tensor([True, True])).tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    shares = torch.stack([~forget, forget]).to(scores.dtype).mean(1)
    scores = scores.log_softmax(-1)  # i does not change, and large scores lose no digits
    own = torch.where(forget, scores[..., 1], scores[..., 0])
    return (own - (scores + shares.log()).logsumexp(-1)) / math.log(2)


def cautious(scores: Float[Tensor, "*S K 2"]) -> Float[Tensor, "*S K 2"]:
    """The critic whose softmax is mixed with 1 % of a coin toss, as that of every probe is: another critic, so that the bound holds, at most 0.0072 bits looser. A single
    confident mistake counts −6.6 bits at worst and does not outweigh all other samples."""
    return torch.logaddexp(scores.log_softmax(-1) + math.log1p(-COIN), scores.new_tensor(math.log(COIN / 2)))


class Remaining(nn.Module):
    """What comes behind a layer of a model, as a network of its own: (N, …) that the layer passes on → (N, d) at the last layer, averaged over the image or the tokens.

    A copy. Parts that ran before the layer are gone; what lies behind the last layer (the one that gives the logits) runs, and is not asked.

    Args:
        model: with these layers.
        layer: name of a module. last: name of a later one, at which critics end.
        data: images to see the order of calls by; two are read.

    Raises:
        ModelError: the layer runs after the last one, or what comes behind reads more than what the layer passes on (a shortcut around it).
    """

    def __init__(self, model: nn.Module, layer: str, last: str, data: Samples) -> None:
        super().__init__()
        self.layer, self.last, few = layer, last, data.subset(range(2))
        when = _completed(model, few)
        if when[layer] > when[last]:
            raise ModelError(
                f"layers of IDI must run before the stage that gives the logits, up to {last!r}; got {layer!r}, which runs later. Leave it out."
            )
        earlier = [name for name, ended in when.items() if ended < when[layer]]
        self.net, self.source = copy.deepcopy(model).eval(), _Source()
        for name in earlier:
            if not any(name.startswith(f"{other}.") for other in earlier):
                self.net.set_submodule(name, _Silent())
        self.net.set_submodule(layer, self.source)
        self._check(model, few)

    def forward(self, z: Tensor) -> Tensor:
        self.source.z = z
        try:
            return pooled(_output_of(self.net, self.last, z))
        finally:
            self.source.z = None

    def _check(self, model: nn.Module, few: Samples) -> None:
        """What comes behind must give what the model gives, from what the layer passes on alone."""
        expected, z = features_at(model, [self.last], few)[self.last], passed_on(model, self.layer, few).to(device_of(model))
        try:
            with torch.no_grad(), exact_float32(), without_autocast(device_of(model)):
                found = self(z).cpu()
            fits = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
            fits = False  # whatever it was that it needs from the parts that are gone
        if not fits:
            raise ModelError(
                f"what comes behind a layer must follow from what it passes on; behind {self.layer!r} it does not. "
                "Name layers that everything goes through, such as whole stages, or use Probes."
            )


def cut(model: nn.Module, layer: str, last: str, data: Samples) -> tuple[nn.Module, Tensor]:
    """The model in two at a layer: what comes behind it, and what it passes on for all samples, float32 (N, …) on the CPU: whole feature maps, but for the last layer, behind which
    there is nothing but their average, (N, d).

    Raises:
        ModelError: as `Remaining`.

    Cost: one forward pass.
    """
    if layer == last:
        return nn.Identity(), features_at(model, [last], data)[last]
    return Remaining(model, layer, last, data), passed_on(model, layer, data)


def passed_on(model: nn.Module, layer: str, data: Samples) -> Tensor:
    """What a layer gives for all samples in eval mode, float32 (N, …) on the CPU."""
    front = _Front(model, layer)
    flat = logits_of(front, data)
    return flat.unflatten(1, front.shape)


def held_out_information(
    remaining: nn.Module,
    z: Float[Tensor, "N ..."],
    forget: Bool[Tensor, " N"],
    fit: Bool[Tensor, " N"],
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seeds: Sequence[int],
) -> Float[Tensor, "S H"]:
    """i of each held-out sample in bits, float64, in [−6.65, 0.993], by critics that were trained on the others: one for each seed.

    Args:
        remaining: what comes behind the layer, a function of single samples; copies of its weights are trained.
        z: what the layer passes on, on the device where critics shall learn.
        forget: y, as many True as False both among the fitted and the held-out samples.
        fit: the samples that critics are trained on: Adam minimises −I_NCE of batches with as many of either label, in eval mode.
        steps: at most so many; the critic of the step that is best on a quarter of the fitting samples is used, step 0 included, which says 0 bits.
        lr, batch_size: of that training.
        seeds: of projections and orders of the batches. A critic does not depend on the others.

    Cost: steps · batch_size samples forward and backward for each seed. Critics of vectors learn side by side; those of feature maps one after another, which is faster
        for convolutions.
    """
    with fast_layout(remaining, z[:2]) as layout:
        z = z.contiguous(memory_format=layout) if z.ndim == 4 else z
        critic = _Critic(remaining, z[fit.to(z.device)])
        together = len(seeds) if z.ndim == 2 else 1
        groups = [seeds[k : k + together] for k in range(0, len(seeds), together)]
        return torch.cat([_Training(critic, z, forget, fit, group)(steps, lr, batch_size // 2) for group in groups])


class _Critic(nn.Module):
    """(N, …) → c(z, y), (N, 2). Features are standardised, by those of the fitting samples before training, so that the scale of a network does not matter."""

    def __init__(self, remaining: nn.Module, fitting: Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            features = torch.cat([remaining(block) for block in fitting.split(BLOCK)]).double()
        std, mean = torch.std_mean(features, 0)
        alive = std > 1e-6 * (1 + mean.abs())  # a dead feature tells nothing, whatever rounding does to it
        self.remaining = remaining
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", torch.where(alive, 1 / std, 0.0).float())
        self.projection = nn.Parameter(torch.zeros(PROJECTION, features.shape[1], device=features.device))
        self.bias = nn.Parameter(torch.zeros(PROJECTION, device=features.device))
        self.labels = nn.Parameter(torch.zeros(2, PROJECTION, device=features.device))

    def forward(self, z: Tensor) -> Tensor:
        return functional.linear((self.remaining(z) - self.mean) * self.scale, self.projection, self.bias) @ self.labels.T

    def numbers(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """What critics of these seeds begin with: they differ in the projection. The label vectors are 0, so that step 0 says nothing."""
        first = {name: p.detach().repeat(len(seeds), *(1,) * p.ndim) for name, p in self.named_parameters()}
        drawn = torch.stack([torch.randn(self.projection.shape, generator=generator(seed)) for seed in seeds])
        first["projection"] = drawn.to(first["labels"].device) / math.sqrt(drawn.shape[2])
        return {name: p.requires_grad_() for name, p in first.items()}


class _Training:
    """Critics of one layer and several seeds, each with its own batches, loss and best step, which do not touch one another."""

    def __init__(self, critic: _Critic, z: Tensor, forget: Tensor, fit: Tensor, seeds: Sequence[int]) -> None:
        sides = [(fit & (forget == y)).nonzero()[:, 0] for y in (False, True)]
        self.train = [side[torch.arange(len(side)) % CHECKED > 0] for side in sides]
        self.checks, self.held = torch.cat([side[::CHECKED] for side in sides]), (~fit).nonzero()[:, 0]
        self.critic, self.z, self.forget, self.seeds = critic, z, forget, seeds
        self.numbers = critic.numbers(seeds)

    def __call__(self, steps: int, lr: float, half: int) -> Tensor:
        copied = [p for name, p in self.numbers.items() if name.startswith("remaining.")]
        fresh = [p for name, p in self.numbers.items() if not name.startswith("remaining.")]
        groups: list[dict[str, Any]] = [{"params": fresh, "lr": FRESH * lr}, {"params": copied}]
        adam = torch.optim.Adam(groups, lr=lr, fused=True)
        best, found = self._bits(self.numbers, self.checks).mean(1), {name: p.detach().clone() for name, p in self.numbers.items()}
        when = torch.zeros(len(self.seeds))
        for step, (positions, forget) in zip(range(1, steps + 1), self._batches(half), strict=False):
            adam.zero_grad()
            (-info_nce(self._scores(self.numbers, self.z[positions]), forget).mean(1).sum()).backward()
            adam.step()
            if step % CHECK_EVERY and step < steps:
                continue
            waiting = step - when <= PATIENCE  # the others are done, although they go on beside them
            value = self._bits(self.numbers, self.checks).mean(1)
            better = waiting & (value > best)  # never where a critic has diverged
            best, when = torch.where(better, value, best), torch.where(better, step, when)
            for name, p in self.numbers.items():
                found[name][better] = p.detach()[better]
            if not waiting.any():
                break
        return self._bits(found, self.held)

    def _batches(self, half: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions (S, B) and whether they are forget samples, (B,): retain samples first, and as many forget samples."""
        n, rngs = len(self.train[0]), [generator(seed) for seed in self.seeds]
        per_epoch = math.ceil(n / half)
        while True:
            orders = [torch.stack([side[torch.randperm(n, generator=rng)] for rng in rngs]) for side in self.train]
            for parts in zip(*(order.tensor_split(per_epoch, 1) for order in orders), strict=True):
                positions = torch.cat(parts, 1)
                yield positions.to(self.z.device), (torch.arange(positions.shape[1]) >= parts[0].shape[1]).to(self.z.device)

    @torch.no_grad()
    def _bits(self, numbers: Numbers, positions: Tensor) -> Tensor:
        """i of samples at these positions, float64 (S, B) on the CPU."""
        blocks = [self.z[block.to(self.z.device)].expand(len(self.seeds), *(-1,) * self.z.ndim) for block in positions.split(BLOCK)]
        scores = torch.cat([self._scores(numbers, block) for block in blocks], 1).double().cpu()
        return info_nce(cautious(scores), self.forget[positions])

    def _scores(self, numbers: Numbers, z: Tensor) -> Tensor:
        """(S, B, …) → (S, B, 2), each critic on its own samples."""

        def one(numbers: Numbers, z: Tensor) -> Tensor:
            return functional_call(self.critic, dict(numbers), (z,))

        if len(self.seeds) == 1:  # without the copies of vmap
            return one({name: p.squeeze(0) for name, p in numbers.items()}, z.squeeze(0))[None]
        return vmap(one)(numbers, z)


class _Silent(nn.Module):
    """In the place of a part that ran before."""

    def forward(self, x: Any = None, *_: Any, **__: Any) -> Any:
        return x


class _Source(nn.Module):
    """In the place of the layer: passes on what it was given."""

    z: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Tensor | None:
        return self.z


class _Front(nn.Module):
    """A model that answers with what one of its layers passes on, flattened."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.shape: tuple[int, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        output = _output_of(self.model, self.layer, images)
        self.shape = tuple(output.shape[1:])
        return output.flatten(1)


def _output_of(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What the layer gave at its last call; a copy, because an in-place layer behind it would change it."""
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    try:
        model(x)
    finally:
        hook.remove()
    return seen[-1]


def _completed(model: nn.Module, few: Samples) -> dict[str, int]:
    """The moment at which each called module ended its last call, by name."""
    clock: dict[nn.Module, int] = {}
    ticks = itertools.count()
    hooks = [module.register_forward_hook(lambda module, _, __: clock.update({module: next(ticks)})) for module in model.modules()]
    count(few.ids, forward=1)
    try:
        with eval_mode(model), torch.no_grad():
            model(few.fetch(torch.arange(len(few))).to(device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: clock[module] for name, module in model.named_modules() if module in clock}
