"""Models as files: safetensors with metadata, written whole or not at all, and read without running code.

The metadata say how to build the model again and hold a hash of its weights, so that a damaged file is noticed. Pickled state dicts of
other tools are read by `torch.load(weights_only=True)`; whatever asks for more than tensors is refused.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ConfigError, ExpungeError, ModelError, StoreError
from ..rng import fork
from ..store.files import write_tensors
from .architecture import Architecture
from .pickled import is_pickle, read_pickle, some

RESERVED = ("architecture", "model_hash", "format")
PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile


def save_model(
    model: nn.Module, path: str | Path, *, metadata: dict[str, Any] | None = None, architecture: Architecture | None = None
) -> None:
    """Writes a model's weights and buffers to a safetensors file; a crash leaves the old file or the new one, never half of one.

    Args:
        model: any module.
        path: the file; folders on the way are made.
        metadata: anything JSON can hold, by name; `read_metadata` returns it.
        architecture: how to build the model, so that `load_model(path)` needs no `build`.

    Raises:
        ConfigError: metadata that JSON cannot hold, or under a reserved name.
        ModelError: the architecture builds another model than this, or the model's state is not all tensors.
        StoreError: the file cannot be written.

    Example:
        >>> import tempfile, expunge
        >>> build = expunge.architecture("small", expunge.load_data("digits").train)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(build(), f"{folder}/model.safetensors", architecture=build, metadata={"note": "first"})
        ...     read_metadata(f"{folder}/model.safetensors")["note"]
        'first'
    """
    state = _state(model)
    if architecture is not None:
        _check_fit(_skeleton(architecture), state, f"the model to be saved as {architecture.name!r}")
    header = {name: _to_json(name, value) for name, value in (metadata or {}).items()} | {
        "format": "pt",
        "model_hash": json.dumps(_hash(state)),
    }
    if architecture is not None:
        header["architecture"] = json.dumps(asdict(architecture))
    write_tensors(Path(path), state, header)


def load_model(path: str | Path, build: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Reads a model from a file that `save_model` wrote, or from a pickled state dict. The model is on the CPU, in eval mode.

    Args:
        path: a .safetensors file, or a state dict saved by torch (.pt, .pth).
        build: makes the model whose weights these are; None: the architecture that the file names.

    Raises:
        MissingError: no such file.
        StoreError: the file is damaged.
        ModelError: the weights are of another architecture, the file does not say of which, or it is a pickle that holds more than tensors.

    Example:
        >>> import tempfile, expunge
        >>> build = expunge.architecture("small", expunge.load_data("digits").train)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(build(), f"{folder}/model.safetensors", architecture=build)
        ...     load_model(f"{folder}/model.safetensors").training
        False
    """
    path = Path(path)
    if build is None:
        build = _architecture(path)
    state = _read(path)
    if isinstance(build, Architecture):  # shapes come before weights: a header that lies must not ask for memory that nobody has
        skeleton = _skeleton(build)
        _check_fit(skeleton, _without_prefix(state, skeleton), path.name)
    with fork(0):
        model = build()
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"build must return an nn.Module; got {type(model).__name__}. Pass a function without arguments that makes the model."
        )
    state = _without_prefix(state, model.state_dict())
    _check_fit(model.state_dict(), state, path.name)
    model.load_state_dict(state, strict=False)  # _check_fit has been stricter, but lets counters of batch normalisation be absent
    return model.eval()


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a checkpoint, without reading its weights; {} for a pickle, which has none.

    Raises:
        MissingError: no such file.
        StoreError: the file is damaged.
    """
    path = Path(path)
    if is_pickle(path):
        return {}
    with _named_damage(path), safetensors.safe_open(path, framework="pt") as file:
        return {name: _from_json(value) for name, value in (file.metadata() or {}).items() if name != "format"}


def stored_hash(path: str | Path) -> str:
    """The `model_hash` of the weights in a checkpoint, which are read and held against the hash that was stored with them.

    Raises:
        MissingError, StoreError, ModelError: as `load_model` does, but for the architecture, which is not needed.
    """
    return _hash(_read(Path(path)))


def model_hash(model: nn.Module) -> str:
    """SHA-256 (hex) over the names, types, shapes and bytes of all weights and buffers; the same on every device. Numbers of half precision count as the float32 that they are,
    for that is what a checkpoint of them is loaded as.
    """
    return _hash(_state(model))


def _hash(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    exact = {name: value.float() if value.dtype in (torch.float16, torch.bfloat16) else value for name, value in state.items()}
    for name, tensor in sorted(exact.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise ModelError(
            f"a model's state must be tensors; got {type(state[strange[0]]).__name__} under {strange[0]!r}. "
            "Keep it in a buffer, or out of get_extra_state."
        )
    return {name: tensor.detach() for name, tensor in state.items()}


def _skeleton(architecture: Architecture) -> dict[str, Tensor]:
    """Names and shapes of an architecture's weights, without the weights."""
    with torch.device("meta"):
        return architecture().state_dict()


