"""State dicts that other tools pickled, read by `torch.load(weights_only=True)`: whatever asks for more than tensors is refused."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ExpungeError, ModelError, StoreError
from ..store.files import check_file

PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # torch's zip archive, and plain pickles of protocol 2 and later
NESTS = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict in a larger dict


def is_pickle(path: Path) -> bool:
    """Whether a file begins as torch's archives and pickles do; raises MissingError if there is none."""
    check_file(path, "checkpoint file", "Pass the path of a .safetensors, .pt or .pth file.")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise StoreError(
            f"cannot read the checkpoint {path}: {error.strerror or error}. Check its permissions, or copy it again."
        ) from error
    # The ninth byte of safetensors is the brace that opens its header: a header of 128 (0x80) bytes is no pickle.
    return start.startswith(PICKLE_STARTS) and start[8:] != b"{"


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The state dict in a pickle, also where a training script put it in a larger dict. No code of the file is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle protocol: what cannot be read raises as well
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise StoreError(
            f"{path} is not a whole checkpoint of torch: {str(error).splitlines()[0]}. Copy it again from where it came, or make it again."
        ) from error
    for nest in NESTS:
        if isinstance(loaded, dict) and isinstance(loaded.get(nest), dict):
            loaded = loaded[nest]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        raise ModelError(
            f"{path.name} must hold a state dict of tensors; got {_sketch(loaded)}. Save model.state_dict(), or use save_model."
        )
    return dict(loaded)


def _refusal(path: Path, error: pickle.UnpicklingError) -> ExpungeError:
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a plain pickle: torch cannot list what it asks for, but its message names the first
        wanted = [word.strip("`") for word in str(error).split("GLOBAL ")[1:2] for word in word.split()[:1]]
    if not wanted:
        return StoreError(
            f"{path} is not a whole checkpoint of torch: {str(error).splitlines()[0]}. Copy it again from where it came, or make it again."
        )
    remedy = "Where you trust it, load it with your own code and write the weights: save_model(model, 'model.safetensors')."
    if any(name.startswith("torch.nn.") for name in wanted):
        return ModelError(f"{path.name} is a whole pickled model, and loading it would run its code ({', '.join(wanted[:3])}, …). {remedy}")
    return ModelError(f"{path.name} is a pickle that wants to run code ({', '.join(wanted[:3])}); it was refused. {remedy}")


def _sketch(value: Any) -> str:
    return f"a dict with {some([repr(k) for k in value])}" if isinstance(value, dict) else type(value).__name__


def some(names: list[str]) -> str:
    """The first three names, and how many there are more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
