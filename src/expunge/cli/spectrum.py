"""`expunge spectrum`: the largest singular values of every layer, and a clipped copy of the model."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .inputs import check_same_classes, check_same_data, check_writable, load_network, load_pair, metadata_of
from .options import DATA_HELP, Build, Device, Force, Json, Root, Size
from .output import percent, print_json, print_table
from .train import accuracies

if TYPE_CHECKING:
    from torch import nn

    from ..data.load import DataPair
    from ..spectral.clip import Clip
    from ..spectral.spectrum import Spectrum


N_STATISTICS = 500  # images from which BatchNorm's statistics are taken anew, at most, in one batch


class Clipped(NamedTuple):
    """What clipping made of a model."""

    model: "nn.Module"
    control: "Clip"
    spectrum: "Spectrum"
    kept: list[str]  # layers above the bound that have no weights to clip
    accuracy: dict[str, dict[str, float]] | None
    seconds: float


def spectrum(
    *,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A checkpoint, or module:function that returns the trained model.", show_default=False),
    ],
    k: Annotated[int, typer.Option("--k", metavar="N", help="Singular values of each layer, the largest first.")] = 3,
    apart: Annotated[
        bool, typer.Option("--apart", help="Take BatchNorm apart from the convolution before it. Otherwise the two are one layer.")
    ] = False,
    clip: Annotated[
        float | None,
        typer.Option("--clip", metavar="C", help="Clip all singular values at this bound, and write the model to -o.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The clipped checkpoint to write (safetensors).", show_default=False),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option("--input-shape", metavar="C,H,W", help="Of one image, where the checkpoint does not tell.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help=f"Say what clipping costs in accuracy on these data. {DATA_HELP}", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a self-contained page with a plot.", show_default=False)
    ] = None,
    build: Build = None,
    device: Device = "auto",
    root: Root = Path("data"),
    size: Size = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Print every layer's largest singular values.

    And a bound on the whole network that follows from them. With --clip, also write a copy of the model in which no value of a
    convolution or linear layer is above C (by more than 2 %). With --data also take BatchNorm's running means anew, which gives back most of
    the accuracy, and say what clipping cost.
    """
    control = _control(clip, apart, output)
    check_writable(output, force)
    check_writable(html, force)
    from ..device import resolve_device
    from ..spectral.spectrum import spectrum as run

    metadata = metadata_of(model)
    pair = None if data is None else load_pair(data, root, size)
    if pair is not None:
        check_same_classes(model, metadata, pair.train.classes)
        check_same_data(model, metadata, pair.train)
    shape = _shape(input_shape, metadata, pair)
    network = load_network(model, build).to(resolve_device(device))
    found = run(network, shape, k, composed=not apart)
    clipped = _clip(network, control, shape, k, pair, device) if control else None
    if clipped and output is not None:
        _save(clipped, output, metadata, build, shape, network)
    if html is not None:
        _write_page(html, model, shape, found, clipped)
    if json:
        print_json(_plain(model, shape, apart, found, clipped, output))
        return
    _print(found, clipped)
    for path in (output, html):
        if path is not None:
            print(f"wrote {path}")


def _control(clip: float | None, apart: bool, output: Path | None) -> "Clip | None":
    """How to clip, or None; refuses --clip without a file to write, and the other way round."""
    if (clip is None) != (output is None):
        missing, given = ("--output", "--clip") if output is None else ("--clip", "--output")
        raise typer.BadParameter(f"expected {missing} with {given}; got none. Pass both: --clip 1.0 -o clipped.safetensors.")
    if clip is None:
        return None
    from ..spectral.clip import Clip

    return Clip(max_norm=clip, batchnorm="apart" if apart else "composed")


def _shape(text: str | None, metadata: dict[str, Any], pair: "DataPair | None") -> tuple[int, ...]:
    """(C, H, W) of the images: as given, or else as the checkpoint or the data tell.

    Raises:
        typer.BadParameter: nothing tells, or the text is not of the form C,H,W.
    """
    if text is not None:
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*){2}", text):
            raise typer.BadParameter(f"expected C,H,W, such as 3,32,32; got {text!r}.", param_hint="--input-shape")
        return tuple(map(int, text.split(",")))
    if "architecture" in metadata:
        return tuple(metadata["architecture"]["shape"])
    if pair is not None:
        return tuple(pair.train.shape)
    raise typer.BadParameter(
        "expected the shape of the model's images, which the model does not tell; got none. Pass --input-shape C,H,W, such as 3,32,32, or --data.",
        param_hint="--input-shape",
    )