def _architecture(path: Path) -> Architecture:
    fields = read_metadata(path).get("architecture")
    if fields is None:
        raise ModelError(
            f"{path.name} does not name its architecture. Pass build=, a function that makes the model: "
            "load_model(path, architecture('resnet18', train))."
        )
    try:
        found = Architecture.from_json(fields)
        _skeleton(found)
    except (ExpungeError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ModelError(
            f"{path.name} names an architecture that cannot be built: {str(fields)[:200]!r} ({str(error)[:200]}). Pass build=, a function that makes the model."
        ) from error
    return found


def _read(path: Path) -> dict[str, Tensor]:
    if is_pickle(path):
        return read_pickle(path)
    with _named_damage(path):
        state = load_file(path)
    if not _intact(path, state):
        raise StoreError(
            f"{path} is damaged: its weights do not match the hash stored with them. Copy it again from where it came, or make it again."
        )
    return state


def _intact(path: Path, state: dict[str, Tensor]) -> bool:
    """Whether the weights are those that were saved, as far as the file tells; another tool's "model_hash", without quotation marks, means something else."""
    with safetensors.safe_open(path, framework="pt") as file:
        expected = (file.metadata() or {}).get("model_hash", "")
    return not expected.startswith('"') or expected == json.dumps(_hash(state))


@contextlib.contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} is not a whole safetensors file or pickle: {error}. Copy it again from where it came, or make it again."
        ) from error


def _without_prefix(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in wanted):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _check_fit(wanted: dict[str, Tensor], state: dict[str, Tensor], what: str) -> None:
    """Raises ModelError unless the names and shapes of a state dict are those of the model."""
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in wanted]
    misshaped = [
        f"{n} (expected {tuple(wanted[n].shape)}, got {tuple(state[n].shape)})"
        for n in wanted
        if n in state and wanted[n].shape != state[n].shape
    ]
    if not (missing or unexpected or misshaped):
        return
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    remedy = "Build the model that was saved: pass its architecture as build=."
    if {f"1.{name}" for name in state} >= {n for n in wanted if n.startswith("1.")} and "0.mean" in missing:
        remedy = "These are weights without Normalize: load them with build= of the bare network, then with_normalize(model, mean, std)."
    raise ModelError(f"{what} does not fit the architecture: {'; '.join(f'{k}: {some(v)}' for k, v in found.items() if v)}. {remedy}")


def _to_json(name: str, value: Any) -> str:
    if name in RESERVED:
        raise ConfigError(f"metadata must not use the names {', '.join(RESERVED)}; got {name!r}. Choose another.")
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:  # a tensor, a list that holds itself
        raise ConfigError(
            f"metadata must be what JSON can hold; got {type(value).__name__} under {name!r}. Pass numbers, text, lists and dicts."
        ) from error


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, brackets without end
        return text  # a file of another tool, whose metadata are plain text
