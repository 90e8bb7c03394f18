"""What a new checkpoint says of how it was made, and what the one before it says of samples that are gone."""

import os
from typing import TYPE_CHECKING, Any

from .output import complain

if TYPE_CHECKING:
    from ..data.images import Samples
    from ..data.load import DataPair


def as_words(**options: Any) -> list[str]:
    """Options as words of a command, for the record in a checkpoint: each with its value; of files only the name, for a checkpoint travels.

    Example:
        >>> as_words(forget_random="100:0", no_retain=True, set=["epochs=1", "lr=0.1"], tune=None, forget_indices="ids.csv")
        ['--forget-random=100:0', '--no-retain', '--set=epochs=1', '--set=lr=0.1', '--forget-indices=ids.csv']
    """
    words = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            option = f"--{name.replace('_', '-')}"
            if one is not None and one is not False:
                words.append(option if one is True else f"{option}={name_of(str(one))}")
    return words


def name_of(text: str) -> str:
    """What a data set or file is called; the folders on the way to it are its owner's business."""
    return os.path.basename(os.path.normpath(text)) if os.path.exists(text) else text


def data_of(metadata: dict[str, Any], text: str, pair: "DataPair", no_retain: bool = False) -> dict[str, Any] | None:
    """What a new checkpoint says of the training data: what the one before it said, and more where the same data are at hand."""
    from ..models.lineage import describe_data

    told = metadata.get("data")
    if told is None and no_retain:  # the data at hand may be the forget samples alone
        return None
    return told if told and told.get("fingerprint") != pair.train.fingerprint else describe_data(*pair, name=name_of(text))


def check_gone(text: str, metadata: dict[str, Any], train: "Samples", gone: list[int] | None, *, reads: bool) -> None:
    """Warns if samples that left a model by earlier requests would be read again, or if those that are named as gone are others."""
    from ..checks import check_indices
    from ..models.lineage import describe_ids, forgotten, union

    left = forgotten(metadata)
    if left and gone is None and reads:
        n = sum(each.n for each in left)
        complain("warning", f"{text} was made to forget {n} samples before; where they are still in the data, they are retain samples, and may be learned again. Name them by --without FILE.")  # fmt: skip
    if gone is not None:
        known = [each.union for each in left if each.union]
        if len(known) < len(left) or describe_ids(train.ids[check_indices(gone, len(train), "positions in --without")].tolist())[
            "union"
        ] != union(known):
            complain(
                "warning", f"the samples in --without are not those that {text} was made to forget before, as far as its checkpoint tells."
            )
