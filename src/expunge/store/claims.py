"""Claims: of several workers that share a folder of results, one at a time works on each.

A claim is a file made by exclusive create, `claim.0`. Its holder touches it while it works. When the holder is dead (its process is gone
on this machine, or nobody has touched the file for `stale_after` seconds), another takes over by creating the next number, `claim.1`: a
stale claim is never removed by those who race for it, so that no race can remove a live one.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from .files import make_folder, named_failure

BEATS = 6  # touches within `stale_after`, so that a few may be late


@contextlib.contextmanager
def hold(folder: Path, stale_after: float) -> Iterator[bool]:
    """Yields True and keeps the folder claimed inside the block, or yields False if another worker has it.

    Args:
        folder: is made if it does not exist.
        stale_after: seconds without a heartbeat after which a claim from another machine counts as abandoned, > 0.

    Raises:
        StoreError: the folder cannot be written.
    """
    make_folder(folder)
    with named_failure(folder):
        number = _take(folder, stale_after)
    if number is None:
        yield False
        return
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(_path(folder, number), stale_after / BEATS, stop), daemon=True)
    heart.start()
    try:
        yield True
    finally:
        stop.set()
        heart.join()
        with contextlib.suppress(OSError):
            _release(folder, number)


def _take(folder: Path, stale_after: float) -> int | None:
    seen = _numbers(folder)
    if not all(_abandoned(_path(folder, number), stale_after) for number in seen):
        return None
    mine = max(seen, default=-1) + 1
    try:
        handle = os.open(_path(folder, mine), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return None
    try:
        with open(handle, "w") as file:
            json.dump({"host": _host(), "pid": os.getpid(), "birth": _birth(os.getpid())}, file)
    except BaseException:
        os.unlink(_path(folder, mine))
        raise
    # Another worker may have listed the folder before a release and created its claim after: then both step back, and try again later.
    if set(_numbers(folder)) - set(seen) - {mine}:
        os.unlink(_path(folder, mine))
        return None
    return mine


def _release(folder: Path, mine: int) -> None:
    for number in _numbers(folder):
        if number <= mine:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_path(folder, number))


def _beat(path: Path, interval: float, stop: threading.Event) -> None:
    while not stop.wait(interval):
        with contextlib.suppress(OSError):
            os.utime(path)


def _abandoned(path: Path, stale_after: float) -> bool:
    try:
        holder = json.loads(path.read_text() or "{}")
        if holder.get("host") == _host() and holder["birth"] is not None and _birth(holder["pid"]) != holder["birth"]:
            return True
        return _now(path.parent) - path.stat().st_mtime > stale_after
    except FileNotFoundError:  # released since it was listed
        return True


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.suffix[1:]) for path in folder.glob("claim.*") if path.suffix[1:].isdigit())


def _path(folder: Path, number: int) -> Path:
    return folder / f"claim.{number}"


def _now(folder: Path) -> float:
    """The time by the clock that stamps the files of this folder, which on a network disk is not this machine's."""
    probe = folder / f".clock.{os.getpid()}-{threading.get_ident()}.tmp"
    handle = os.open(probe, os.O_CREAT | os.O_WRONLY)
    try:
        return os.fstat(handle).st_mtime  # by handle: the cell's holder may have tidied the file away
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)


def _host() -> str:
    """This machine and, in a container, this set of process numbers."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _birth(pid: int) -> str | None:
    """When the process was started, in ticks since boot; "" if it is gone or a zombie; None where the system does not tell."""
    if not os.path.exists("/proc/self/stat"):
        return None
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
