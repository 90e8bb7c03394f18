"""The last linear layer of a model, and the features that go into it."""

import torch
from torch import Tensor, nn

from ..costs import count
from ..data.images import Samples
from ..device import device_of
from ..errors import ModelError
from ..modes import eval_mode
from .inference import logits_of


def last_linear(model: nn.Module, data: Samples, *, instead: str = "a method") -> nn.Linear:
    """The nn.Linear layer whose output is the model's output. Found by running the model, not by names or shapes, which mislead.

    Args:
        model: a classifier. data: images for it.
        instead: what the caller offers that needs no such layer; for the message.

    Raises:
        ModelError: no layer is.

    Cost: one forward pass over two images.
    """
    calls: list[tuple[nn.Module, object]] = []

    def note(layer: nn.Module, _: object, output: object) -> None:
        # A copy, because an in-place layer behind it would change what is compared.
        calls.append((layer, output.clone() if isinstance(output, Tensor) else output))

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) or not list(layer.children())]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    count(data.ids[:2], forward=1)
    try:
        with eval_mode(model), torch.no_grad():
            logits = model(data.fetch(torch.arange(min(2, len(data)))).to(device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    found = [
        layer for layer, output in calls if isinstance(layer, nn.Linear) and isinstance(output, Tensor) and torch.equal(output, logits)
    ]
    if not found:
        last = calls[-1][0] if calls else None
        raise ModelError(
            f"the logits must be what an nn.Linear layer puts out; the last layer called is {last}{', and its output is changed' * isinstance(last, nn.Linear)}. "
            "Put the nn.Linear last (a 1×1 convolution with a mean behind it equals a mean with an nn.Linear behind it), or choose "
            f"{instead} that does without."
        )
    return found[-1]


def features_and_logits(model: nn.Module, head: nn.Linear, images: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into the last linear layer, (B, d), and what the model answers, (B, K), from one forward pass."""
    seen = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = model(images)
    finally:
        hook.remove()
    return seen[-1], logits


def features_of(model: nn.Module, head: nn.Linear, data: Samples) -> Tensor:
    """The features that go into the last linear layer, on all samples in order: float32 (N, d) on the CPU, un-augmented, in eval mode."""
    return logits_of(WithFeatures(model, head), data)[:, : head.in_features].contiguous()


class WithFeatures(nn.Module):
    """A model that answers with what goes into its last linear layer and, behind it, its logits, (B, d + K): in one tensor, as ranks share it out, and in a copy from the copy's layer."""

    def __init__(self, model: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(features_and_logits(self.model, self.head, images), 1)
