"""How much a whole network can stretch a change of its image: an upper bound on its Lipschitz constant, L2 of pixels to L2 of logits.

The product of the layers' spectral norms bounds a plain chain, and nothing else: a residual sum x + f(x) has 1 + L_f. So the bound is
carried along one forward pass. Every tensor T(image) has a constant L_T, an upper bound of ‖T(a) − T(b)‖ / ‖a − b‖ over all images a, b:

    L_image = 1,   L_{A·T + b} = ‖A‖₂ L_T,   L_{relu(T)} = L_T,   L_{S + T} = L_S + L_T,   L_{cat(S, T)} = √(L_S² + L_T²),   …

A TorchFunctionMode sees what the pass does, functions and operators (+, view, mean) as well as layers; bound_rules.py has the constants. What is not
known is not guessed: a tensor counts as constant only if it is a parameter, a buffer, an attribute of a module, or made of constants in sight.

Paper: Szegedy et al., "Intriguing properties of neural networks", ICLR 2014, arXiv:1312.6199, section 4.3, for chains.
"""

import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..errors import ModelError
from ..modes import eval_mode
from ..rng import fork
from .bound_rules import GETTERS, METADATA, RULES, Call, NoConstant, Rule, tensors_in

Norms = Callable[[nn.Module, tuple[int, ...]], float | None]
Composed = Callable[[nn.Module, nn.Module, tuple[int, ...]], float | None]

REMEDY = "Put it into a module of its own for which `norms` gives a constant, or read the spectral norms layer by layer."


class Bound(NamedTuple):
    """An upper bound on a network's Lipschitz constant; or None and the reason, which names the operation that has no known constant."""

    value: float | None
    reason: str = ""


def lipschitz_bound(model: nn.Module, input_shape: tuple[int, ...], norms: Norms, *, composed: Composed | None = None) -> Bound:
    """An upper bound on ‖model(a) − model(b)‖₂ / ‖a − b‖₂ over all images a ≠ b of one shape, in eval mode.

    The bound is only as good as `norms`: an iteration that stopped early gives norms that are too small, and then the bound may be too small as well.
    Where it must hold, give norms with their error estimates added. The network's own rounding is not counted. The bound
    is usually far above the true constant, because the worst directions of the layers do not line up.

    Args:
        model: any classifier. Modes, hooks and the states of generators are put back.
        input_shape: (C, H, W) of one image, without the batch.
        norms: asked at every call of a module that is given one tensor and nothing else, containers too, with the tensor's shape without its first
            dimension. Returns the module's spectral norm if it is an affine layer (or any constant of the whole module), and None for what it does not
            know; then the functions inside are followed. There, linear layers, batch normalisation, average pools and Normalize have
            closed forms; convolutions have none.
        composed: asked where such a module is given the very output of another, BatchNorm after a convolution, with the shape that went
            into the first. Returns the spectral norm of the two as one map, never more than the product, or None. Then `norms` need not know the two.

    Returns:
        Bound(value, ""); Bound(None, reason) if something between image and logits has no known constant, or the model decides by values.

    Raises:
        ModelError: the model cannot take images of this shape.

    Cost: one forward pass of one image, all feature maps kept until the end; linear layers that `norms` does not know cost an eigendecomposition.
    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU())
        >>> lipschitz_bound(net, (1, 2, 2), norms=lambda module, shape: 2.0 if isinstance(module, nn.Linear) else None)
        Bound(value=2.0, reason='')
    """
    trace = _Trace(model, norms, composed)
    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.inference_mode(False))  # where tensors do not count how often they were written into
        stack.enter_context(torch.no_grad())
        stack.enter_context(fork(0))
        if "torch._dynamo" in sys.modules:  # compiled code would run out of sight
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, module in model.named_modules():
            for handle in trace.watch(module, name or type(model).__name__):
                stack.callback(handle.remove)
        some = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), torch.empty(0))
        image = torch.zeros(1, *input_shape, dtype=some.dtype, device=some.device)  # its values do not matter
        trace.learn(image, 1.0)
        try:
            with trace:
                output = model(image)
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # out of memory, or an error of the device
                raise
            raise ModelError(
                f"the model must take images of shape {tuple(input_shape)}; got: {str(error).splitlines()[0]} "
                "Pass the (C, H, W) of images that it was made for."
            ) from error
        return trace.answer(output)


