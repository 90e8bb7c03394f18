"""How a model came about, as its checkpoint tells: a record of each change (trained, unlearned, clipped), linked by the hashes of the models between them.

The record of the last change is the checkpoint's metadata themselves; those before it stand under "history", oldest first. Records come from files, which
anybody may have written: `changes` takes what has the right form and leaves out the rest.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from torch import nn

from ..costs import Cost
from ..data.images import Samples
from ..data.split import Split
from ..provenance import provenance
from .checkpoint import model_hash

OF_ALL = ("architecture", "recipe", "build", "data")  # what holds for every change of one model
TRAINED, UNLEARNED, CLIPPED = "trained", "unlearned", "clipped"
MODULUS = 1 << 256
LARGEST = 10**15  # of a count or a time that is believed


class Named(Protocol):
    """What a record tells of a method beside its settings."""

    @property
    def name(self) -> str: ...

    @property
    def paper(self) -> str: ...


@final
@dataclass(frozen=True)
class Forgotten:
    """A forget set, without who is in it.

    Attributes:
        n, of: how many samples, of how many; `of` is None where that is not known.
        digest: SHA-256 (hex) of the ids as JSON, ascending; 16 digits of it in checkpoints of older versions.
        union: the sum of the SHA-256 of each id, modulo 2^256: that of disjoint forget sets together is the sum of theirs.
        classes: names, where whole classes are forgotten.
        data: fingerprint of the data in which ids count.
    """

    n: int
    of: int | None
    digest: str
    union: str | None
    classes: tuple[str, ...]
    data: str | None


@final
@dataclass(frozen=True)
class Change:
    """One change of a model, from nothing on; None or empty where the record does not tell.

    Attributes:
        kind: "trained", "unlearned" or "clipped".
        original, result: hashes of the model before and after.
        forgotten: what was unlearned, or what a model was trained without.
        method, settings, paper, seed: of unlearning (the seed also of training).
        accuracy: shares of right answers by group, as measured when the model was made.
        seconds, passes: what it took; passes over the training set.
        made_with: versions, hardware and date.
        arguments: of the command that did it, without names of models.
    """

    kind: str
    original: str | None = None
    result: str | None = None
    forgotten: Forgotten | None = None
    method: str | None = None
    settings: str | None = None
    paper: str | None = None
    seed: int | None = None
    accuracy: tuple[tuple[str, float], ...] = ()
    seconds: float | None = None
    passes: float | None = None
    made_with: tuple[tuple[str, str], ...] = ()
    arguments: tuple[str, ...] = ()


def describe_ids(ids: Iterable[int]) -> dict[str, Any]:
    """How many ids there are, and their hashes (see `Forgotten`). Whoever has the ids can check them; who can guess a few ids can find them.

    Example:
        >>> first, second, both = (describe_ids(ids) for ids in ([3], [1], [1, 3]))
        >>> both["n"], both["digest"] == hashlib.sha256(b"[1, 3]").hexdigest(), both["union"] == union([first["union"], second["union"]])
        (2, True, True)
    """
    ids = sorted(ids)
    each = [hashlib.sha256(str(i).encode()).hexdigest() for i in ids]
    return {"n": len(ids), "digest": hashlib.sha256(json.dumps(ids).encode()).hexdigest(), "union": union(each)}


def union(hashes: Sequence[str]) -> str:
    """The hash of disjoint forget sets together."""
    return f"{sum(int(h, 16) for h in hashes) % MODULUS:064x}"


def describe_split(split: Split) -> dict[str, Any]:
    """A forget set as a checkpoint and an audit remember it: its size and hashes, not who is in it."""
    classes = [split.train.classes[k] for k in split.forget_classes]
    return describe_ids(split.forget.ids.tolist()) | {"of": len(split.train), "classes": classes, "data": split.train.root.fingerprint}


def describe_data(train: Samples, test: Samples | None = None, name: str | None = None) -> dict[str, Any]:
    """A data set as a checkpoint remembers it: name, fingerprint, sizes and class names."""
    seen = {"name": name, "fingerprint": train.fingerprint, "n": len(train), "classes": list(train.classes)}
    return seen if test is None else seen | {"n_test": len(test), "test_fingerprint": test.fingerprint}


def same_samples(a: Forgotten, b: Forgotten) -> bool:
    """Whether two forget sets are the same, as far as they tell. Whole classes need no ids, which are others where the rest of the data is gone."""
    if a.n != b.n or (a.classes and a.classes == b.classes):
        return a.n == b.n
    digits = min(len(a.digest), len(b.digest))
    return a.digest[:digits] == b.digest[:digits] and (a.data == b.data or None in (a.data, b.data))


def which(wanted: Forgotten, forgotten: Sequence[Forgotten]) -> tuple[int, ...] | None:
    """The positions of the forget sets, oldest first, that are the wanted one: the last of them that is, or all together; None where it is another."""
    for k in reversed(range(len(forgotten))):
        if same_samples(wanted, forgotten[k]):
            return (k,)
    together = [part.union for part in forgotten if part.union and (part.data == wanted.data or wanted.data is None)]
    if len(together) < len(forgotten) or not forgotten or union(together) != wanted.union or sum(part.n for part in forgotten) != wanted.n:
        return None
    return tuple(range(len(forgotten)))


def unlearning_record(
    method: Named,
    split: Split,
    original: nn.Module,
    *,
    seed: int = 0,
    history: Mapping[str, Any] | None = None,
    cost: Cost | None = None,
    accuracy: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What an unlearned model's checkpoint should say of itself, as `metadata` of `save_model`: what was forgotten, from what, how, and what came before.

    Args:
        method, split, original, seed: of the call that made the model.
        history: `read_metadata` of the original's checkpoint, if it has one, so that earlier requests are not lost.
        cost: from `measure_cost` around the call.
        accuracy: shares of right answers by group, for the record.

    Cost: a hash of the original's weights, and of the training set the first time.

    Example:
        >>> from expunge import FineTune, forget_samples, load_data
        >>> train, _ = load_data("digits")
        >>> record = unlearning_record(FineTune(), forget_samples(train, [3, 14]), nn.Linear(2, 2))
        >>> record["method"], record["forget"]["n"], record["data"]["n"]
        ('fine_tune', 2, 1000)
    """
    history = dict(history or {})
    kept = {name: history[name] for name in OF_ALL if name in history and name != "architecture"}
    if "data" not in kept and split.has_retain:
        kept["data"] = describe_data(split.train)
    made = {
        "method": method.name, "settings": str(method), "paper": method.paper, "seed": seed, "forget": describe_split(split),
        "original": model_hash(original), "provenance": provenance(), "history": _before(history),
    }  # fmt: skip
    if cost is not None:
        made |= {"seconds": round(cost.seconds, 3), "cost": cost.to_dict() | {"passes": round(cost.passes(len(split.train)), 4)}}
    return kept | made | ({"accuracy": dict(accuracy)} if accuracy else {})


