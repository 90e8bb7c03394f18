"""Models that answer with more than logits, such as those of Hugging Face transformers."""

from typing import final

from torch import Tensor, nn

from ..errors import ModelError


@final
class LogitsOnly(nn.Module):
    """A model whose output is the logits alone, for models whose output is an object with `.logits`.

    Those are the image classifiers of Hugging Face transformers, and torchvision's GoogLeNet and Inception, which in training mode answer with more than in eval mode.
    The model itself is held (not a copy) as `LogitsOnly.model`, with its own class, configuration and weights: after unlearning, `unlearned.model.save_pretrained(folder)`
    writes what `from_pretrained` reads.

    Args:
        model: its forward takes images (N, C, H, W) first, and returns the logits (N, K) or an object that has them as `.logits`.

    Raises:
        ModelError: at the call: the output is neither.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> class Means(nn.Module):  # in the place of transformers.ViTForImageClassification
        ...     def forward(self, images):
        ...         return SimpleNamespace(logits=images.mean((2, 3)))
        >>> LogitsOnly(Means())(torch.ones(1, 3, 8, 8))
        tensor([[1., 1., 1.]])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training  # not .train(), which would also change layers frozen in eval mode

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images)
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"the model's output must be logits, or an object that has them as .logits; got {type(output).__name__}. "
                "Wrap the model in a module of yours whose forward returns the logits."
            )
        return logits