class _Known(NamedTuple):
    """What is known of a tensor; holds it, so that neither its id nor its storage is used again."""

    tensor: Tensor
    constant: float  # 0: does not depend on the image; inf: not known, for `reason`
    reason: str = ""
    layer: nn.Module | None = None  # whose very output it is,
    before: float = 0.0  # with the constant of that layer's input
    shape: tuple[int, ...] = ()  # and its shape without the batch
    storage: int = 0  # where its numbers are,
    version: int = 0  # and how often they were written, when this became known


class _Running(NamedTuple):
    """A module whose forward is running; known is what its output will be known as, but for `tensor`, which is its input."""

    name: str
    known: _Known | None = None  # None: it was given something else than one tensor
    whole: bool = False  # `norms` or `composed` knows it: what it does inside is not followed
    version: int = 0  # of its input, to see whether it writes into it


class _Trace(TorchFunctionMode):
    """One forward pass, followed call by call."""

    def __init__(self, model: nn.Module, norms: Norms, composed: Composed | None) -> None:
        super().__init__()
        self.norms, self.composed = norms, composed
        self.known: dict[int, _Known] = {}  # by id of the tensor
        self.sharing: dict[int, set[int]] = {}  # ids of known tensors, by their storage
        self.running: list[_Running] = []
        self.depth = 0  # of module calls since one began that counts as a whole; 0: functions are followed
        self.failure = ""  # a reason that spoils the bound whatever the output is
        held = [value for module in model.modules() for value in vars(module).values()]
        for tensor in (*model.parameters(), *model.buffers(), *tensors_in(held)):
            self.learn(tensor, 0.0)

    def answer(self, output: Any) -> Bound:
        if not isinstance(output, Tensor):
            got = type(output).__name__
            return Bound(None, f"the model must return one tensor; got {got}. Wrap it so that it returns the logits alone.")
        known = self.of(output)
        reason = self.failure or known.reason
        return Bound(None, f"{reason}. {REMEDY}") if reason else Bound(known.constant)

    # What is known of tensors

    @property
    def where(self) -> str:
        return self.running[-1].name if self.running else "the model"

    def of(self, tensor: Tensor) -> _Known:
        known = self.known.get(id(tensor))
        if known is None:
            unseen = "a tensor from out of sight: neither parameter nor buffer, or made by scripted code"
            return _Known(tensor, math.inf, f"{self.where} uses {unseen}")
        if (known.storage, known.version) != (_storage(tensor), _version(tensor)):
            return _Known(tensor, math.inf, f"{self.where} uses a tensor that was changed out of sight")
        return known

    def learn(self, tensor: Tensor, constant: float, reason: str = "", **layer: Any) -> None:
        storage = _storage(tensor)
        self.known[id(tensor)] = _Known(tensor, constant, reason, **layer, storage=storage, version=_version(tensor))
        self.sharing.setdefault(storage, set()).add(id(tensor))

    def written(self, tensor: Tensor) -> None:
        """After writing into a tensor that is known anew: unless all that share its storage are constant, nothing is known of the others."""
        others = [self.known[i] for i in self.sharing[_storage(tensor)] if i != id(tensor)]
        constant = not self.of(tensor).constant and not any(other.constant for other in others)
        for other in others:
            reason = "" if constant else f"{self.where} writes into a tensor of which another is a view"
            self.learn(other.tensor, 0.0 if constant else math.inf, reason)

    # Functions

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.depth:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        given = list(tensors_in((args, kwargs)))
        before = {id(tensor): self.of(tensor) for tensor in given}
        versions = [_version(tensor) for tensor in given]
        result = func(*args, **kwargs)
        # x.data = y gives x another storage without counting as a write.
        changed = [tensor for tensor, version in zip(given, versions, strict=True) if _version(tensor) != version or name == "__set__"]
        made = list(tensors_in(result))
        if any(known.constant for known in before.values()):
            self.follow(func, name, before, (args, kwargs), made, changed)
        else:
            for tensor in (*made, *changed):
                self.learn(tensor, 0.0)
        for tensor in changed:
            self.written(tensor)
        return result

    def follow(
        self, func: Any, name: str, before: dict[int, _Known], arguments: tuple[Any, Any], made: list[Tensor], changed: list[Tensor]
    ) -> None:
        """Learns the constants of what a function made of tensors that depend on the image, and of what it changed."""
        reason = next((known.reason for known in before.values() if known.reason), "")
        if not made and not changed:
            # A shape may depend on values as well, but only after functions that are not known.
            if not reason and name != "__get__" and name not in METADATA:
                reason = f"{self.where} takes values out of a tensor ({name}) and may decide by them"
            self.failure = self.failure or reason
            return
        rule = GETTERS.get(func.__self__.__name__) if name == "__get__" else RULES.get(func)
        constant = math.inf
        if not reason:
            constant, reason = _judge(rule, f"{name} in {self.where}", before, arguments, made)
        for tensor in made:
            same = id(tensor) in self.known and self.of(tensor).constant == constant and not any(tensor is other for other in changed)
            if not tensor.is_floating_point():
                self.learn(tensor, math.inf, reason or f"{name} in {self.where} makes integers or truth values, which jump")
            elif not same:  # x.contiguous() may be x itself, and then still a layer's very output
                self.learn(tensor, constant, reason)
        for tensor in changed:
            if not any(tensor is other for other in made):
                self.learn(tensor, math.inf, reason or f"{name} in {self.where} writes into one of its arguments")

    # Modules that count as a whole

    def watch(self, module: nn.Module, name: str) -> tuple[RemovableHandle, RemovableHandle]:
        """Hooks next to the module's own forward, inside of hooks that others have set, so that what those do is followed."""
        return (
            module.register_forward_pre_hook(partial(self.enter, name), with_kwargs=True),
            module.register_forward_hook(self.leave, prepend=True, always_call=True),
        )

    def enter(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self.depth:
            self.depth += 1
            return
        self.running.append(_Running(name))
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            self.depth = 1  # already now, because `norms` may run the module
            with torch._C.DisableTorchFunction():
                self.running[-1] = self.begin(name, module, args[0])
            self.depth = int(self.running[-1].whole)

    def begin(self, name: str, module: nn.Module, tensor: Tensor) -> _Running:
        """What the module's output will be known as."""
        known, shape = self.of(tensor), tuple(tensor.shape[1:])
        norm = self.norms(module, shape)
        both = self.composed(known.layer, module, known.shape) if known.layer is not None and self.composed is not None else None
        # The input itself may be unknown, where `norms` does not know a convolution but `composed` knows it with its BatchNorm.
        constants = [] if norm is None else [known.constant * norm]
        constants += [] if both is None else [known.before * both]
        constant, reason = min((c for c in constants if 0 <= c < math.inf), default=math.inf), ""
        if constant == math.inf:
            reason = known.reason or f"`norms` or `composed` gave no finite number ≥ 0 for {name} (norm {norm})"
        output = _Known(tensor, constant, reason, module, known.constant, shape)
        return _Running(name, output, whole=bool(constants), version=_version(tensor))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.depth = max(0, self.depth - 1)
        if self.depth or not self.running:
            return
        name, known, whole, version = self.running.pop()
        if known is None:
            return
        with torch._C.DisableTorchFunction():
            if whole and _version(known.tensor) != version:
                self.learn(known.tensor, math.inf, f"{name} writes into its input")
                self.written(known.tensor)
            if whole and isinstance(output, Tensor) and output.is_floating_point():
                self.learn(output, known.constant, known.reason, layer=module, before=known.before, shape=known.shape)
            elif id(output) in self.known and self.known[id(output)].layer is None:  # of nested modules the innermost is the layer
                self.known[id(output)] = self.known[id(output)]._replace(layer=module, before=known.before, shape=known.shape)


def _judge(rule: Rule | None, name: str, before: dict[int, _Known], arguments: tuple[Any, Any], made: list[Tensor]) -> tuple[float, str]:
    """The constant of what a function made, and ""; or infinity, and why."""
    if rule is None or not made:
        return math.inf, f"{name} has no known Lipschitz constant"
    out = next((tensor for tensor in made if tensor.is_floating_point()), made[0])
    try:
        constant = rule(Call(lambda tensor: before[id(tensor)].constant, out), *arguments[0], **arguments[1])
    except NoConstant as error:
        return math.inf, f"{name} {error}"
    except (TypeError, ValueError, ArithmeticError, RuntimeError):  # arguments that the rule does not know, empty tensors
        return math.inf, f"{name} is called with arguments for which no Lipschitz constant is known"
    if not math.isfinite(constant):
        return math.inf, f"{name} divides by 0 or multiplies by numbers that are not finite"
    return constant, ""


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # inference tensors do not count, and cannot be written into here


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return id(tensor)
