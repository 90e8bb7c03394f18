"""Files that are there whole or not at all, and failures of the disk in words: models, results, masks and reports are written here."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..errors import MissingError, StoreError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
CHUNK = 1 << 20  # bytes read at a time


def write_file(path: Path, data: bytes) -> None:
    """Writes a file that no reader ever sees in part, and that a power cut leaves old or new.

    Raises:
        StoreError: the folder is full, read-only or not ours; the old file, if there was one, is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with named_failure(path):
        make_folder(path.parent)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Writes tensors, and text by name, to a safetensors file, as `write_file` does.

    Cost: in memory, three times the tensors while it lasts.
    """
    write_file(path, tensor_bytes(tensors, header))


def tensor_bytes(tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file."""
    # Cloning gives each of several names for one tensor a copy of its own: the format does not know sharing.
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, header)


def write_json(value: Any, path: str | Path | None = None) -> str:
    """The value as JSON text; also written to `path`, as `write_file` does, if given.

    Example:
        >>> write_json({"auc": None})
        '{\\n "auc": null\\n}'
    """
    text = json.dumps(value, indent=1, allow_nan=False)
    if path is not None:
        write_file(Path(path), (text + "\n").encode())
    return text


def check_file(path: str | Path, what: str, remedy: str) -> None:
    """Raises MissingError unless there is a file of this path.

    Example:
        >>> check_file("none.safetensors", "mask file", "Make it with save_mask(mask, path).")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        expunge.errors.MissingError: no mask file 'none.safetensors'; looked in .... Make it with save_mask(mask, path).
    """
    if not Path(path).is_file():
        raise MissingError(f"no {what} {str(path)!r}; looked in {os.getcwd()}. {remedy}")


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it."""
    with named_failure(folder):
        folder.mkdir(parents=True, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def named_failure(path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a StoreError that names the path and the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            remedy = "Free some space, or write to another disk, and run again: finished results are kept."
        elif error.errno in FORBIDDEN:
            remedy = "Change its permissions, or pass a folder that you may write to."
        elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            remedy = "A file stands where a folder should be, or a folder for a file; pass another path."
        else:
            remedy = "Check the disk, then run again: finished results are kept."
        raise StoreError(f"expunge must be able to write {path}; got: {error.strerror or error}. {remedy}") from error


def checksum(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes; a file that has not changed since is not read again."""
    stat = path.stat()
    return _checksum(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=65536)
def _checksum(path: Path, inode: int, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
