"""A recorder for the CPU that is as strict as a CUDA graph: operations are noted with the tensors and numbers that they had, and no line of Python runs again."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.is_nonzero.default}


class Tape:
    """A `Recorder`. Like a CUDA graph it does nothing while it records, and refuses what would wait for the device."""

    def __init__(self) -> None:
        self.replays = self.recordings = 0

    def __call__(self, work):
        log = _Log()
        try:
            with log:
                work()
        finally:
            for storage, before in log.before.values():
                storage.copy_(before)
        self.recordings += 1

        @torch.no_grad()
        def replay():
            self.replays += 1
            for function, args, kwargs, result in log.operations:
                for place, value in zip(_tensors(result), _tensors(function(*args, **kwargs)), strict=True):
                    if place.data_ptr() != value.data_ptr():  # neither in place nor a view
                        place.copy_(value)

        return replay


class _Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations, self.before = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in WAITS:
            raise RuntimeError(f"{function} is not permitted while recording")
        for tensor in _tensors(
            (args, kwargs)
        ):  # schemas do not tell of all that is written: batch_norm's do not name the running statistics
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.before:
                self.before[storage.data_ptr()] = (storage, storage.clone())
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
