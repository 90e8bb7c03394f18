"""The commands that make a model and its audit again, put together from what the checkpoint and the audit tell. Every word is quoted: a shell runs nothing but `expunge`."""

import shlex
from collections.abc import Sequence

from ..models.lineage import CLIPPED, TRAINED, Change
from .evidence import Evidence
from .markdown import visible

OF_DATA = ("--data", "--size", "--build", "--forget-indices", "--forget-classes", "--forget-random", "--no-retain")


def commands(history: Sequence[Change], name: str, audits: Sequence[Evidence]) -> list[str]:
    """Lines of a shell: one command for each change that the command line did, and for each audit; a comment where something else made the model.

    Args:
        history: the changes that made the model. name: of its file. audits: of the model.

    Example:
        >>> commands([Change("unlearned", arguments=("amun", "--data=my data"))], "u.safetensors", [])
        ["expunge unlearn amun '--data=my data' --model original.safetensors -o u.safetensors"]
    """
    lines, model, requests = [], "original.safetensors", []
    for k, change in enumerate(history, start=1):
        last, began = k == len(history), model
        model = name if last else model if change.kind == TRAINED else f"step-{k}.safetensors"
        if change.forgotten:
            requests.append((change, began))
        verb = "train" if change.kind == TRAINED else "unlearn"
        source = [] if change.kind == TRAINED else ["--model", began]
        if change.kind == CLIPPED or not change.arguments:
            made = f"`expunge spectrum --clip`, {change.settings}" if change.kind == CLIPPED else "other means than the command line"
            lines.append(f"# change {k} ({change.kind}) was made by {made}: {began if source else 'nothing'} -> {model}")
        else:
            lines.append(_line(verb, *change.arguments, *source, "-o", model))
    return [visible(line, 4000) for line in [*lines, *(line for found in audits for line in _audit(found, requests, model))]]


def _audit(found: Evidence, requests: Sequence[tuple[Change, str]], model: str) -> list[str]:
    """An audit's command, with a comment on the models that it needs."""
    change, original = requests[found.requests[-1]]
    about = _options(change.arguments)
    if len(found.requests) > 1:
        about = [word for word in about if not word.startswith("--forget")] + ["--forget-indices=ids-of-all-requests.csv"]
        original = requests[0][1]
    protocol, shadows = found.result["protocol"], found.result["sizes"].get("shadow_models", 0)
    retrained = [f"retrained-{k}.safetensors" for k in range(1, found.n_retrained + 1)]
    needs = [] if protocol or not retrained else [f"# {', '.join(retrained)}: the same data without the forgotten images, other seeds (`expunge train --without`)"]  # fmt: skip
    how = ["--protocol", protocol] if protocol else [word for path in retrained for word in ("--retrained", path)] + (["--shadows", str(shadows)] if shadows else [])  # fmt: skip
    return [*needs, _line("audit", *how, "--original", original, "--unlearned", model, *about, "--html", "audit.html")]


def _options(arguments: Sequence[str]) -> list[str]:
    """Those of a request's arguments that say which data and samples it was about, each as one word with its value."""
    return [word for word in arguments if word.partition("=")[0] in OF_DATA]


def _line(*words: str) -> str:
    if any(visible(word) != word for word in words):
        return f"# `expunge {words[0]}`, with words that are too long or hold what is not seen: left out"
    return shlex.join(["expunge", *words])
