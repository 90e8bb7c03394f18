"""What the stages of a model pass on: one vector an image and stage, all stages from one forward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import choose
from ..costs import count
from ..data.images import Samples
from ..device import device_of
from ..errors import ModelError
from ..modes import eval_mode
from .inference import logits_of
from .last_layers import NORMS

Features = dict[str, Tensor]


def stages(model: nn.Module, data: Samples) -> list[str]:
    """Names of the modules whose outputs are what the model's stages pass on, in the order in which they are called; the last stage, whose output is the logits, is left out.

    The trunk is the model, or inside it the only part with weights (behind a `Normalize`, say). A stage is a part of the trunk with weights, such as a convolution or a
    whole residual stage, with everything up to the next one: normalisation, ReLU, pooling. A part whose output is no tensor, as in the models of transformers, is taken apart. Found by running the model.

    Raises:
        ModelError: the model has only one stage.

    Cost: one forward pass over two images.
    """
    trunk, prefix = _trunk(model)
    groups: list[list[str]] = []
    for part, name in _parts(model, trunk, prefix, data).items():
        if not isinstance(part, NORMS) and _has_weights(part):
            groups.append([])
        if groups:
            groups[-1].append(name)
    if len(groups) < 2:
        raise ModelError(
            f"the model must have a stage before the one that gives the logits; got {type(trunk).__name__} with {len(groups)} part(s) with weights. "
            "Name layers yourself: layers=[…], names from model.named_modules()."
        )
    return [group[-1] for group in groups[:-1]]


def features_at(model: nn.Module, layers: Sequence[str], data: Samples) -> Features:
    """For each named module its output on all samples in order, float32 (N, d) on the CPU: un-augmented, in eval mode.

    Feature maps (N, C, H, W) are averaged over the image and tokens (N, T, d) over the tokens. A module that is called several times counts with its last call.

    Args:
        model: any module. layers: names of modules in it, as in `model.named_modules()`; at least one.
        data: images.

    Raises:
        MissingError: no module of that name.
        ModelError: a module is not called, gives something else than a tensor with a row for each image, or gives NaN or infinity.

    Cost: one forward pass, for all layers.

    Example:
        >>> from expunge import load_data
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> digits = load_data("digits").test
        >>> stages(net, digits)
        ['2']
        >>> features_at(net, ["1", "2"], digits.subset(range(5)))["1"].shape
        torch.Size([5, 4])
    """
    modules = dict(model.named_modules())
    for name in layers:
        choose("layer", name, [known for known in modules if known], "Layers are named as in model.named_modules().")
    tap = _Tap(model, {name: modules[name] for name in layers})
    together = logits_of(tap, data)
    return dict(zip(layers, together.split(tap.widths, 1), strict=True))


class _Tap(nn.Module):
    """A model that answers with the pooled outputs of some of its modules, side by side."""

    def __init__(self, model: nn.Module, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.model, self.tapped = model, modules
        self.widths: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        seen: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, _vectors(output, len(images), name)))
            for name, module in self.tapped.items()
        ]
        try:
            self.model(images)
        finally:
            for hook in hooks:
                hook.remove()
        silent = [name for name in self.tapped if name not in seen]
        if silent:
            raise ModelError(f"every named layer must be called by the model; got {silent[0]!r}, which is not. Leave it out.")
        self.widths = [seen[name].shape[1] for name in self.tapped]
        return torch.cat([seen[name] for name in self.tapped], 1)


def _vectors(output: object, n: int, name: str) -> Tensor:
    """One vector an image; a copy, because an in-place layer behind it would change what was seen."""
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4) or len(output) != n:
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"a layer must give one row for each of {n} images, (N, d), (N, T, d) or (N, C, H, W); {name!r} gives {got}. Name another layer."
        )
    found = pooled(output)
    return found.clone() if found is output else found


def pooled(output: Tensor) -> Tensor:
    """(N, C, H, W) averaged over the image, (N, T, d) over the tokens, (N, d) as it is."""
    return output if output.ndim == 2 else output.mean(1) if output.ndim == 3 else output.mean((2, 3))


def _trunk(model: nn.Module) -> tuple[nn.Module, str]:
    """The module whose children are the stages, and the beginning of their names."""
    prefix = ""
    while True:
        weighted = [(name, child) for name, child in model.named_children() if _has_weights(child)]
        if len(weighted) != 1 or next(model.parameters(recurse=False), None) is not None or not list(weighted[0][1].children()):
            return model, prefix
        prefix, model = f"{prefix}{weighted[0][0]}.", weighted[0][1]


def _parts(model: nn.Module, trunk: nn.Module, prefix: str, data: Samples) -> dict[nn.Module, str]:
    """The trunk's children and their names, in the order in which their first calls end; one that gives no tensor, or is a mere list, stands for its own children."""
    gives_tensor: dict[nn.Module, bool] = {}

    def note(module: nn.Module, _: object, output: object) -> None:
        gives_tensor.setdefault(module, isinstance(output, Tensor))

    hooks = [module.register_forward_hook(note) for module in trunk.modules()]
    count(data.ids[:2], forward=1)
    try:
        with eval_mode(model), torch.no_grad():
            model(data.fetch(torch.arange(min(2, len(data)))).to(device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    names: dict[nn.Module, str] = {}
    pending = [(trunk, prefix)]
    while pending:
        parent, prefix = pending.pop()
        for name, child in parent.named_children():
            if gives_tensor.get(child) or (child in gives_tensor and not list(child.children())):
                names[child] = prefix + name
            else:
                pending.append((child, f"{prefix}{name}."))
    return {part: names[part] for part in gives_tensor if part in names}


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
