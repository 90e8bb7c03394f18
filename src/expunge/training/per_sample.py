"""Gradients of each sample's own loss: their squares or sizes, averaged over samples, and the gradients themselves as rows of a matrix.

The square of a batch's mean gradient is not the mean of the samples' squares: the noise in it shrinks with the batch, so that a Fisher information or an
importance taken from it depends on the batch size. Here every sample has its own gradient, in eval mode and on un-augmented images.

There are two ways. By layers: one ordinary forward and backward pass of a batch gives each layer's inputs and the gradients at its outputs; a sample's weight
gradient is the sum over positions of their outer products. By `torch.func`: vmap over the gradient of one sample, for any model, several times slower. The first
is taken where all trainable weights are in Linear, Conv2d and BatchNorm layers that are called once, and three samples' gradients are those of autograd.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ..costs import count
from ..data.images import Samples
from ..data.mixture import Batch, Mixture
from ..device import device_of, exact, plain_attention
from ..errors import ConfigError, ModelError

Losses = Callable[[Tensor, Tensor], Iterable[tuple[Tensor, Tensor]]]
"""(logits (B, K), labels (B,)) → one or several pairs of losses (B,) and weights ≥ 0 (B,), each from its own row alone."""

LAYERS = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MOST_NUMBERS = 2**29  # of a gradient matrix: 2 GiB in float32
PIECE = {"cpu": 2**20}  # numbers of a temporary: what stays in a processor's cache
LARGE_PIECE = 2**26  # on a GPU
WHOLE = 2**24  # numbers of whole gradients at a time, for one loss, where torch.func finds them


def own_label(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The cross-entropy with the sample's own label."""
    yield functional.cross_entropy(logits, labels, reduction="none"), torch.ones_like(logits[:, 0])


