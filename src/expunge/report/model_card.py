"""The section of a model card about unlearning: what was forgotten, how, what an audit found, what this is not, and the commands that repeat it.

It is Markdown between two markers, so that it can be replaced inside a card whose other parts are somebody's own. The same checkpoint and audits give the same bytes.
Everything that comes from files is shown as text (see `markdown`).
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DataError
from ..models.checkpoint import read_metadata, stored_hash
from ..models.lineage import (
    TRAINED,
    UNLEARNED,
    Change,
    Forgotten,
    breaks,
    changes,
    count_or_none,
    describe_ids,
    forgotten,
    forgotten_or_none,
    which,
)
from .audit_section import audit_section
from .card_commands import commands
from .cells import duration
from .evidence import evidence, read_audit
from .markdown import block, code, prose
from .page import write_text

BEGIN, END = "<!-- expunge card -->", "<!-- end of expunge card -->"
MARKER = re.compile(rf"^({re.escape(BEGIN)}|{re.escape(END)})[ \t]*\r?$", re.MULTILINE)
T = TypeVar("T")
MOST_STEPS = 200  # that are told one by one
MOST_CLASSES = 30  # that are named
REPEAT = (
    "File names stand for yours. With the same data, versions and kind of CPU, these commands make the same weights and the same numbers."
)
UNMEASURED = """\
**Nobody measured.** No audit of this model was given, so nothing here says how much of the forgotten images it still knows: a method's name and settings are no evidence
that it worked. `expunge audit` measures it."""
NOT = """\
- Not a legal or cryptographic guarantee, and no proof that a law or a request is satisfied.
- Only retraining without the data forgets exactly. Everything else is approximate, and is measured, not proven: an audit says what its attacks found on these samples at this
  precision, and a stronger attack may find more.
- About this file alone. Copies, older checkpoints, backups, fine-tuned or distilled descendants, and the data themselves are other matters.
- Facts about training and unlearning are what the checkpoint says of itself. The hashes tie it to its audit; they do not show who wrote either."""


def model_card(checkpoint: str | Path, audits: Any = (), *, path: str | Path | None = None, ids: Iterable[Sequence[int]] = ()) -> str:
    """The model card section of a checkpoint, as Markdown that fits under a card of Hugging Face; also written into the card at `path`.

    Args:
        checkpoint: a file of `save_model` or `expunge unlearn` that says what was forgotten (`unlearning_record` makes that).
        audits: results of `expunge.audit`, or files of `expunge audit --json` or `--html`; one, several, or none.
        path: the card: a new file; or one that has the section, which is replaced; or another, at whose end it is put. The rest of it stays as it is.
        ids: lists of forgotten ids to be printed, each that of one request or of all together; without them only their number and hash are.

    Raises:
        MissingError, StoreError: a file that is not there, is damaged, or cannot be written; an old card is untouched then.
        DataError: the checkpoint says of nothing forgotten, an audit is of another model or of other samples, ids are others, or the card's markers are not a pair.

    Cost: reads the checkpoint once.

    Example:
        >>> import tempfile, torch
        >>> from expunge import FineTune, forget_samples, load_data, save_model
        >>> from expunge.models.lineage import unlearning_record
        >>> split, model = forget_samples(load_data("digits").train, [3, 14]), torch.nn.Linear(2, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(model, f"{folder}/unlearned.safetensors", metadata=unlearning_record(FineTune(), split, model))
        ...     card = model_card(f"{folder}/unlearned.safetensors")
        >>> "2 of 1,000 training images" in card, "Nobody measured" in card
        (True, True)
    """
    metadata, own_hash = read_metadata(checkpoint), stored_hash(checkpoint)
    history, sets = changes(metadata), forgotten(metadata)
    requests = [change for change in history if change.forgotten]
    if not sets:
        raise DataError(
            f"a card needs a checkpoint that says what was forgotten; got {Path(checkpoint).name}, which does not. Make it with `expunge unlearn`, or save it with "
            "save_model(model, path, metadata=unlearning_record(method, split, original))."
        )
    found = [evidence(read_audit(source), own_hash, sets) for source in _several(audits)]
    name = Path(checkpoint).name
    parts = [
        BEGIN,
        "## Unlearning",
        _summary(requests, name, own_hash),
        "### What was forgotten",
        _forgotten(sets, metadata.get("data"), _checked_ids(ids, sets)),
        "### How",
        _how(history, metadata, own_hash),
        "### What the audit found",
        "\n\n".join(audit_section(each, requests, several=len(requests) > 1) for each in found) or UNMEASURED,
        "### What this is not",
        NOT,
        "### How to repeat it",
        REPEAT,
        block(commands(history, name, found), "bash"),
        END,
    ]
    section = "\n\n".join(parts)
    if path is not None:
        write_card(section, path)
    return section


def write_card(section: str, path: str | Path) -> None:
    """Puts a section of `model_card` into a card: a new file, in place of the section that is there, or at the end. Every other byte stays, and a crash leaves the old card.

    Raises:
        DataError: the card is not UTF-8, or its markers are not one pair. StoreError: the file cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link to a card stays one
    try:
        old = path.read_bytes().decode()
    except FileNotFoundError:
        old = ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"a card must be a text file in UTF-8; got {path.name} ({error}). Name another file.") from None
    write_text(with_section(old, section), path)


