"""Where and how precisely to compute: device, precision and memory layout."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigError, ExpungeError
from .modes import eval_mode
from .ranks import current

PRECISIONS = ("auto", "float32", "bfloat16")


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device to compute on; "auto" is the first GPU if there is one, else the CPU, and the CPU where ranks share out a model's weights.

    Raises:
        ConfigError: the name is unknown, or the machine has no such device.
    """
    if isinstance(device, str) and device == "auto":
        ranks = current()
        gpu = torch.cuda.is_available() and not (ranks and ranks.shard)
        return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device must be 'auto', 'cpu' or a device of this machine; got {str(device)!r} ({str(error).splitlines()[0]})."
        ) from None
    return device


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's weights (the CPU if it has none)."""
    return next((p.device for p in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: "auto" is bfloat16 where the hardware multiplies it natively, for there it is about twice as fast, else float32."""
    if precision == "auto":
        if device.type == "cuda":
            precision = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        else:
            # Emulated bfloat16 (before AVX-512-BF16 and AMX) is slower than float32.
            native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
            precision = "bfloat16" if native else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Turns off TF32 in convolutions and matrix products inside the block; on GPUs cuDNN's convolutions use it unless told otherwise."""
    backends: Any = torch.backends  # torch does not declare all of its switches
    operations = [backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul]
    before = [operation.fp32_precision for operation in operations]
    try:
        for operation in operations:
            operation.fp32_precision = "ieee"
        yield
    finally:
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = precision


@contextlib.contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """A caller's autocast is off inside the block. torch.autocast(enabled=False) would do so too, but in a block of it others keep their copies of weights from step to step."""
    before = torch.is_autocast_enabled(device.type)
    try:
        torch.set_autocast_enabled(device.type, False)
        yield
    finally:
        torch.set_autocast_enabled(device.type, before)


@contextlib.contextmanager
def exact(model: nn.Module) -> Iterator[None]:
    """For what is computed of a model besides training: eval mode, and float32 without TF32 and without the caller's autocast, inside the block."""
    with eval_mode(model), exact_float32(), without_autocast(device_of(model)):
        yield


def plain_attention() -> contextlib.AbstractContextManager[None]:
    """Attention as matrix products and a softmax inside the block, for the fused kernels can be differentiated neither twice nor sample by sample."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank holds only a part of this model's weights."""
    return any(cls.__name__ == "FSDPModule" for cls in type(model).__mro__)  # by name, for the class takes long to import


@contextlib.contextmanager
def fast_layout(model: nn.Module, images: Tensor) -> Iterator[torch.memory_format]:
    """Stores the model's weights channels-last inside the block if it works that way; yields the format that its inputs should have.

    A model that flattens feature maps with `view` cannot run channels-last; one forward pass on `images` finds out.
    """
    if is_sharded(model):  # its weights are contiguous, as messages must be
        yield torch.contiguous_format
        return
    # Weights moved in inference mode would be inference tensors, and no good for training ever after.
    with torch.inference_mode(False):
        layout = torch.channels_last if _runs_channels_last(model, images) else torch.contiguous_format
        strides = {p: p.stride() for p in model.parameters()}
        model.to(memory_format=layout)
    try:
        yield layout
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for parameter, stride in strides.items():
                if parameter.stride() != stride:
                    parameter.data = torch.empty_strided(parameter.shape, stride, dtype=parameter.dtype, device=parameter.device).copy_(
                        parameter
                    )


@torch.no_grad()
def _runs_channels_last(model: nn.Module, images: Tensor) -> bool:
    try:
        with eval_mode(model):
            model(images[:2].to(memory_format=torch.channels_last))
    except ExpungeError:
        raise
    except (RuntimeError, ValueError, AssertionError):  # the last two are how models of transformers and timm refuse images of another size
        return False
    return True
