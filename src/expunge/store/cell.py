"""The folder of one result: `<store>/<kind>/<key>/` with spec.json, weights.safetensors and result.json.

The result is written last and names the checksum of every other file: its presence, with all sums right, means done. A process may be
killed between any two writes; what it leaves is either a whole result or none. Plain files: readable, safe on network disks.

    store = Store("runs")
    cell = store.cell("shadow", spec)
    with cell.claim() as mine:                   # False: another worker is at it, or it is done
        if mine:
            cell.finish({"accuracy": 0.9}, model.state_dict())
    cell.result()["accuracy"]
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from safetensors.torch import load_file
from torch import Tensor

from ..checks import check_settings, setting
from ..errors import StoreError
from ..ranks import alone
from .claims import hold
from .files import checksum, make_folder, named_failure, sync_folder, tensor_bytes, write_file
from .spec import canonical, one_line, plain, text_key

SPEC, RESULT, SUFFIX, DAMAGED = "spec.json", "result.json", ".safetensors", ".damaged"
POLL = 0.5  # seconds between looks at a cell that another process is working on
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class DamagedFile(UserWarning):
    """A stored file does not have the checksum that was recorded for it; it was moved aside, and its cell is computed again."""


@final
@dataclass(frozen=True)
class Store:
    """A folder of results, which several processes and machines may share.

    Args:
        root: the folder; it is made when the first result is written.
        stale_after: seconds without a sign of life after which the claim of a worker elsewhere is taken over, > 0.

    Example:
        >>> Store("runs").cell("shadow", {"seed": 0}).folder.as_posix()
        'runs/shadow/bd0488843468e63c62bb6d1d'
    """

    root: Path
    stale_after: float = setting(60.0, gt=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        check_settings(self)

    def cell(self, kind: str, spec: Any) -> "Cell":
        """The cell of this spec, whether it is done or not. Nothing is written yet.

        Raises:
            StoreError: `kind` is not a plain lower-case name, or the spec has no canonical form (see `canonical`).
        """
        if not NAME.fullmatch(kind):
            raise StoreError(f"the kind of a cell must be a lower-case name such as 'shadow'; got {kind!r}. It becomes a folder.")
        text = canonical(spec)
        return Cell(kind, self.root / kind / text_key(text), text, self.stale_after)

    def cells(self, kind: str | None = None) -> list["Cell"]:
        """The cells that exist, done or begun, ordered by kind and key; those of one kind if it is given."""
        found = []
        for path in sorted(self.root.glob(f"{kind or '*'}/*/{SPEC}")):
            with contextlib.suppress(ValueError, OSError):  # a damaged spec.json: its cell is written anew when somebody asks for it
                text = one_line(json.loads(path.read_text()))
                if text_key(text) == path.parent.name:
                    found.append(Cell(path.parent.parent.name, path.parent, text, self.stale_after))
        return found


@final
@dataclass(frozen=True)
class Cell:
    """One unit of work and its result. Made by `Store.cell` and `Store.cells`."""

    kind: str
    folder: Path
    text: str = field(repr=False)  # the spec's canonical JSON
    stale_after: float = field(default=60.0, repr=False)

    @property
    def spec(self) -> dict[str, Any]:
        """The spec as JSON; `rebuild` makes its dataclasses again."""
        return json.loads(self.text)

    @property
    def done(self) -> bool:
        """Whether the result is there and every file has its checksum. Reads each file once in a process."""
        return self._damage() is None

    def check(self) -> None:
        """Raises StoreError, naming the file, unless the cell is done and whole."""
        damage = self._damage()
        if damage is not None:
            raise StoreError(f"{damage.file} {damage.problem}. Run again: what is damaged or missing is computed anew, the rest is kept.")

    def result(self) -> dict[str, Any]:
        """What `finish` was given as the result.

        Raises:
            StoreError: the cell is not done, or a file is damaged.
        """
        self.check()
        return self._record()["result"]

    def tensors(self, file: str = "weights") -> dict[str, Tensor]:
        """The tensors of one file of the cell; the others are not loaded.

        Raises:
            StoreError: the cell is not done, has no such file, or a file is damaged.
        """
        self.check()
        names = [name.removesuffix(SUFFIX) for name in self._record()["files"]]
        if file not in names:
            raise StoreError(f"{self.folder} has no tensors named {file!r}; it has {names}. Ask for one of these.")
        return load_file(self.folder / f"{file}{SUFFIX}")

    def finish(self, result: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None, **more: Mapping[str, Tensor]) -> None:
        """Writes the result; the cell is done when this returns, and at no moment before has half of it been believed.

        Args:
            result: JSON values by name; None where a number does not exist.
            tensors: written to weights.safetensors.
            more: further files by name, such as scores={"logits": logits}.

        Raises:
            StoreError: the folder is full or read-only, or the result is not JSON.
        """
        result = plain(result, "result")
        make_folder(self.folder)
        self._write_spec()
        files = {}
        for name, content in (({} if tensors is None else {"weights": tensors}) | more).items():
            data = tensor_bytes(content)
            files[f"{name}{SUFFIX}"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            write_file(self.folder / f"{name}{SUFFIX}", data)
        record = {"files": files, "result": result}
        write_file(self.folder / RESULT, _json(record | {"sha256": _digest(record)}))

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Yields True if the cell is to be computed and nobody else is computing it; then it is claimed inside the block.

        Leftovers of killed workers are removed, and damaged files moved aside with a `DamagedFile` warning.

        Raises:
            StoreError: the folder cannot be written.
        """
        if self.done:
            yield False
            return
        with hold(self.folder, self.stale_after) as mine, alone():  # where several ranks share a store, one of them makes the cell
            if mine:
                self._tidy()
            yield mine and not self.done

    def ensure(self, work: Callable[[], None]) -> None:
        """Returns when the cell is done: calls `work`, which must `finish` it, unless that is done, and waits while another worker is at it.

        Raises:
            StoreError: the folder cannot be written.
        """
        while not self.done:
            with self.claim() as mine:
                if mine:
                    work()
            if not mine and not self.done:
                time.sleep(POLL)

    def _tidy(self) -> None:
        with named_failure(self.folder):
            for leftover in self.folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            damage = self._damage()
            if damage is not None and (self.folder / RESULT).exists():
                warnings.warn(
                    f"{damage.file} {damage.problem}; it was moved aside, and the cell is computed again.", DamagedFile, stacklevel=4
                )
                # The result goes first: from then on nobody believes the rest.
                for path in (self.folder / RESULT, damage.file):
                    if path.exists():
                        os.replace(path, path.with_name(path.name + DAMAGED))
                sync_folder(self.folder)
        self._write_spec()

    def _write_spec(self) -> None:
        if _read_json(self.folder / SPEC) != self.spec:
            write_file(self.folder / SPEC, _json(self.spec))

    def _record(self) -> dict[str, Any]:
        return _read_json(self.folder / RESULT)

    def _damage(self) -> "_Damage | None":
        """The first file that keeps the cell from being done."""
        path = self.folder / RESULT
        record = self._record()
        if record is None:
            return _Damage(
                path, "is damaged: it is not the JSON that was written" if path.exists() else "does not exist: the cell is not done"
            )
        if not isinstance(record, dict) or record.get("sha256") != _digest({k: v for k, v in record.items() if k != "sha256"}):
            return _Damage(path, "is damaged: its content does not have the checksum recorded in it")
        for name, expected in record["files"].items():
            problem = _compare(self.folder / name, expected)
            if problem is not None:
                return _Damage(self.folder / name, problem)
        return None


@dataclasses.dataclass(frozen=True)
class _Damage:
    file: Path
    problem: str


def _compare(path: Path, expected: dict[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"is damaged: it must have {expected['bytes']} bytes; got {size}"
        return None if checksum(path) == expected["sha256"] else "is damaged: its bytes do not have the recorded checksum"
    except FileNotFoundError:
        return "is missing: the result names it, but the file does not exist"


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _read_json(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise StoreError(
            f"the store must be able to read {path}; got: {error.strerror}. Change its permissions, or check the disk."
        ) from error
