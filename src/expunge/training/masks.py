"""Masks of weights, as bits: small enough to keep beside a model and to share, so that others forget with the same weights."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import final

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from ..errors import ModelError, StoreError
from ..store.files import check_file, write_tensors

FORMAT = "expunge mask 1"


@final
class WeightMask(Mapping[str, Tensor]):
    """A mask in an eighth of the memory: from parameter names to bool tensors, True = may change, that are unpacked when they are asked for.

    Args:
        mask: such a mapping, from `saliency_mask` or of your own.

    Raises:
        ModelError: a tensor is not of bools.

    Example:
        >>> mask = WeightMask({"0.weight": torch.tensor([[True, False, True], [False, False, False]])})
        >>> mask, mask["0.weight"][0].tolist()
        (<WeightMask: 2 of 6 weights>, [True, False, True])
    """

    def __init__(self, mask: Mapping[str, Tensor]) -> None:
        strange = [name for name, part in mask.items() if not isinstance(part, Tensor) or part.dtype != torch.bool]
        if strange:
            got = getattr(mask[strange[0]], "dtype", type(mask[strange[0]]).__name__)
            raise ModelError(f"a mask must hold bool tensors, True = may change; got {got} under {strange[0]!r}. Pass values > 0.")
        self.shapes = {name: tuple(part.shape) for name, part in mask.items()}
        self.bits = {name: packed(part) for name, part in mask.items()}

    def __getitem__(self, name: str) -> Tensor:
        return unpacked(self.bits[name], self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightMask) and self.shapes == other.shapes and all(torch.equal(self.bits[n], other.bits[n]) for n in self)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.shapes.items())))

    def __repr__(self) -> str:
        chosen, total = (sum(count(part) for part in self.values()) for count in (lambda part: int(part.sum()), torch.numel))
        return f"<WeightMask: {chosen:,} of {total:,} weights>"


def packed(mask: Tensor) -> Tensor:
    """A bool tensor as bits, uint8 (⌈N / 8⌉,) on the CPU: element i is bit i mod 8 of byte i div 8.

    Example:
        >>> packed(torch.tensor([True, False, True])).tolist()
        [5]
    """
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1), bitorder="little"))


def unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool tensor of this shape that `packed` made these bits of."""
    n = torch.Size(shape).numel()
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=n, bitorder="little").astype(bool)).view(shape)


def check_mask(mask: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raises ModelError unless every name of a mask is that of a parameter of the model, of the same shape; parameters without a name in it are allowed: they stay."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    unknown = [name for name in mask if name not in shapes]
    misshaped = [name for name in mask if name in shapes and tuple(mask[name].shape) != shapes[name]]
    if unknown or misshaped or not len(mask):
        if unknown:
            got = f"{len(unknown)} unknown names (first: {unknown[0]!r})"
        elif misshaped:
            got = f"shape {tuple(mask[misshaped[0]].shape)} for {misshaped[0]!r} of {shapes[misshaped[0]]}"
        else:
            got = "an empty mask"
        raise ModelError(f"a mask must name parameters of the model and have their shapes; got {got}. Make it with this architecture.")


def save_mask(mask: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes a mask to a safetensors file, eight weights to a byte; a crash leaves the old file or the new one.

    Raises:
        ModelError: a tensor is not of bools. StoreError: the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_mask({"head.weight": torch.tensor([True, False])}, f"{folder}/mask.safetensors")
        ...     load_mask(f"{folder}/mask.safetensors")
        <WeightMask: 1 of 2 weights>
    """
    mask = WeightMask(mask)
    header = {"format": FORMAT, "shapes": json.dumps({name: list(shape) for name, shape in mask.shapes.items()})}
    write_tensors(Path(path), mask.bits, header)


def load_mask(path: str | Path) -> WeightMask:
    """Reads a mask that `save_mask` wrote.

    Raises:
        MissingError: no such file.
        StoreError: the file is damaged, or holds something else.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_mask({"head.weight": torch.tensor([True, False])}, f"{folder}/mask.safetensors")
        ...     load_mask(f"{folder}/mask.safetensors")["head.weight"]
        tensor([ True, False])
    """
    check_file(path, "mask file", "Make it with save_mask(mask, path).")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            shapes = {name: tuple(shape) for name, shape in json.loads(header.get("shapes", "{}")).items()}
            bits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path} must be a mask that save_mask wrote; got: {error}. Copy it again, or make it again.") from error
    fits = all(len(bits.get(name, ())) == -(-torch.Size(shape).numel() // 8) for name, shape in shapes.items())
    if header.get("format") != FORMAT or shapes.keys() != bits.keys() or not fits:
        raise StoreError(f"{path} must be a mask that save_mask wrote; got something else, or bits that are too few. Make it again.")
    return WeightMask({name: unpacked(bits[name], shape) for name, shape in shapes.items()})
