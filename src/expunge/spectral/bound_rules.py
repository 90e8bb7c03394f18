"""What single functions of torch do to a Lipschitz constant: the rules that `lipschitz_bound` follows, one for each function it knows.

A rule is called as the function was, after a `Call`, and returns the constant of what the function returned, as a map from the image (L2 norms). Arguments that
a rule does not name are arguments it does not know: the TypeError means that no constant is known, and so does NoConstant, with the reason.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Rule = Callable[..., float]


class NoConstant(Exception):
    """A function has no known Lipschitz constant as it was called; the message says why, after the function's name."""


class Call(NamedTuple):
    """A call of a function: the constants of what it was given, and what it returned."""

    constants: Callable[[Tensor], float]
    out: Tensor

    def of(self, value: Any) -> float:
        """The constant of an argument: 0 for what does not depend on the image."""
        return self.constants(value) if isinstance(value, Tensor) else 0.0

    def spread(self, value: Any) -> float:
        """The constant of an argument as the function sees it: if every element is repeated n times, by broadcasting or on purpose, √n times as much."""
        return self.of(value) * math.sqrt(max(1.0, self.out.numel() / max(1, value.numel()))) if isinstance(value, Tensor) else 0.0

    def fixed(self, *values: Any, why: str) -> None:
        if any(self.of(tensor) for tensor in tensors_in(values)):
            raise NoConstant(why)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a nesting of lists, tuples, dicts and slices."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict | slice):
        parts = (value.start, value.stop, value.step) if isinstance(value, slice) else value.values() if isinstance(value, dict) else value
        for part in parts:
            yield from tensors_in(part)


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value of a matrix, in float64, from its smaller Gram matrix; raises NoConstant if an entry is not finite."""
    matrix = matrix.detach().to("cpu", torch.float64)
    if not matrix.isfinite().all():
        raise NoConstant("uses weights that are not finite")
    if not matrix.numel():
        return 0.0
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return math.sqrt(max(0.0, torch.linalg.eigvalsh(gram)[-1].item()))


# Elementwise functions


def _copy(call: Call, input: Tensor, *_: Any, **__: Any) -> float:
    """Every element arrives at most once, or all equally often; other tensors give no more than a shape or a type."""
    return call.spread(input)


def _slope(slope: float) -> Rule:
    """An elementwise function whose derivative is at most `slope` in absolute value, whatever its other arguments are."""

    def rule(call: Call, input: Tensor, *rest: Any, **options: Any) -> float:
        call.fixed(rest, options, why="has bounds or parameters that depend on the image")
        return slope * call.spread(input)

    return rule


def _leaky_relu(call: Call, input: Tensor, negative_slope: float = 0.01, *, inplace: bool = False) -> float:
    return max(1.0, abs(negative_slope)) * call.of(input)


def _elu(call: Call, input: Tensor, alpha: float = 1.0, *, inplace: bool = False) -> float:
    return max(1.0, abs(alpha)) * call.of(input)


def _celu(call: Call, input: Tensor, alpha: float = 1.0, *, inplace: bool = False) -> float:
    if alpha <= 0:
        raise NoConstant(f"with alpha={alpha} is steeper and steeper")
    return call.of(input)


def _prelu(call: Call, input: Tensor, weight: Tensor) -> float:
    return max(1.0, _largest(call, weight)) * call.of(input)


def _softplus(call: Call, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> float:
    if threshold < 20:  # there the function jumps by log(1 + exp(-threshold)) / beta, no more than rounding from 20 on
        raise NoConstant(f"with threshold={threshold} jumps there")
    return call.of(input)


def _gelu(call: Call, input: Tensor, *, approximate: str = "none") -> float:
    # Φ(x) + x φ(x) is largest at √2: (1 + erf(1)) / 2 + 1 / (e √π) = 1.12890; with tanh 1.12899 (found by scipy's minimize_scalar), rounded up.
    return (1.129 if approximate == "tanh" else (1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi)) * call.of(input)


def _dropout(call: Call, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> float:
    if training:
        raise NoConstant("drops at random although the model is in eval mode")
    return call.of(input)


def _view(call: Call, input: Tensor, *shape: Any, **options: Any) -> float:
    if any(isinstance(value, torch.dtype) for value in (*shape, *options.values())):
        raise NoConstant("reads the bits of numbers as another type")
    return call.of(input)


# Arithmetic


def _sum_of_two(call: Call, input: Any, other: Any, *, alpha: float = 1) -> float:
    return call.spread(input) + abs(alpha) * call.spread(other)


def _mul(call: Call, input: Any, other: Any) -> float:
    if call.of(input) and call.of(other):
        raise NoConstant("multiplies two tensors that both depend on the image")
    moving, factor = (input, other) if call.of(input) else (other, input)
    return _largest(call, factor) * call.spread(moving)


def _div(call: Call, input: Any, other: Any) -> float:
    call.fixed(other, why="divides by a tensor that depends on the image")
    divisor = torch.as_tensor(other).double().abs()
    smallest = divisor.min().item() if divisor.numel() else math.inf
    return call.spread(input) / smallest if smallest else math.inf


def _largest(call: Call, value: Any) -> float:
    """The largest absolute value of a constant."""
    if value is call.out:
        raise NoConstant("overwrites the constant that it needs")
    if isinstance(value, Tensor):
        call.fixed(value, why="has parameters that depend on the image")
        return value.abs().max().item() if value.is_floating_point() and value.numel() else float(value.double().abs().amax().item())
    return float(abs(value))


def _matmul(call: Call, input: Tensor, other: Tensor) -> float:
    if call.of(input) and call.of(other):
        raise NoConstant("multiplies two tensors that both depend on the image")
    moving, matrix = (input, other) if call.of(input) else (other, input)
    if matrix.ndim > 2:
        raise NoConstant("multiplies by a batch of matrices")
    return spectral_norm(matrix if matrix.ndim == 2 else matrix[:, None]) * call.of(moving)


def _linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> float:
    call.fixed(weight, bias, why="has weights that depend on the image")
    return spectral_norm(weight if weight.ndim == 2 else weight[:, None]) * call.of(input)


def _batch_norm(
    call: Call, input: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5
) -> float:  # fmt: skip
    call.fixed(mean, var, weight, bias, why="has parameters that depend on the image")
    if training or var is None:
        raise NoConstant("normalises by the statistics of the batch, also in eval mode")
    scale = (var.double() + eps).rsqrt()
    return (scale if weight is None else scale * weight.double()).abs().max().item() * call.of(input)


def _conv(call: Call, *_: Any, **__: Any) -> float:
    raise NoConstant("is a convolution whose spectral norm `norms` did not give")


# Sums, means and maxima; joining and taking apart


def _mean(call: Call, input: Tensor, *_: Any, **__: Any) -> float:
    return call.of(input) * math.sqrt(call.out.numel() / input.numel())


def _sum(call: Call, input: Tensor, *_: Any, **__: Any) -> float:
    return call.of(input) * math.sqrt(input.numel() / call.out.numel())


def _root(call: Call, *tensors: Any) -> float:
    """Elementwise, one of several tensors: |max(a, b) − max(a′, b′)| ≤ max(|a − a′|, |b − b′|)."""
    return math.hypot(*(call.spread(tensor) for tensor in tensors))


def _extreme(call: Call, input: Tensor, *rest: Any, **options: Any) -> float:
    others = list(tensors_in((rest, options)))
    return _root(call, input, *others) if others else call.of(input)


def _join(call: Call, tensors: Any, dim: int = 0) -> float:
    return math.hypot(*(call.of(tensor) for tensor in tensors))


def _getitem(call: Call, input: Tensor, index: Any) -> float:
    for part in index if isinstance(index, tuple) else (index,):
        if not (part is None or part is Ellipsis or isinstance(part, int | slice)):
            raise NoConstant("picks elements by a list or a tensor, perhaps the same ones many times")
    return call.spread(input)


# Pools and pads: each dimension on its own, as a matrix on one line of pixels; the whole is their Kronecker product, and so is its norm


def _line(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)[:, None]


def _each(value: Any, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)


def _avg_pool(n: int) -> Rule:
    def rule(
        call: Call, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None
    ) -> float:  # fmt: skip
        if divisor_override is not None:
            raise NoConstant("has a divisor of its own")
        sizes = zip(input.shape[-n:], *(_each(v, n) for v in (kernel_size, stride or kernel_size, padding)), strict=True)
        lines = (functional.avg_pool1d(_line(size), kernel, step, pad, ceil_mode, count_include_pad) for size, kernel, step, pad in sizes)
        return call.of(input) * math.prod(spectral_norm(line[:, 0]) for line in lines)

    return rule


def _adaptive_avg_pool(n: int) -> Rule:
    def rule(call: Call, input: Tensor, output_size: Any) -> float:
        sizes = zip(input.shape[-n:], call.out.shape[-n:], strict=True)
        return call.of(input) * math.prod(spectral_norm(functional.adaptive_avg_pool1d(_line(size), out)[:, 0]) for size, out in sizes)

    return rule


def _max_pool(n: int) -> Rule:
    """√ of the largest number of windows that one pixel is in: its change can be the maximum of each of them."""

    def rule(
        call: Call, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False
    ) -> float:  # fmt: skip
        sizes = zip(*(_each(v, n) for v in (kernel_size, stride or kernel_size, dilation)), call.out.shape[-n:], strict=True)
        # Windows with the pixel start at steps of lcm(stride, dilation) within a reach of dilation · (kernel − 1).
        counts = (min(gap * (kernel - 1) // math.lcm(step, gap) + 1, out) for kernel, step, gap, out in sizes)
        return call.of(input) * math.sqrt(math.prod(counts))

    return rule


def _adaptive_max_pool(n: int) -> Rule:
    def rule(call: Call, input: Tensor, output_size: Any, return_indices: bool = False) -> float:
        sizes = zip(input.shape[-n:], call.out.shape[-n:], strict=True)
        counts = ((functional.adaptive_avg_pool1d(_line(size), out)[:, 0] > 0).sum(1).max().item() for size, out in sizes)
        return call.of(input) * math.sqrt(math.prod(counts))

    return rule


def _pad(call: Call, input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> float:
    if mode == "constant":
        return call.of(input)
    sizes = zip(reversed(input.shape), zip(pad[::2], pad[1::2], strict=True), strict=False)  # pairs from the last dimension on
    return call.of(input) * math.prod(spectral_norm(functional.pad(_line(size), pair, mode)[:, 0]) for size, pair in sizes)


COPIES = """contiguous clone detach to type type_as float double half bfloat16 cpu cuda requires_grad_ reshape reshape_as view_as flatten ravel unflatten
    permute transpose swapaxes swapdims movedim moveaxis t adjoint squeeze unsqueeze narrow select chunk split tensor_split unbind expand expand_as
    broadcast_to repeat tile roll flip rot90 tril triu pixel_shuffle pixel_unshuffle channel_shuffle"""
SLOPES = {  # largest absolute derivatives, rounded up in the last digit where they are not exact
    1.0: "relu relu6 hardtanh tanh softsign softshrink tanhshrink logsigmoid clamp clip clamp_min clamp_max abs absolute neg negative positive masked_fill sin cos",
    0.0: "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty",
    1 / 4: "sigmoid",
    1 / 6: "hardsigmoid",
    1.5: "hardswish",  # (2x + 3) / 6 at 3
    1.09984: "silu",  # at 2.399
    1.08850: "mish",  # at 1.491: 1.088498
    1.75810: "selu",  # 1.0507 · 1.6733 at 0 from below
}
NAMED: dict[str, Rule] = {
    **dict.fromkeys(COPIES.split(), _copy),
    **{name: _slope(slope) for slope, names in SLOPES.items() for name in names.split()},
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"), _dropout),
    **dict.fromkeys(("leaky_relu",), _leaky_relu),
    **dict.fromkeys(("add", "__add__", "__radd__", "__iadd__", "sub", "subtract", "__sub__", "__rsub__", "__isub__"), _sum_of_two),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__", "__imul__"), _mul),
    **dict.fromkeys(("div", "divide", "true_divide", "__truediv__", "__itruediv__"), _div),
    **dict.fromkeys(("matmul", "mm", "__matmul__"), _matmul),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _join),
    **dict.fromkeys(("max", "min", "amax", "amin"), _extreme),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin", "where"), _root),
    **dict.fromkeys((f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)), _conv),
    **{f"avg_pool{n}d": _avg_pool(n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _adaptive_avg_pool(n) for n in (1, 2, 3)},
    **{f"{name}{suffix}": rule(n) for n in (1, 2, 3) for suffix in ("", "_with_indices") for name, rule in ((f"max_pool{n}d", _max_pool), (f"adaptive_max_pool{n}d", _adaptive_max_pool))},
    "celu": _celu, "elu": _elu, "gelu": _gelu, "prelu": _prelu, "softplus": _softplus,
    "__getitem__": _getitem, "linear": _linear, "mean": _mean, "pad": _pad, "sum": _sum, "view": _view,
}  # fmt: skip

# Keyed by the functions themselves, for names alone say too little: torch.batch_norm orders its arguments otherwise than functional.batch_norm.
RULES: dict[Any, Rule] = {
    getattr(space, form): rule
    for name, rule in NAMED.items()
    for space in (torch, Tensor, functional)
    for form in (name, f"{name}_")
    if hasattr(space, form)
} | {functional.batch_norm: _batch_norm}
GETTERS: dict[str, Rule] = dict.fromkeys(("T", "mT", "data", "real"), _copy)  # attributes that are tensors
HARMLESS = """dim ndimension size stride numel nelement element_size is_contiguous is_floating_point is_complex is_signed is_same_size is_inference
    is_pinned get_device storage_offset type __len__ __hash__ result_type is_tensor"""
METADATA = frozenset(HARMLESS.split())  # functions that tell nothing of a tensor's values
