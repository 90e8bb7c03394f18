"""A page about the spectra of one model, or of several: what `expunge spectrum --html` writes."""

import os
from collections.abc import Mapping
from typing import Any

from ..errors import DataError
from .cells import hundredfold, points
from .figures import looks
from .page import safe_json, template, write_text
from .spectrum_section import section

OPTIONAL: dict[str, Any] = dict.fromkeys(("facts", "accuracy", "max_norm", "reference", "provenance"))


def render_spectra(result: Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> str:
    """The spectra as one self-contained HTML page, as `render` makes one of an audit.

    Args:
        result: plain JSON values: "title"; "spectra", `Spectrum.to_dict()` of each model by name. May be missing: "facts" {name: text} for the head of the page;
            "accuracy" {model: {group: fraction}}, from the first model to the last; "max_norm", the bound c; "reference"; "provenance".
        path: where to write the page as well; None = nowhere. Its folder must exist.

    Raises:
        DataError: a part is missing, or a value is not plain JSON.
        StoreError: the file cannot be written.

    Example:
        >>> layer = {"name": "<b>", "input_shape": [4], "values": [2.0], "error_estimate": [0.0], "iterations": 12, "converged": True}
        >>> page = render_spectra({"title": "Spectrum", "spectra": {"original": {"layers": [layer], "bound": 2.0, "reason": "", "unseen": []}}})
        >>> "&lt;b&gt;" in page, "<b>original</b> stretches a difference between two images at most 2 times" in page
        (True, True)
    """
    if not result.get("spectra"):
        raise DataError("a page of spectra needs at least one; got none. Pass spectrum(model, input_shape).to_dict() by the model's name.")
    numbers, result = safe_json(result), OPTIONAL | dict(result)
    try:
        found = section(result["spectra"], looks(list(result["spectra"]), result["reference"]), result["max_norm"])
        view = {"result": result, "spectra": found, "accuracy": _accuracy(result["accuracy"] or {}), "numbers": numbers}
        text = template().environment.get_template("spectrum_page.html").render(view)
    except KeyError as error:
        raise DataError(f"every spectrum must be complete; got one without {error}. Pass Spectrum.to_dict().") from error
    if path is not None:
        write_text(text, path)
    return text


def _accuracy(accuracy: Mapping[str, Mapping[str, float]]) -> list[tuple[str, list[str], str]]:
    """Each group with every model's accuracy, and the change from the first to the last."""
    models = list(accuracy.values())
    return [
        (group, [hundredfold(model[group]) for model in models], points({"value": models[-1][group] - models[0][group]}).value)
        for group in (models[0] if models else ())
    ]
