"""Results on disk: a spec becomes a key, a key a folder, and a folder is believed only when its checksums agree."""

from .cell import POLL, Cell, DamagedFile, Store
from .spec import canonical, key, plain, rebuild

__all__ = ["POLL", "Cell", "DamagedFile", "Store", "canonical", "key", "plain", "rebuild"]