def _before(metadata: Mapping[str, Any]) -> list[Any]:
    """The records of all changes to a model, from its checkpoint's metadata."""
    own = {name: value for name, value in metadata.items() if name not in (*OF_ALL, "history")}
    older = metadata.get("history")
    return [*(older if isinstance(older, list) else []), *([own] if own else [])]


def changes(metadata: Mapping[str, Any]) -> list[Change]:
    """The changes to a model, oldest first, from its checkpoint's metadata; those that say nothing are left out.

    Example:
        >>> trained = {"seed": 1, "model_hash": "ab" * 32}
        >>> record = {"method": "amun", "original": "ab" * 32, "forget": {"n": 3, "digest": "cd" * 32}, "history": [trained]}
        >>> [change.kind for change in changes(record)], changes(record)[1].forgotten.n
        (['trained', 'unlearned'], 3)
    """
    return [change for record in _before(metadata) if isinstance(record, dict) for change in _changes_of(record)]


def forgotten(metadata: Mapping[str, Any]) -> list[Forgotten]:
    """What a model should not know, oldest first: what was unlearned, and what it was trained without."""
    return [change.forgotten for change in changes(metadata) if change.forgotten is not None]


def breaks(found: Sequence[Change]) -> list[int]:
    """Positions of the changes that did not start from the model that the change before them made, as far as the hashes tell."""
    return [k for k in range(1, len(found)) if found[k].original is None or found[k].original != found[k - 1].result]


def _changes_of(record: Mapping[str, Any]) -> list[Change]:
    """The change that a record is of, if it tells, and the clips after it."""
    listed = record.get("clipped")
    clips = [clip for clip in listed if isinstance(clip, dict)] if isinstance(listed, list) else []
    models = [*(hash_or_none(clip.get("original")) for clip in clips), hash_or_none(record.get("model_hash"))]
    return [*_made(record, models[0]), *map(_clip, clips, models, models[1:])]


def _clip(clip: Mapping[str, Any], original: str | None, result: str | None) -> Change:
    bound = number_or_none(clip.get("max_norm"))
    settings = None if bound is None else f"singular values at most {bound:g}"
    return Change(
        CLIPPED, original, result, settings=settings, accuracy=_numbers(clip.get("accuracy")), made_with=_texts(clip.get("provenance"))
    )


def _made(record: Mapping[str, Any], result: str | None) -> list[Change]:
    """The training or unlearning that a record is of; none where it tells of neither."""
    cost, unlearned = record.get("cost"), isinstance(record.get("method"), str)
    change = Change(
        UNLEARNED if unlearned else TRAINED,
        hash_or_none(record.get("original")),
        result,
        forgotten_or_none(record.get("forget" if unlearned else "without")),
        method=_text(record.get("method")),
        settings=_text(record.get("settings")),
        paper=_text(record.get("paper")),
        seed=count_or_none(record.get("seed")),
        accuracy=_numbers(record.get("accuracy")),
        seconds=number_or_none(record.get("seconds")),
        passes=number_or_none(cost.get("passes")) if isinstance(cost, dict) else None,
        made_with=_texts(record.get("provenance")),
        arguments=tuple(a for a in words if isinstance(a, str)) if isinstance(words := record.get("arguments"), list) else (),
    )
    return [change] if unlearned or change.seed is not None or change.made_with else []


def forgotten_or_none(record: Any) -> Forgotten | None:
    """The forget set that `describe_split` described, or None if this is no such description."""
    if not isinstance(record, dict):
        return None
    n, digest, classes = count_or_none(record.get("n")), record.get("digest"), record.get("classes")
    if not n or not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{64}", digest):
        return None
    names = tuple(c for c in classes if isinstance(c, str)) if isinstance(classes, list) else ()
    return Forgotten(n, count_or_none(record.get("of")), digest, hash_or_none(record.get("union")), names, hash_or_none(record.get("data")))


def hash_or_none(value: Any) -> str | None:
    """A SHA-256 in hex, or None if this is none."""
    return value if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) else None


def count_or_none(value: Any) -> int | None:
    """A whole number from 0 on, or None if this is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def number_or_none(value: Any) -> float | None:
    """A finite number of ordinary size, or None if this is none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST or not math.isfinite(value):
        return None
    return float(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _numbers(record: Any) -> tuple[tuple[str, float], ...]:
    found = {name: number_or_none(value) for name, value in record.items()} if isinstance(record, dict) else {}
    return tuple((name, value) for name, value in found.items() if value is not None)


def _texts(record: Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in record.items() if isinstance(value, str | int)) if isinstance(record, dict) else ()
