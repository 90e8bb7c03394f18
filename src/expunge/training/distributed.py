"""One training on several processes: what `sgd` and `logits_of` do inside of `expunge.distributed()`.

Every rank goes through the same steps with the same batches. Inside a step only the model is shared out: each rank answers a part of the images, the answers are put together, and the
objective sees those of the whole batch, so that it need not be a mean over samples. On the way back each rank takes the gradient of its own answers times the number of ranks; the mean over ranks of
the weights' gradients is then that of the whole batch, with whatever an objective adds to it. BatchNorm normalises by the mean and variance of the whole batch.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from ..data.mixture import Batch, Drawn, Mixture
from ..device import is_sharded
from ..ranks import Ranks, current
from ..rng import derive, fork
from .sharding import check_unused, digest, options_for, sharded, write_back

TRAINING, SCORING = "training", "scoring"


def across_ranks(train: Callable[..., None]) -> Callable[..., None]:
    """`sgd`, for all ranks together where there are several."""

    @functools.wraps(train)
    def run(model: nn.Module, *args: Any, **options: Any) -> None:
        ranks = current()
        if ranks is None or is_sharded(model):
            return train(model, *args, **options)
        plain = {name: value for name, value in options.items() if isinstance(value, bool | int | float | str)}
        ranks.check_same("model and settings before training", (digest(model), sorted(plain.items())))
        if ranks.shard:
            for parameter in model.parameters():
                parameter.grad = None
            with sharded(model, ranks) as twin, _shared(twin, ranks, TRAINING), _before_steps(lambda _: check_unused(model)):
                train(twin, *args, **options_for(twin, model, options))
                write_back(twin, model)
        else:
            with _shared(model, ranks, TRAINING), _before_steps(functools.partial(_average_gradients, ranks)):
                train(model, *args, **options)
        ranks.check_same("model after training", digest(model))

    return run


def answers_across_ranks(
    answers: Callable[[nn.Module, Sequence[Tensor]], list[Tensor]], model: nn.Module, batches: Sequence[Tensor]
) -> list[Tensor]:
    """`answers(model, batches)`, a tensor for each batch of positions: each rank answers some of the batches, or where weights are shared out a part of each."""
    ranks = current()
    if ranks is None or is_sharded(model):
        return answers(model, batches)
    if ranks.shard:
        with sharded(model, ranks) as twin, _shared(twin, ranks, SCORING):
            return answers(twin, batches)
    what = f"answers to {sum(map(len, batches))} images"
    found = ranks.together(what, lambda: answers(model, batches[ranks.rank :: ranks.size]))
    return [found[k % ranks.size][k // ranks.size] for k in range(len(batches))]


def drawn_across_ranks(mixture: Mixture, batches: Sequence[Tensor], numbers: Sequence[int]) -> Iterator[Drawn | Batch]:
    """`mixture.drawn`; where images are read from disk each rank reads its share of them, and gets the others' from them."""
    ranks = current()
    if ranks is None or mixture.resident:
        yield from mixture.drawn(batches, numbers)
        return
    mine = [ranks.share(batch) if len(batch) >= ranks.size else batch for batch in batches]
    for batch, whole in zip(mixture.drawn(mine, numbers), batches, strict=True):
        yield batch if len(whole) < ranks.size else _whole(cast(Batch, batch), ranks, ranks.sizes(len(whole)))  # Drawn are of resident sets


def _whole(batch: Batch, ranks: Ranks, sizes: Sequence[int]) -> Batch:
    images, labels, ids, source = (torch.cat(ranks.gather(part, sizes)) for part in (batch.images, batch.labels, batch.ids, batch.source))
    order = source.argsort(stable=True)  # within a batch the sets follow one another, as for one process
    return Batch(images[order], labels[order], ids[order], source[order])