def with_section(card: str, section: str) -> str:
    """The card with the section between its markers, or at its end where there are none; lines end as they do in the card.

    Example:
        >>> old = f"# Mine\\n\\n{BEGIN}\\nold\\n{END}\\n\\nMore.\\n"
        >>> with_section(old, f"{BEGIN}\\nnew\\n{END}") == old.replace("old\\n<", "new\\n<")
        True
    """
    ends = "\r\n" if "\r\n" in card else "\n"
    section = section.replace("\n", ends)
    markers = list(MARKER.finditer(card))
    if not markers:
        gap = "" if not card else ends * 2 if not card.endswith("\n") else ends
        return f"{card}{gap}{section}{ends}"
    if [marker[1] for marker in markers] != [BEGIN, END]:
        raise DataError(
            f"a card must have one line {BEGIN} and below it one line {END}, or none of both; got {len(markers)} such lines in another order. Mend or remove them."
        )
    return card[: markers[0].start()] + section + card[markers[1].end(1) :]


def _several(audits: Any) -> list[Any]:
    return list(audits) if isinstance(audits, list | tuple) else [audits]


def _summary(requests: Sequence[Change], name: str, own_hash: str) -> str:
    last, exact = requests[-1], all(change.kind == TRAINED or change.method == "retrain" for change in requests)
    if len(requests) == 1 and last.forgotten:
        said = f"This model was made to forget {_images(last.forgotten)} by {code(last.method) if last.kind == UNLEARNED else 'training without them'}."
    else:
        n = sum(change.forgotten.n for change in requests if change.forgotten)
        said = f"This model was made to forget {n:,} training images by {len(requests)} requests, one after another."
    kind = (
        "It is said to have been trained from scratch without them."
        if exact
        else "That is approximate: a trained model was changed, not trained anew."
    )
    unchanged = " **No weight changed: this is the model that unlearning began with.**" if last.original == own_hash else ""
    return f"{said} {kind}{unchanged} The file {code(name)} holds weights with the hash (SHA-256) `{own_hash}`."


def _images(what: Forgotten) -> str:
    return f"{what.n:,}{'' if what.of is None else f' of {what.of:,}'} training images{_of_classes(what.classes)}"


def _of_classes(classes: Sequence[str]) -> str:
    if not classes:
        return ""
    named = ", ".join(code(c, 80) for c in classes[:MOST_CLASSES]) + (
        f" and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
    )
    return f" (all of the class{'es' * (len(classes) > 1)} {named})"


def _checked_ids(lists: Iterable[Sequence[int]], sets: Sequence[Forgotten]) -> list[str]:
    """Each list of ids with whose they are; refused where they are nobody's."""
    lines = []
    for ids in lists:
        found = forgotten_or_none(describe_ids(ids))
        about = found and which(found, sets)
        if about is None:
            raise DataError(
                f"the ids to be listed must be those that were forgotten; got {len(ids):,} others: their hash is not in the checkpoint. Pass the positions that a request named."
            )
        whose = "" if len(sets) == 1 else f" of request {about[0] + 1}" if len(about) == 1 else " of all requests"
        lines.append(f"- Ids{whose}: {', '.join(map(str, sorted(ids)))}.")
    return lines


