"""How much each weight matters for a data set, kept with what it belongs to: one pass over the training set serves every later request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from ..checks import check_made_from
from ..data.images import Samples
from ..errors import DataError
from ..models.checkpoint import model_hash
from ..store import Store
from .per_sample import squared_gradients, trainable


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Importances:
    """For each trainable weight the mean over samples of the squared gradient of the sample's own cross-entropy. Made by `importances(model, data)`.

    Attributes:
        tensors: float32 of the parameter's shape, on the CPU, by parameter name.
        n: how many samples they are of.
        model_hash: the model, as `models.checkpoint.model_hash` gives it.
        data_fingerprint: the data.

    Example:
        >>> import torch, expunge
        >>> data = expunge.ImageData(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]), ("a", "b"))
        >>> found = expunge.importances(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), data)
        >>> found.n, {name: tuple(of_weights.shape) for name, of_weights in found.tensors.items()}
        (4, {'1.weight': (2, 4), '1.bias': (2,)})
    """

    tensors: Mapping[str, Tensor]
    n: int
    model_hash: str
    data_fingerprint: str

    def __repr__(self) -> str:
        return f"Importances({sum(t.numel() for t in self.tensors.values()):,} weights, {self.n} samples)"

    def check(self, model: nn.Module | None = None, data: Samples | None = None) -> None:
        """Raises DataError unless they are of this model, and of these data (None = not checked)."""
        check_made_from(
            "these importances are of the", "Make them again: importances(model, data).",
            model=None if model is None else (self.model_hash, model_hash(model)),
            data=None if data is None else (self.data_fingerprint, data.fingerprint),
        )  # fmt: skip

    def fit(self, model: nn.Module) -> None:
        """Raises DataError unless there is an importance for every trainable weight of the model."""
        strange = [name for name, p in trainable(model).items() if name not in self.tensors or self.tensors[name].shape != p.shape]
        if strange:
            raise DataError(
                f"importances must be of every trainable weight; got none that fit {len(strange)} parameters (first: {strange[0]}). They were made while these were "
                "frozen, or with another architecture. Make them again: importances(model, data)."
            )


def importances(model: nn.Module, data: Samples, *, store: Store | None = None) -> Importances:
    """E_{(x, y) ∈ D} (∂CE(f_θ(x), y)/∂θ)² for every trainable weight of the model, in eval mode and on un-augmented images.

    Args:
        model: left as it is; the gradients are computed on its device.
        data: D.
        store: keeps them and finds them again, for the same weights and the same data; None = they are computed.

    Raises:
        ModelError: no trainable parameter. StoreError: the store cannot be written.

    Cost: one pass over the data, once.
    Example:
        >>> from expunge import ImageData
        >>> import torch
        >>> data = ImageData(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]), ("a", "b"))
        >>> importances(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), data)
        Importances(10 weights, 4 samples)
    """
    about: dict[str, Any] = {"n": len(data), "model_hash": model_hash(model), "data_fingerprint": data.fingerprint}

    def computed() -> dict[str, Tensor]:
        return {name: t.cpu() for name, t in squared_gradients(model, data).items()}

    if store is None:
        return Importances(tensors=computed(), **about)
    cell = store.cell("importances", about | {"parameters": list(trainable(model))})
    cell.ensure(lambda: cell.finish({}, computed()))
    return Importances(tensors=cell.tensors(), **about)