def _clip(network: "nn.Module", control: "Clip", shape: tuple[int, ...], k: int, pair: "DataPair | None", device: str) -> Clipped:
    import torch

    from ..spectral.clip import clip_model
    from ..spectral.spectrum import spectrum as run

    start, images = time.perf_counter(), None
    if pair is not None:  # every n-th image: in some data sets classes come one after another
        images = pair.train.fetch(torch.arange(0, len(pair.train), -(-len(pair.train) // N_STATISTICS)))
    model = clip_model(
        network, control.max_norm, input_shape=shape, batchnorm=control.batchnorm, tolerance=control.tolerance, images=images
    )
    seconds = round(time.perf_counter() - start, 3)
    found = run(model, shape, k, composed=control.batchnorm == "composed")
    reached = {(layer.name, layer.input_shape) for layer in control.layers(model, shape)}
    kept = [
        name for name, norm in found.norms.items() if norm > control.limit and (_module(name, found), found.shapes[name]) not in reached
    ]
    accuracy = None
    if pair is not None:
        groups = {"train": pair.train, "test": pair.test}
        accuracy = {"before": accuracies(network, groups, device), "after": accuracies(model, groups, device)}
    return Clipped(model, control, found, kept, accuracy, seconds)


def _module(name: str, found: "Spectrum") -> str:
    """The name of a layer without the size that the second of two calls is named with."""
    from ..report.spectrum_section import dimensions

    return name.removesuffix(f" at {dimensions(found.shapes[name])}")


def _save(
    clipped: Clipped, output: Path, metadata: dict[str, Any], build: str | None, shape: tuple[int, ...], network: "nn.Module"
) -> None:
    """Everything that the checkpoint said of itself, but for what clipping changed, and how it was clipped."""
    from ..models import Architecture, model_hash, save_model
    from ..provenance import provenance

    told = metadata.get("architecture")
    kept = {name: value for name, value in metadata.items() if name not in ("architecture", "model_hash")}
    clip = _settings(clipped.control) | {"input_shape": list(shape), "original": model_hash(network), "provenance": provenance()}
    made = {"clipped": [*metadata.get("clipped", []), clip | ({"accuracy": clipped.accuracy["after"]} if clipped.accuracy else {})]}
    own = {"build": build} if build is not None and told is None else {}
    save_model(clipped.model, output, metadata=kept | own | made, architecture=told and Architecture.from_json(told))


def _settings(control: "Clip") -> dict[str, Any]:
    return {"max_norm": control.max_norm, "tolerance": control.tolerance, "batchnorm": control.batchnorm}


def _plain(
    model: str, shape: tuple[int, ...], apart: bool, found: "Spectrum", clipped: Clipped | None, output: Path | None
) -> dict[str, Any]:
    clip = clipped and _settings(clipped.control) | {
        "spectrum": clipped.spectrum.to_dict(), "not_clipped": clipped.kept, "accuracy": clipped.accuracy, "seconds": clipped.seconds, "output": str(output),
    }  # fmt: skip
    batchnorm = "apart" if apart else "composed"
    return {"model": model, "input_shape": list(shape), "batchnorm": batchnorm, "spectrum": found.to_dict(), "clip": clip}


def _write_page(path: Path, model: str, shape: tuple[int, ...], found: "Spectrum", clipped: Clipped | None) -> None:
    from ..provenance import provenance
    from ..report.spectrum_page import render_spectra
    from ..report.spectrum_section import dimensions

    facts = {"input": dimensions(shape)}
    if clipped:
        facts |= {"clipped at": f"{clipped.control.max_norm:g}", "tolerance": f"{100 * clipped.control.tolerance:g} %"}
    render_spectra(
        {
            "title": f"Spectrum of {Path(model).name}", "facts": facts, "provenance": provenance(),
            "spectra": {"before": found.to_dict(), "after": clipped.spectrum.to_dict()} if clipped else {"model": found.to_dict()},
            "max_norm": clipped and clipped.control.max_norm, "accuracy": clipped and clipped.accuracy,
        },
        path,
    )  # fmt: skip


def _print(found: "Spectrum", clipped: Clipped | None) -> None:
    from ..report.spectrum_section import dimensions, values_with_errors

    spectra = {"before": found, "after": clipped.spectrum} if clipped else {"": found}
    n = max((len(layer.values) for layer in found.values()), default=0)
    header = ["layer", "input", *(f"σ{i} {when}".strip() for when in spectra for i in range(1, n + 1))]
    layers = {when: {layer["name"]: layer for layer in each.to_dict()["layers"]} for when, each in spectra.items()}
    rows = [
        [name, dimensions(found.shapes[name]), *(text for each in layers.values() for text in _padded(values_with_errors(each[name]), n))]
        for name in found
    ]
    print_table(header, rows)
    bounds = [f"{_bound(each)} {when}".strip() for when, each in spectra.items()]
    print(f"\nLipschitz constant of the network: {', '.join(bounds if found.bound.value is not None else bounds[:1])}")
    if found.unseen:
        print(f"not seen, for no layer above holds them: {', '.join(found.unseen)}")
    if not clipped:
        return
    if clipped.kept:
        print(f"not clipped, for they have no weights that could be: {', '.join(clipped.kept)}")
    if clipped.accuracy:
        print()
        print_table(["accuracy on", *clipped.accuracy], [
            [group, *(percent(shares[group]) for shares in clipped.accuracy.values())] for group in clipped.accuracy["before"]
        ])  # fmt: skip
    print(f"\nclipped in {clipped.seconds:.1f} s")


def _padded(texts: list[str], n: int) -> list[str]:
    return texts + [""] * (n - len(texts))


def _bound(found: "Spectrum") -> str:
    return f"unknown, for {found.bound.reason}" if found.bound.value is None else f"at most {found.bound.value:.3g}"
