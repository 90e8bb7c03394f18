"""Networks by name, normalisation inside the model, and checkpoints that run no code."""

from .architecture import ARCHITECTURES, Architecture, architecture
from .checkpoint import load_model, model_hash, read_metadata, save_model
from .import_path import import_build, import_object
from .normalize import Normalize, with_normalize
from .outputs import LogitsOnly

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "LogitsOnly",
    "Normalize",
    "architecture",
    "import_build",
    "import_object",
    "load_model",
    "model_hash",
    "read_metadata",
    "save_model",
    "with_normalize",
]
