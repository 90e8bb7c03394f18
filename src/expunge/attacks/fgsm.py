"""One step along the sign of the gradient: where a model's answer goes when the image is pushed out of its class."""

import torch
from torch import nn

from ..costs import count
from ..data.images import Samples
from ..device import device_of, exact
from ..types import Logits
from .active_set import finite, margin


def logits_after_fgsm(model: nn.Module, data: Samples, eps: float, *, batch_size: int = 256) -> Logits:
    """The model's logits on the FGSM image of each sample, in order, float32 (N, K) on the CPU; in eval mode, so that batch mates do not matter, and exact float32.

        x' = clamp(x + eps · sign ∇_x CE(f(x), y), 0, 1)

    Args:
        model: maps images in [0, 1] to logits.
        data: un-augmented images with class numbers.
        eps: L∞ step, as a share of the range of pixels.

    Raises:
        ModelError: logits that are not finite.

    Cost: two forward passes and one backward pass.
    Paper: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572.
    """
    answers, device = [], device_of(model)
    count(data.ids, forward=2, input_gradients=1)
    with exact(model), torch.enable_grad():
        for images, labels in data.batches(batch_size):
            x, y = images.to(device).requires_grad_(), labels.to(device)
            # The margin falls in the direction in which the cross-entropy rises, and does not fade on images that the model is sure of.
            (fall,) = torch.autograd.grad(margin(finite(model(x).float()), y).sum(), x)
            with torch.no_grad():
                answers.append(finite(model((x - eps * fall.sign()).clamp(0, 1)).float()).cpu())
    return torch.cat(answers)
