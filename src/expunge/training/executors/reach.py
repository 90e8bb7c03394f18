"""Whether a worker on another machine sees the same store: results travel through it."""

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from ...errors import StoreError
from ...store.files import write_file

FILE = ".id"  # in the store: a random number, written once


@dataclass(frozen=True)
class Mark:
    """How to know a folder again from another machine."""

    folder: Path
    text: str

    def check(self) -> None:
        """Raises StoreError unless this machine sees the folder."""
        try:
            found = (self.folder / FILE).read_text()
        except OSError as error:
            found, why = None, f"{error.strerror or error}"
        else:
            why = "another folder of the same name"
        if found != self.text:
            raise StoreError(
                f"the store {self.folder} must be on a file system that all machines share; got on {socket.gethostname()}: {why}. "
                "Pass a store on a shared disk, by a path that is the same everywhere."
            )


def mark(folder: Path) -> Mark:
    """The mark of a folder of results, which is made if it does not exist.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder = folder.absolute()
    path = folder / FILE
    if not path.exists():
        write_file(path, secrets.token_hex(16).encode())
    return Mark(folder, path.read_text())
