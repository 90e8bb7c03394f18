"""What a model answers: logits for scoring, always in float32 and eval mode, whatever the training precision was."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..costs import count
from ..data.images import Samples
from ..data.mixture import Mixture
from ..device import device_of, exact, fast_layout
from ..errors import ModelError, NondeterministicModel, NotFinite, ProbabilitiesNotLogits
from ..types import Logits
from .distributed import answers_across_ranks


@torch.no_grad()
def logits_of(model: nn.Module, data: Samples, *, batch_size: int = 512) -> Logits:
    """The model's logits on all samples in order, float32 (N, K) on the CPU; un-augmented, in eval mode.

    Raises:
        ModelError: the model cannot take these images, or the output is not (N, K), or not finite.

    Cost: one forward pass.

    Example:
        >>> import expunge
        >>> train, test = expunge.load_data("digits")
        >>> logits_of(expunge.architecture("small", train)(), test).shape
        torch.Size([797, 10])
    """
    outputs = answers_across_ranks(lambda *part: _answers_to(data, *part), model, torch.arange(len(data)).split(batch_size))
    count(data.ids, forward=1)
    return torch.cat(outputs)


def _answers_to(data: Samples, model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    device = device_of(model)
    outputs: list[Tensor] = []
    if not batches:  # other ranks answer all of them
        return outputs
    mixture = Mixture([data], device, augment=False)
    with exact(model):
        first = next(mixture.epoch(batches[:1], 0)).images
        with fast_layout(model, first) as layout:
            for batch in mixture.epoch(batches, 0):
                outputs.append(_answers(model, batch.images.contiguous(memory_format=layout)).float().cpu())
    return outputs


def check_model(model: nn.Module, data: Samples, n: int = 8, *, labels: Tensor | None = None) -> None:
    """Raises ModelError unless the model answers a few samples with finite logits (B, K), K ≥ every label; warns of probabilities and of noise.

    `labels` are those that need an output, if they are not those of `data`.

    Flags: ProbabilitiesNotLogits, NondeterministicModel.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module; got {type(model).__name__}. A checkpoint is loaded by expunge.load_model.")
    few = data.subset(range(min(n, len(data))))
    answers = logits_of(model, few)
    labels = data.labels if labels is None else labels
    top = int(labels.max()) if labels.ndim == 1 else labels.shape[1] - 1
    if answers.shape[1] <= top:
        raise ModelError(f"the labels go up to {top}, so that the model needs at least {top + 1} outputs; got {answers.shape[1]}.")
    if (answers >= 0).all() and torch.allclose(answers.sum(1), torch.ones(len(answers)), atol=1e-4):
        warnings.warn(
            "the model's outputs look like probabilities; expunge needs logits. Leave out the last softmax.",
            ProbabilitiesNotLogits,
            stacklevel=3,
        )
    if not torch.equal(answers, logits_of(model, few)):
        warnings.warn(
            "the model answers the same images differently in eval mode; results cannot be repeated.", NondeterministicModel, stacklevel=3
        )


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    n = len(images)
    try:
        output = model(images)
    except (RuntimeError, ValueError, AssertionError) as error:  # PyTorch, transformers and timm, in this order
        if type(error) not in (RuntimeError, ValueError, AssertionError):  # out of memory, an error of the device, or our own
            raise
        raise ModelError(
            f"the model must take float32 images of shape {tuple(images.shape[1:])}; got: {(str(error).splitlines() or [type(error).__name__])[0]} "
            "Use data of the kind that it was trained on, and weights in float32."
        ) from error
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != n:
        got = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(
            f"the model must return logits of shape ({n}, K) for {n} images; got {got}. "
            "Wrap it: expunge.LogitsOnly(model) where the output has them as .logits, else a module of yours that returns them alone."
        )
    if not output.isfinite().all():
        raise NotFinite(
            f"the model must return finite logits; got {int((~output.isfinite()).sum())} NaN or infinite values. Check its weights and inputs."
        )
    return output
