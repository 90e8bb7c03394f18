"""Whether and how objects can be sent to another process."""

import io
import os
import pickle
import sys
import types
import warnings
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor


@dataclass
class Examined:
    """What sending an object to another process takes."""

    n_bytes: int = 0  # of its tensors
    needs_main: bool = False  # it refers to something defined in the user's script
    obstacle: str | None = None  # why it cannot be sent, in words


def examine(obj: Any) -> Examined:
    """Whether and how an object can be sent to a worker process."""
    found = Examined()
    try:
        _Examiner(found).dump(obj)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        found.obstacle = str(error)
    if found.needs_main and found.obstacle is None and not _main_can_be_imported():
        found.obstacle = 'it is defined in a notebook, or in a script without `if __name__ == "__main__":`, which a worker cannot import'
    return found


class _Examiner(pickle.Pickler):
    def __init__(self, found: Examined) -> None:
        super().__init__(io.BytesIO())
        self.found = found

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            self.found.n_bytes += obj.untyped_storage().nbytes()
        if isinstance(obj, Tensor | np.ndarray):
            return int, ()
        if isinstance(obj, type | types.FunctionType) and obj.__module__ == "__main__":
            self.found.needs_main = True
        return NotImplemented


def _main_can_be_imported() -> bool:
    path = getattr(sys.modules["__main__"], "__file__", None)
    return path is not None and os.path.exists(path) and "__name__" in Path(path).read_text(errors="replace")


def pack(obj: Any, pickler: Any) -> list[bytes | np.ndarray]:
    """The object as a pickle, followed by the bytes of its tensors, so that all workers of a machine can read one copy of them.

    Args:
        obj: what is to be sent.
        pickler: cloudpickle's `Pickler`, or one like it.
    """

    class Packer(pickler):
        dispatch_table: ClassVar[Any] = ChainMap({Tensor: _as_buffer}, pickler.dispatch_table)

    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    Packer(file, protocol=5, buffer_callback=buffers.append).dump(obj)
    return [file.getvalue(), *(np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers)]


def unpack(packed: Sequence[bytes | np.ndarray]) -> Any:
    """What was packed. Its tensors lie in the buffers, and must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        pickled: Any = packed[0]
        return pickle.loads(pickled, buffers=packed[1:])


def _as_buffer(tensor: Tensor) -> Any:
    if tensor.device.type != "cpu" or not tensor.numel() or tensor.requires_grad:
        return tensor.__reduce_ex__(5)
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return _from_buffer, (pickle.PickleBuffer(data.data), tensor.dtype, tensor.shape)


def _from_buffer(buffer: Any, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)