def every_label(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The cross-entropy with each class, weighted by the model's own probability of it: what the Fisher information averages over."""
    log_p = logits.log_softmax(1)
    for k in range(logits.shape[1]):
        yield -log_p[:, k], log_p[:, k].detach().exp()


def answer_length(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """‖f(x)‖₂, whose gradient says which weights matter for an answer, whatever the label (memory-aware synapses)."""
    yield torch.linalg.vector_norm(logits, dim=1), torch.ones_like(logits[:, 0])


def squared_gradients(
    model: nn.Module, samples: Samples, losses: Losses = own_label, *, batch_size: int = 64, by_layers: bool | None = None
) -> dict[str, Tensor]:
    """For each trainable parameter E_x Σ_k w_k(x) (∂L_k(x)/∂θ)², float32 of its shape, on its device; the same for any batch size, but for rounding.

    Args:
        model: evaluated in eval mode; left as it is.
        samples: un-augmented, at least one.
        losses: what goes backward for a sample, and with which weights.
        batch_size: images that go through the model together, ≥ 1.
        by_layers: True = the fast way, False = torch.func, None = the fast way where it fits.

    Raises:
        ModelError: no trainable parameter; or by_layers=True, and the model is not made of such layers.

    Cost: one forward pass over the samples and one backward pass for each loss.
    """
    return _means(model, samples, losses, Tensor.square_, batch_size, by_layers)


def absolute_gradients(
    model: nn.Module, samples: Samples, losses: Losses = own_label, *, batch_size: int = 64, by_layers: bool | None = None
) -> dict[str, Tensor]:
    """For each trainable parameter E_x Σ_k w_k(x) |∂L_k(x)/∂θ|; else as `squared_gradients`."""
    return _means(model, samples, losses, Tensor.abs_, batch_size, by_layers)


def gradient_rows(
    model: nn.Module, samples: Samples, losses: Losses = own_label, *, batch_size: int = 64, by_layers: bool | None = None
) -> Iterator[Tensor]:
    """The gradients of the samples in order, float32 (B, P) for one batch after another, over all trainable parameters in `named_parameters`' order.

    `losses` gives one loss for each sample; its weight is not applied.
    """
    shapes = {name: p.numel() for name, p in trainable(model).items()}
    starts = dict(zip(shapes, torch.tensor([0, *shapes.values()]).cumsum(0).tolist(), strict=False))
    width = sum(shapes.values())
    most = max(1, MOST_NUMBERS // (4 * width))
    for batch, pieces in _batches(model, samples, losses, min(batch_size, most), by_layers):
        rows = torch.zeros(len(batch.ids), width, device=batch.images.device)
        for piece in pieces:
            first = starts[piece.name]
            rows[piece.rows, first : first + shapes[piece.name]] = piece.shaped(piece.gradients).flatten(1)
        yield rows


def gradient_matrix(model: nn.Module, samples: Samples, *, batch_size: int = 64, by_layers: bool | None = None) -> Tensor:
    """G, float32 (m, P): the gradient of each sample's cross-entropy as a row; at most 2²⁹ numbers, 2 GiB.

    Raises:
        ConfigError: it is larger than that.
    """
    width = sum(p.numel() for p in trainable(model).values())
    if len(samples) * width > MOST_NUMBERS:
        raise ConfigError(
            f"a matrix of per-sample gradients must have at most {MOST_NUMBERS:,} numbers; got {len(samples):,} samples of {width:,} parameters. "
            f"Take {MOST_NUMBERS // width:,} samples or fewer, or conjugate gradients, which store none."
        )
    matrix, done = torch.empty(len(samples), width, device=device_of(model)), 0
    for rows in gradient_rows(model, samples, batch_size=batch_size, by_layers=by_layers):
        matrix[done : done + len(rows)], done = rows, done + len(rows)
    return matrix


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that may change, by name; ModelError where there is none."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ModelError("the model has no parameter that may change: all are frozen. Set requires_grad=True on some.")
    return found


class Piece(NamedTuple):
    """Gradients of one parameter for some samples of a batch; they may be overwritten."""

    name: str
    rows: slice
    gradients: Tensor  # (b, numbers of the parameter), in an order that suits whoever made them
    weights: Tensor  # (b,)
    shaped: Callable[[Tensor], Tensor]  # (…, numbers) → (…, *shape of the parameter)


def _means(
    model: nn.Module, samples: Samples, losses: Losses, size: Callable[[Tensor], Tensor], batch_size: int, by_layers: bool | None
) -> dict[str, Tensor]:
    totals: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
        name: (torch.zeros(p.numel(), device=p.device), partial(_shaped, p.shape)) for name, p in trainable(model).items()
    }
    for _, pieces in _batches(model, samples, losses, batch_size, by_layers):
        for piece in pieces:
            total = totals[piece.name][0]
            total.addmv_(size(piece.gradients).T, piece.weights)
            totals[piece.name] = total, piece.shaped
    return {name: shaped(total / len(samples)).contiguous() for name, (total, shaped) in totals.items()}


def _batches(
    model: nn.Module, samples: Samples, losses: Losses, batch_size: int, by_layers: bool | None
) -> Iterator[tuple[Batch, Iterator[Piece]]]:
    mixture = Mixture([samples], device_of(model), augment=False)
    with exact(model):
        few = next(mixture.epoch([torch.arange(min(3, len(samples)))], 0))
        fits = by_layers is not False and _fit(model, few)
        if by_layers and not fits:
            raise ModelError(
                "gradients by layers need every trainable weight in an nn.Linear, nn.Conv2d or nn.BatchNorm that is called once, with the samples in its first "
                "dimension; got another kind of layer, a shared weight, or one used by other means. Leave by_layers out."
            )
        pieces = _by_layers if fits else _by_function
        for batch in mixture.epoch(torch.arange(len(samples)).split(batch_size), 0):
            yield batch, pieces(model, batch, losses)


def _by_function(model: nn.Module, batch: Batch, losses: Losses) -> Iterator[Piece]:
    parameters = {name: p.detach() for name, p in trainable(model).items()}

    def of_one(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        pairs = list(losses(functional_call(model, parameters, (image[None],)).float(), label[None]))
        return torch.cat([loss for loss, _ in pairs]), torch.cat([weight for _, weight in pairs])

    gradients_of = vmap(jacrev(of_one, has_aux=True), in_dims=(None, 0, 0))
    most = max(1, WHOLE // sum(p.numel() for p in parameters.values()))
    for at in torch.arange(len(batch.ids)).split(most):
        rows = slice(int(at[0]), int(at[-1]) + 1)
        with plain_attention():
            gradients, weights = gradients_of(parameters, batch.images[rows], batch.labels[rows])
        count(batch.ids[rows], forward=1, backward=weights.shape[1])
        for name, g in gradients.items():
            yield Piece(
                name, rows, g.reshape(*g.shape[:2], -1).flatten(0, 1).contiguous(), weights.flatten(), partial(_shaped, g.shape[2:])
            )


def _by_layers(model: nn.Module, batch: Batch, losses: Losses) -> Iterator[Piece]:
    logits, calls = _watched(model, batch.images)
    edges = [edge for _, _, edge in calls]
    count(batch.ids, forward=1)
    for loss, weights in losses(logits.float(), batch.labels):
        # In this graph a sample's loss reaches its own rows alone, so that the gradient of the sum holds each sample's gradient at each layer's output.
        at_outputs = torch.autograd.grad(loss.sum(), edges, retain_graph=True, allow_unused=True)
        count(batch.ids, backward=1)
        for (name, inputs, _), g in zip(calls, at_outputs, strict=True):
            if g is not None:
                yield from _of_layer(model.get_submodule(name), name, inputs, g, weights)


def _watched(model: nn.Module, images: Tensor) -> tuple[Tensor, list[tuple[str, Tensor, GradientEdge]]]:
    """The logits, and for each call of a layer with trainable weights its name, its input, and the place of its output in autograd's graph."""
    calls: list[tuple[str, Tensor, GradientEdge]] = []
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS) and any(p.requires_grad for p in layer.parameters(recurse=False)):
            # The place in the graph, not the tensor: a ReLU that works in place makes another tensor of it.
            hooks.append(layer.register_forward_hook(lambda _, x, y, name=name: calls.append((name, x[0].detach(), get_gradient_edge(y)))))
    try:
        return model(images), calls
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _of_layer(layer: nn.Module, name: str, x: Tensor, g: Tensor, weights: Tensor) -> Iterator[Piece]:
    """The samples' gradients of one layer, from its inputs x and the gradients g at its outputs."""
    prefix, own = f"{name}." if name else "", dict(layer.named_parameters(recurse=False))
    numbers = max(p.numel() for p in own.values())
    if isinstance(layer, nn.Conv2d):
        numbers = max(numbers, g[0, 0].numel() * layer.weight[0].numel() * layer.groups)  # patches of an image
    most = max(1, PIECE.get(x.device.type, LARGE_PIECE) // numbers)
    for first in range(0, len(x), most):
        rows = slice(first, first + most)
        if own["weight"].requires_grad:
            shaped = partial(_channels_first if isinstance(layer, nn.Conv2d) else _shaped, own["weight"].shape)
            yield Piece(f"{prefix}weight", rows, _of_weight(layer, x[rows], g[rows]), weights[rows], shaped)
        if "bias" in own and own["bias"].requires_grad:
            part = g[rows]
            linear = isinstance(layer, nn.Linear)
            sums = part.reshape(len(part), -1, part.shape[-1]).sum(1) if linear else part.reshape(*part.shape[:2], -1).sum(2)
            yield Piece(f"{prefix}bias", rows, sums, weights[rows], partial(_shaped, own["bias"].shape))


def _of_weight(layer: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return _of_convolution(layer, x, g)
    return _of_linear(layer, x, g) if isinstance(layer, nn.Linear) else _of_norm(cast(_BatchNorm, layer), x, g)


def _shaped(shape: torch.Size, numbers: Tensor) -> Tensor:
    return numbers.view(*numbers.shape[:-1], *shape)


def _channels_first(shape: torch.Size, numbers: Tensor) -> Tensor:
    return numbers.view(*numbers.shape[:-1], shape[0], *shape[2:], shape[1]).movedim(-1, -3)


def _of_linear(layer: nn.Linear, x: Tensor, g: Tensor) -> Tensor:
    return (g.reshape(len(g), -1, g.shape[-1]).transpose(1, 2) @ x.reshape(len(x), -1, x.shape[-1])).flatten(1)


def _of_norm(layer: _BatchNorm, x: Tensor, g: Tensor) -> Tensor:
    shape = (-1, *[1] * (x.ndim - 2))
    mean, var = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    return (g * (x - mean.view(shape))).reshape(*g.shape[:2], -1).sum(2) * (var + layer.eps).rsqrt()


def _of_convolution(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Gradients in the order (outputs, kernel height, kernel width, inputs), because patches of images with the channels last are copied several times faster."""
    (stride_y, stride_x), (apart_y, apart_x), groups = layer.stride, layer.dilation, layer.groups
    down, right = cast(tuple[int, int], layer.padding)
    x = functional.pad(x, (right, right, down, down)).permute(0, 2, 3, 1).contiguous()
    (n, _, width, channels), (height_out, width_out), kernel = x.shape, g.shape[2:], layer.kernel_size
    line, inside = width * channels, channels // groups
    patches = x.as_strided(
        (n, groups, height_out, width_out, *kernel, inside),
        (x.stride(0), inside, stride_y * line, stride_x * channels, apart_y * line, apart_x * channels, 1),
    ).reshape(n, groups, height_out * width_out, -1)
    return (g.reshape(n, groups, -1, height_out * width_out) @ patches).flatten(1)


def _fit(model: nn.Module, few: Batch) -> bool:
    """Whether the layers' formulas give the gradients of these samples, as autograd finds them one by one."""
    owners = [(layer, p) for layer in model.modules() for p in layer.parameters(recurse=False) if p.requires_grad]
    known = all(_known(layer) for layer, _ in owners)
    if not known or len({p for _, p in owners}) < len(owners):
        return False
    logits, calls = _watched(model, few.images)
    count(few.ids, forward=1, backward=1)
    if len({name for name, _, _ in calls}) < len(calls) or any(len(x) != len(few.ids) for _, x, _ in calls):
        return False
    parameters = trainable(model)
    # Any mixture of logits that vanishes nowhere will do; a loss may be zero to all digits on memorised images.
    mixture = logits.float() @ torch.linspace(1, 2, logits.shape[1], device=logits.device).cos()
    at_outputs = torch.autograd.grad(mixture.sum(), [edge for _, _, edge in calls], retain_graph=True, allow_unused=True)
    ours = {name: torch.zeros(len(few.ids), *p.shape, device=p.device) for name, p in parameters.items()}
    for (name, x, _), g in zip(calls, at_outputs, strict=True):
        for piece in _of_layer(model.get_submodule(name), name, x, g, mixture) if g is not None else ():
            ours[piece.name][piece.rows] = piece.shaped(piece.gradients)
    return all(
        _close([ours[name][k] for name in parameters], torch.autograd.grad(one, list(parameters.values()), retain_graph=True, materialize_grads=True))
        for k, one in enumerate(mixture)
    )  # fmt: skip


def _known(layer: nn.Module) -> bool:
    """Whether `_of_layer` is right for a layer; its exact type, because a subclass may compute something else."""
    if isinstance(layer, nn.Conv2d):
        return type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) in LAYERS and not (isinstance(layer, _BatchNorm) and layer.running_mean is None)


def _close(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> bool:
    """Whether gradients agree to a thousandth, parameter by parameter; a wrong formula is off by its whole size."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True)]
    largest = max(float(b.norm()) for _, b in pairs)
    return all(float((a - b).norm()) <= 1e-3 * float(b.norm()) + 1e-5 * largest for a, b in pairs)