def _forgotten(sets: Sequence[Forgotten], data: Any, listed: Sequence[str]) -> str:
    lines = [f"- {_data(data)}"]
    for k, what in _last(sets):
        request = f"Request {k}: " if len(sets) > 1 else ""
        kind = "" if what.classes else ", single ones rather than whole classes"
        digits = "" if len(what.digest) == 64 else " (its first digits)"
        lines.append(f"- {request}{_images(what)}{kind}. Hash of their ids{digits}: `{what.digest}`.")
    note = (
        "Ids are positions in the training set, counted from 0. Their hash is the SHA-256 of the ascending list as JSON, such as `[3, 14]`: whoever has the ids can check it, "
        "and whoever can guess a few ids can find them."
    )
    return "\n".join([*_omitted(sets), *lines, *listed, "", note])


def _data(data: Any) -> str:
    if not isinstance(data, Mapping):
        return "The checkpoint does not name its training data."
    name = data.get("name")
    called = f" {code(name.replace(chr(92), '/').rsplit('/', 1)[-1], 80)}" if isinstance(name, str) else ""
    counts, classes = {"training": count_or_none(data.get("n")), "test": count_or_none(data.get("n_test"))}, data.get("classes")
    sizes = [f"{n:,} {group} images" for group, n in counts.items() if n is not None]
    known = [c for c in classes if isinstance(c, str)] if isinstance(classes, list) else []
    if known:
        more = f" and {len(known) - MOST_CLASSES} more" if len(known) > MOST_CLASSES else ""
        sizes.append(f"{len(known):,} classes ({', '.join(code(c, 80) for c in known[:MOST_CLASSES])}{more})")
    printed = f", fingerprint (SHA-256) {code(data['fingerprint'], 64)}" if isinstance(data.get("fingerprint"), str) else ""
    return f"Data:{called}{': ' + ', '.join(sizes) if sizes else ''}{printed}."


def _how(history: Sequence[Change], metadata: Mapping[str, Any], own_hash: str) -> str:
    lines, broken = _omitted(history), breaks(history)
    several = sum(change.forgotten is not None for change in history) > 1
    for k, change in _last(history):
        number = sum(before.forgotten is not None for before in history[:k])
        title = f"Request {number}: {change.kind}" if change.forgotten and several else change.kind.capitalize()
        lines.append(f"- **{title}**" + (f" by {code(change.method)}" if change.method else ""))
        lines += [f"  - {fact}" for fact in _facts(change, metadata)]
        if k - 1 in broken:
            lines.append(
                "  - **The chain is broken here**: by the hashes, this change did not begin with the model that the change before it made."
            )
    if history[-1].result not in (None, own_hash):
        lines.append("- **The last change made another model than this file holds**, by the hashes.")
    return "\n".join(lines)


def _facts(change: Change, metadata: Mapping[str, Any]) -> list[str]:
    made = dict(change.made_with)
    facts = [f"from the model `{change.original}`"] if change.original else []
    facts += [f"to the model `{change.result}`"] if change.result else []
    facts += [f"settings: {code(change.settings, 1500)}"] if change.settings else []
    facts += [f"paper: {prose(change.paper)}"] if change.paper else []
    if change.kind == TRAINED:
        facts += [
            f"{name}: {code(_one_line(metadata[name]), 1500)}"
            for name in ("architecture", "recipe")
            if isinstance(metadata.get(name), dict)
        ]
    seconds, passes = change.seconds, change.passes
    took = [duration(seconds)] * (seconds is not None) + [f"{passes or 0:.3g} passes over the training set"] * (passes is not None)
    facts += [f"seed {change.seed}"] if change.seed is not None else []
    facts += [f"cost: {', '.join(took)}"] if took else []
    if change.accuracy:
        shares = ", ".join(f"{prose(group, 40)} {100 * share:.1f} %" for group, share in change.accuracy[:8])
        facts.append(f"right answers when it was made (not an audit): {shares}")
    versions = ", ".join(f"{key} {prose(made[key], 80)}" for key in ("expunge", "torch", "hardware") if key in made)
    facts += [f"with {versions}"] if versions else []
    return [*facts, f"date: {prose(made['date'], 40)}"] if "date" in made else facts


def _one_line(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False, sort_keys=True)


def _last(items: Sequence[T]) -> list[tuple[int, T]]:
    return list(enumerate(items, start=1))[-MOST_STEPS:]


def _omitted(items: Sequence[Any]) -> list[str]:
    return [f"- {len(items) - MOST_STEPS} earlier ones are in the checkpoint, and not listed here."] if len(items) > MOST_STEPS else []
