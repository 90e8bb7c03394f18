"""Adversarial examples as a data set: images with the wrong label that the model gives them, and a record of where they came from.

A set made once for a whole training set serves any forget set: `for_ids` picks rows by the id of the sample that they belong to. `check`
refuses a set of another model, whose labels would not be the model's own.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, final

import safetensors
import torch
from jaxtyping import Bool
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checks import check_made_from
from ..data.images import Augment, Samples, places
from ..errors import DataError, StoreError
from ..models.checkpoint import model_hash
from ..store.files import check_file, write_tensors
from ..types import Images, Labels, Scores

FORMAT = "expunge adversarial set 1"
TENSORS = ("images", "labels", "ids", "true_labels", "distances", "epsilons", "forward_passes", "found", "already_wrong")


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AdversarialSet(Samples):
    """One adversarial example for each sample of a data set, in the same order. Made by calling an attack: `NearestL2PGD()(model, data)`.

    Attributes:
        images: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N,), what the model answers to `images`: y_adv.
        ids, indices: int64 (N,), the ids of the samples that they were made from.
        classes: the class names.
        augment: how training may vary the images; not at all, unless it is replaced.
        true_labels: int64 (N,), y.
        distances: (N,), L2 distance from the sample.
        epsilons: (N,), L2 radius that the search was confined to; the distance for attacks without one.
        forward_passes: int64 (N,), forward passes that the example has cost.
        found: bool (N,), whether the label differs from the true one.
        already_wrong: bool (N,), whether it did so at the sample itself, which is then kept as it is.
        model_hash: the attacked model, as `models.checkpoint.model_hash` gives it.
        data_fingerprint: the data that were attacked.
        attack: the attack's repr.

    Example:
        >>> import torch, expunge
        >>> x = torch.tensor([0.3, 0.45, 0.55, 0.7]).reshape(4, 1, 1, 1)
        >>> data = expunge.ImageData(x, torch.tensor([0, 0, 1, 1]), ("dark", "bright"))
        >>> bright = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2))
        >>> _ = bright.load_state_dict({"1.weight": torch.tensor([[-1.0], [1.0]]), "1.bias": torch.tensor([0.5, -0.5])})
        >>> expunge.NearestDDN()(bright, data)
        AdversarialSet(4 images, 4 found, 0 already wrong, mean distance 0.1427)
    """

    resident: ClassVar[bool] = True

    images: Images
    labels: Labels
    ids: Labels
    classes: tuple[str, ...]
    true_labels: Labels
    distances: Scores
    epsilons: Scores
    forward_passes: Labels
    found: Bool[Tensor, " N"]
    already_wrong: Bool[Tensor, " N"]
    model_hash: str
    data_fingerprint: str
    attack: str = ""
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in TENSORS}
        if len(set(lengths.values())) != 1:
            raise DataError(f"all tensors of an adversarial set must have one row for each sample; got {lengths}.")

    def __repr__(self) -> str:
        mean = f", mean distance {float(self.distances[self.found].mean()):.4g}" if self.found.any() else ""
        return f"AdversarialSet({len(self)} images, {int(self.found.sum())} found, {int(self.already_wrong.sum())} already wrong{mean})"

    @property
    def indices(self) -> Labels:
        return self.ids

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.classes, self.model_hash, self.data_fingerprint)).encode())
        for name in TENSORS:
            digest.update(getattr(self, name).contiguous().numpy().data)
        return digest.hexdigest()

    def fetch(self, positions: Tensor) -> Images:
        return self.images[positions]

    def for_ids(self, ids: Sequence[int] | Tensor) -> "AdversarialSet":
        """The examples of the samples with these ids, in the order given.

        Raises:
            DataError: no id, an id twice, or one that is not in the set.
        """
        ids = torch.as_tensor(ids, dtype=torch.int64).cpu()
        rows = places(self.ids, ids)
        missing = ids[rows < 0]
        if len(missing):
            raise DataError(
                f"the adversarial set has examples of {len(self)} samples, and not of {len(missing)} of those asked for "
                f"(first: id {int(missing[0])}). Attack the whole training set, or this forget set."
            )
        if len(ids) == 0 or len(ids.unique()) < len(ids):
            raise DataError(
                f"ids must be unique and at least one; got {len(ids)}, {len(ids.unique())} of them different. Pass split.forget.ids."
            )
        return self._rows(rows)

    def for_samples(self, samples: Samples) -> "AdversarialSet":
        """The examples of these samples, in their order, after comparing them with the samples themselves.

        Ids alone do not tell: images saved apart from their training set count from 0 again.

        Raises:
            DataError: as `for_ids`; or an example that was made from another image or label than the sample with its id.
        """
        found = self.for_ids(samples.ids)
        if found.shape != samples.shape:
            raise DataError(
                f"adversarial examples must have the shape of the samples, {samples.shape}; got {found.shape}. Make them again."
            )
        far = [(x - samples.fetch(at)).flatten(1).norm(dim=1) for at, x in _numbered(found.images)]
        # Distances may have been computed on another device; the wrong image is a thousand times further away than their rounding.
        foreign = ~torch.isclose(torch.cat(far), found.distances, rtol=1e-3, atol=1e-3) | (found.true_labels != samples.labels)
        if foreign.any():
            raise DataError(
                f"adversarial examples must be of the samples that they are used for; got {int(foreign.sum())} of {len(found)} made from another "
                f"image or label (first: id {int(found.ids[foreign][0])}). Take the samples from the training set that was attacked, or attack them."
            )
        return found

    def succeeded(self) -> "AdversarialSet":
        """The examples that were found.

        Raises:
            DataError: there is none.
        """
        if not self.found.any():
            raise DataError(
                f"no adversarial example was found for any of {len(self)} samples, so that there is nothing to train on. "
                "Search with more steps or a larger radius."
            )
        return self if self.found.all() else self._rows(self.found.nonzero().flatten())

    def check(self, model: nn.Module | None = None, data: Samples | None = None) -> None:
        """Raises DataError unless the set was made with this model, and from these data (None = not checked)."""
        check_made_from(
            "these adversarial examples were made with the", "Make them again: attack(model, data).",
            model=None if model is None else (self.model_hash, model_hash(model)),
            data=None if data is None else (self.data_fingerprint, data.fingerprint),
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Writes the set to a safetensors file; a crash leaves the old file or the new one, never half of one.

        Raises:
            StoreError: the file cannot be written.
        """
        header = {
            "format": FORMAT, "content": self.fingerprint, "classes": json.dumps(self.classes),
            "augment": json.dumps([self.augment.pad, self.augment.flip]), "attack": self.attack,
            "model_hash": self.model_hash, "data_fingerprint": self.data_fingerprint,
        }  # fmt: skip
        write_tensors(Path(path), {name: getattr(self, name) for name in TENSORS}, header)

    @classmethod
    def load(cls, path: str | Path) -> "AdversarialSet":
        """Reads a set that `save` wrote.

        Raises:
            MissingError: no such file.
            StoreError: the file is damaged, or holds something else.
        """
        check_file(path, "adversarial set file", "Make it with attack(model, data).save(path).")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise StoreError(
                    f"{path} must hold a set of adversarial examples ({FORMAT!r}); got {header.get('format')!r}. "
                    "Pass a file that AdversarialSet.save wrote."
                )
            pad, flip = json.loads(header["augment"])
            loaded = cls(
                **load_file(path), classes=tuple(json.loads(header["classes"])), augment=Augment(pad, flip),
                model_hash=header["model_hash"], data_fingerprint=header["data_fingerprint"], attack=header["attack"],
            )  # fmt: skip
            whole = loaded.fingerprint == header["content"]
        except (safetensors.SafetensorError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise StoreError(
                f"{path} is not a whole set of adversarial examples: {error}. Copy it again from where it came, or make it again."
            ) from error
        if not whole:
            raise StoreError(
                f"{path} is damaged: its content does not match the hash stored with it. "
                "Copy it again from where it came, or make it again."
            )
        return loaded

    def _rows(self, rows: Tensor) -> "AdversarialSet":
        return replace(self, **{name: getattr(self, name)[rows] for name in TENSORS})


def _numbered(images: Images, size: int = 256) -> Iterator[tuple[Tensor, Images]]:
    for positions in torch.arange(len(images)).split(size):
        yield positions, images[positions]