@contextlib.contextmanager
def _shared(model: nn.Module, ranks: Ranks, purpose: str) -> Iterator[None]:
    """Inside the block every rank gets the model's answers for all images of a call, of which it answers its share.

    Every rank answers as a whole: a call with fewer images than ranks, or with images whose gradient is wanted (an objective that has gradients in it), a model whose layers
    somebody listens to by hooks, and in a training a model in eval mode.
    """
    forward, calls, seed = model.forward, itertools.count(), _next_seed()
    own = "forward" in vars(model)

    def shared(images: Tensor, *args: Any, **options: Any) -> Tensor:
        listened = not is_sharded(model) and any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        if len(images) < ranks.size or listened or images.requires_grad or (purpose == TRAINING and not model.training):
            return forward(images, *args, **options)
        sizes = ranks.sizes(len(images))
        # Ranks draw different numbers (dropout), and as many as they like: what is drawn afterwards is the same everywhere.
        with fork(derive(seed, next(calls), ranks.rank)), _WholeBatchNorm(ranks, sizes):
            mine = forward(ranks.share(images), *args, **options)
        return _Gather.apply(mine, ranks, sizes)

    model.forward = shared
    try:
        yield
    finally:
        if own:
            model.forward = forward
        else:
            del model.forward


def _next_seed() -> int:
    """The number that torch's global generator would draw next, without drawing it."""
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return int(torch.randint(2**62, (), generator=generator))


@final
class _Gather(torch.autograd.Function):
    """The rows of all ranks. Back goes the gradient of one's own rows, as often as there are ranks, because gradients of weights are averaged over ranks later."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, ranks: Ranks, sizes: list[int]) -> Tensor:
        ctx.ranks = ranks
        return torch.cat(ranks.gather(mine, sizes))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.ranks.share(gradient) * ctx.ranks.size, None, None


@final
class _WholeBatchNorm(TorchFunctionMode):
    """Batch normalisation inside the block is by the statistics of all ranks' samples together, whichever layer asks for it."""

    def __init__(self, ranks: Ranks, sizes: list[int]) -> None:
        super().__init__()
        self.ranks, self.sizes = ranks, sizes

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self._normalised if func is functional.batch_norm else func)(*args, **(kwargs or {}))

    def _normalised(
        self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
        training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if not training:
            return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        normalised, mean, var, n = _Normalise.apply(x, eps, self.ranks, self.sizes)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((var * n / (n - 1)).to(running_var.dtype), momentum)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        out = normalised if weight is None else normalised * weight.view(shape)
        return (out if bias is None else out + bias.view(shape)).to(x.dtype)


@final
class _Normalise(torch.autograd.Function):
    """(x − mean) / sqrt(var + eps) for each channel, in float32, with mean and variance over the rows of all ranks; and these two, and the number of values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, ranks: Ranks, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor, int]:
        values = x.float()
        dims, shape = [d for d in range(x.ndim) if d != 1], (1, -1, *(1,) * (x.ndim - 2))
        counts = torch.tensor(sizes, device=x.device)[:, None] * (x.numel() // x.shape[0] // x.shape[1])
        var, mean = torch.var_mean(values, dims, correction=0)
        # Variances are put together by Chan's formula, exactly: a difference of two large sums would lose digits.
        means, variances = torch.stack(ranks.gather(torch.stack([mean, var])[None], [1] * ranks.size))[:, 0].unbind(1)
        n = int(counts.sum())
        mean = (means * counts).sum(0) / n
        var = ((variances + (means - mean) ** 2) * counts).sum(0) / n
        scale = (var + eps).rsqrt()
        normalised = (values - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normalised, scale)
        ctx.ranks, ctx.n, ctx.dims, ctx.shape, ctx.dtype = ranks, n, dims, shape, x.dtype
        ctx.mark_non_differentiable(mean, var)
        return normalised, mean, var, n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        normalised, scale = ctx.saved_tensors
        sums = ctx.ranks.sum(torch.stack([gradient.sum(ctx.dims), (gradient * normalised).sum(ctx.dims)])) / ctx.n
        mean, slope = (part.view(ctx.shape) for part in sums)
        return ((gradient - mean - normalised * slope) * scale.view(ctx.shape)).to(ctx.dtype), None, None, None


@contextlib.contextmanager
def _before_steps(work: Callable[[Optimizer], None]) -> Iterator[None]:
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: work(optimizer))
    try:
        yield
    finally:
        handle.remove()


def _average_gradients(ranks: Ranks, optimizer: Optimizer) -> None:
    """One message for all weights of a type."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        mean = ranks.sum(torch.cat([gradient.reshape(-1) for gradient in alike])) / ranks.size
        for gradient, part in zip(alike, mean.split([gradient.numel() for gradient in alike]), strict=True):
            gradient.copy_(part.view(gradient.shape))
