"""An audit as evidence about one checkpoint: read from a file that anybody may have written, and refused where it is of another model or other samples."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never, final

from ..errors import DataError, MissingError
from ..models.lineage import Forgotten, count_or_none, forgotten_or_none, hash_or_none, number_or_none, which
from .twins import GROUPS, folded, is_reference

NUMBERS = re.compile(r'<script type="application/json" id="result">(.*?)</script>', re.DOTALL)
MOST = 10_000  # models, attacks, flags … of one audit
WORDS = ("indistinguishable", "distinguishable", "cannot tell")
EXPECTED = "an audit must be what `expunge audit` prints with --json or writes with --html"
REMEDY = "Run `expunge audit` on this checkpoint and pass what it wrote."
Plain = dict[str, Any]


@final
@dataclass(frozen=True)
class Evidence:
    """What an audit found about one model.

    Attributes:
        result: the audit's plain values, checked; many retrained models in one entry.
        model: the name that the audit gives the model.
        requests: positions of the requests whose samples it examined.
        n_retrained, n_others: how many retrained models it had, and how many others that are not this one.
    """

    result: Plain
    model: str
    requests: tuple[int, ...]
    n_retrained: int
    n_others: int


def read_audit(source: Any) -> Plain:
    """The plain values of an audit: of its result, of a dict, or of a file that `expunge audit --json` or `--html` wrote.

    Raises:
        MissingError: no such file.
        DataError: the file holds something else, or part of an audit.
    """
    if isinstance(source, Mapping):
        return _checked(source, "a dict")
    if hasattr(source, "to_dict"):
        return _checked(source.to_dict(), "a result")
    path = Path(source)
    try:
        text = path.read_bytes().decode()
    except (FileNotFoundError, IsADirectoryError):
        raise MissingError(f"no file of an audit {str(path)!r}. Pass what `expunge audit … --json` printed, or its --html page.") from None
    except (UnicodeDecodeError, PermissionError) as error:
        raise DataError(f"{EXPECTED}; got {path.name}, which cannot be read ({error}). {REMEDY}") from None
    page = NUMBERS.search(text) if text.lstrip().startswith("<") else None
    try:
        result = json.loads(page[1] if page else text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{EXPECTED}; got {path.name}, which is no whole JSON ({str(error)[:80]}). {REMEDY}") from None
    return _checked(result, path.name)


def evidence(result: Plain, model_hash: str, forgotten: Sequence[Forgotten]) -> Evidence:
    """What an audit, as `read_audit` gives it, says about the model with this hash.

    Args:
        forgotten: what the model was made to forget, oldest first, as its checkpoint tells.

    Raises:
        DataError: the audit does not name its models, is of other models, or of samples that the model was not made to forget.
    """
    hashes = {model["name"]: model["hash"] for model in result["models"]}
    if not any(hashes.values()) or result["forget"] is None:
        raise DataError(
            f"an audit must name its models by the hash of their weights, and the forget set; got one that does not: it is of an older version, or of a file of answers. {REMEDY}"
        )
    mine = [name for name, found in hashes.items() if found == model_hash]
    if not mine:
        others = ", ".join(f"{name[:40]!r} {found[:12] if found else '?'}…" for name, found in list(hashes.items())[:4])
        raise DataError(f"an audit must be of this model, {model_hash[:12]}…; got one of other models ({others}). {REMEDY}")
    about = which(result["forget"], forgotten)
    if about is None:
        raise DataError(
            f"an audit must be of the samples that the model was made to forget; got one of {result['forget'].n} others, or of the same positions in other data. "
            "Audit what one request named, or all requests together, with the data that they were made with."
        )
    name = next((name for name in mine if name != "original"), mine[0])
    retrained = [other for other in hashes if is_reference(other, result["reference"])]
    n_others = len([other for other in hashes if other not in (name, "original", *retrained)])
    return Evidence(folded(result), name, about, len(retrained), n_others)


def _checked(result: Any, source: str) -> Plain:
    """The parts of an audit that a card shows, each of the right form."""
    if not isinstance(result, Mapping):
        _refuse(source, "no table of values")
    read = _Reader(source)
    models = read.several(result, "models", lambda row: {
        "name": read.text(row, "name"), "hash": hash_or_none(row.get("hash")), "seconds": None, "details": None,
        "gaps": read.estimates(row.get("gaps"), (*GROUPS, "auc", "average")) if row.get("gaps") else None,
    } | read.estimates(row, GROUPS))  # fmt: skip
    attacks = read.several(result, "attacks", lambda row: {
        "attack": read.text(row, "attack"), "model": read.text(row, "model"), "fpr": number_or_none(row.get("fpr")),
    } | read.estimates(row, ("auc", "tpr", "gap")))  # fmt: skip
    classes = read.several(result, "classes", lambda answers: {
        "name": read.text(answers, "name"), "n": count_or_none(answers.get("n")), "floor": read.estimate(answers.get("distance_floor")),
        "rows": read.several(answers, "rows", lambda row: {
            "model": read.text(row, "model"), "distance": read.estimate(row.get("distance")), "answer": [], "predicted": [], "neighbour": None,
        }),
    })  # fmt: skip
    verdicts = read.several(result, "verdicts", lambda row: {key: read.text(row, key) for key in ("model", "word", "text")})
    if not models or any(verdict["word"] not in WORDS for verdict in verdicts):
        _refuse(source, "none of its models" if not models else "a verdict in other words")
    names = [model["name"] for model in models]
    if len(set(names)) < len(names):
        _refuse(source, "two models of one name")
    return {
        "models": models, "attacks": attacks, "classes": classes, "verdicts": verdicts, "floor": read.estimate(result.get("floor")),
        "flags": read.several(result, "flags", lambda row: {key: read.text(row, key) for key in ("name", "message")}),
        "forget": forgotten_or_none(result.get("forget")), "reference": read.optional_text(result, "reference"), "protocol": read.optional_text(result, "protocol"),
        "sizes": read.table(result, "sizes", count_or_none), "provenance": read.table(result, "provenance", lambda x: str(x) if isinstance(x, str | int) else None),
    }  # fmt: skip


@dataclass(frozen=True)
class _Reader:
    """Takes parts of the right form out of plain values, and refuses others by name."""

    source: str

    def several(self, record: Mapping[str, Any], name: str, read: Callable[[Any], Plain]) -> list[Plain]:
        found = record.get(name) or []
        if not isinstance(found, list) or len(found) > MOST or not all(isinstance(row, dict) for row in found):
            _refuse(self.source, f"{name!r} of another form")
        return [read(row) for row in found]

    def text(self, record: Mapping[str, Any], name: str) -> str:
        if not isinstance(record.get(name), str):
            _refuse(self.source, f"no text under {name!r}")
        return record[name]

    def optional_text(self, record: Mapping[str, Any], name: str) -> str | None:
        return None if record.get(name) is None else self.text(record, name)

    def table(self, record: Mapping[str, Any], name: str, read: Callable[[Any], Any]) -> Plain:
        found = record.get(name) or {}
        if not isinstance(found, dict):
            _refuse(self.source, f"{name!r} of another form")
        return {key: value for key, value in ((key, read(value)) for key, value in found.items()) if value is not None}

    def estimates(self, record: Any, names: Sequence[str]) -> Plain:
        if not isinstance(record, dict):
            _refuse(self.source, "estimates of another form")
        return {name: self.estimate(record.get(name)) for name in names}

    def estimate(self, found: Any) -> Plain | None:
        if found is None:
            return None
        ends = ("value", "low", "high")
        if not isinstance(found, dict) or any(found.get(end) is not None and number_or_none(found[end]) is None for end in ends):
            _refuse(self.source, "an estimate that is no number with an interval")
        return {end: number_or_none(found.get(end)) for end in ends} | {"note": self.optional_text(found, "note")}


def _no_number(name: str) -> Never:
    raise ValueError(f"{name} is no number")


def _refuse(source: str, why: str) -> Never:
    raise DataError(f"{EXPECTED}; got {source} with {why}. {REMEDY}")
