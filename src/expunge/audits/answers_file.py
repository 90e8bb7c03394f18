"""Files of answers: what models said about the samples of an audit, for models that one cannot run.

An .npz file has one row for each sample:

    labels            (N,)    integers
    groups            (N,)    "forget", "retain", "test": what the sample was to the original model
    logits:NAME       (N, K)  of each model: original, unlearned, retrained, "retrained 2", …; or
    probabilities:NAME, (N, K), or predictions:NAME, (N,) integers, where that is all one gets
    classes (K,) names, forget_classes (F,) numbers, ids (N,), shadow_logits (M, N, K) and included (M, N): optional

A .csv file has a line for each sample and model, with the columns id, group, label, model, and prediction or logit_0 … logit_(K − 1). Nothing from a file is executed.
"""

import csv
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import choose
from ..errors import DataError, LabelsOnly, ProbabilitiesNotLogits
from ..store.files import check_file, write_file
from .audited import Audited, unseen_groups
from .result import Flag

READ_GROUPS = ("forget", "retain", "test")
KINDS = ("logits", "probabilities", "predictions")
CERTAIN = 30.0  # the logit of a class that is all we know of an answer: as a probability, 1 to within 1e-12
TINY = 1e-12  # the smallest probability that is believed


class Answers(NamedTuple):
    """What a file holds: the samples, the logits of each model by group, and flags."""

    audited: Audited
    logits: dict[str, dict[str, Tensor]]
    flags: list[Flag]


def read_answers(path: str | Path, forget_classes: Sequence[int | str] = ()) -> Answers:
    """Reads a file of answers (.npz or .csv) for `audit_answers`; see the module for its format.

    Args:
        forget_classes: names or numbers of classes that are forgotten as a whole, where the file does not say.

    Where models gave only predictions, these stand for certain answers: accuracies and attacks on labels are right, everything about confidence is not there.

    Raises:
        MissingError: no such file.
        DataError: the file cannot be read, or a part is missing or does not fit the others.

    Example:
        >>> import tempfile
        >>> labels = np.arange(8) % 2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "answers.npz")
        ...     np.savez(file, labels=labels, groups=["forget", "test"] * 4, **{"predictions:unlearned": labels})
        ...     found = read_answers(file)
        >>> found.audited.sizes, found.audited.labels_only
        ({'forget': 4, 'test': 4, 'shadow_models': 0}, True)
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"answers must be in a file that ends in .npz or .csv; got {path.name}. `expunge audit --help` says what is in it.")
    check_file(path, "file of answers", "Write it with save_answers, or as `expunge audit --help` says.")
    try:
        columns = readers[path.suffix.lower()](path)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, csv.Error) as error:
        raise DataError(f"answers must be readable from {path}; got: {error}. Write it with numpy.savez, or as CSV text.") from error
    if forget_classes:
        columns = columns | {"forget_classes": np.array([_number(k, columns) for k in forget_classes])}
    return _answers(columns, str(path))


def _number(name: int | str, columns: Mapping[str, np.ndarray]) -> int:
    """Of a class, by its name or number."""
    names = list(map(str, columns.get("classes", ())))
    if isinstance(name, int) or (name not in names and name.isdecimal()):
        return int(name)
    return names.index(choose("class", name, names, "Name classes by number, or add `classes` to the file."))


def save_answers(path: str | Path, audited: Audited, logits: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes what models answer as an .npz file that `read_answers` reads, so that somebody else can audit without models or images.

    Where models gave only predictions, predictions are written: a file never says more than was known.

    Args:
        path: the file; it is replaced as a whole or not at all.
        logits: of each model by group, as `read_answers` gives them.

    Raises:
        StoreError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile, torch, expunge
        >>> from expunge.audits import Audited
        >>> labels = torch.tensor([0, 1, 0])
        >>> audited = Audited(labels={"forget": labels, "test": labels}, classes=("cat", "dog"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "answers.npz")
        ...     expunge.save_answers(file, audited, {"unlearned": {"forget": torch.eye(2)[labels], "test": torch.eye(2)[labels]}})
        ...     list(expunge.read_answers(file).logits)
        ['unlearned']
    """
    groups = list(audited.labels)
    columns: dict[str, Any] = {
        "labels": torch.cat([audited.labels[g] for g in groups]).numpy(),
        "groups": np.array(["test" if g == "forget_test" else g for g in groups for _ in range(len(audited.labels[g]))]),
        "classes": np.array(audited.classes),
        "forget_classes": np.array(audited.forget_classes, dtype=np.int64),
        "ids": torch.cat([audited.ids if g == "forget" else torch.full_like(audited.labels[g], -1) for g in groups]).numpy(),
    }
    for name, found in logits.items():
        answers = torch.cat([found[g] for g in groups])
        columns |= {f"predictions:{name}": answers.argmax(1).numpy()} if audited.labels_only else {f"logits:{name}": answers.numpy()}
    if audited.shadow_logits is not None and audited.included is not None:
        scored = np.concatenate([np.full(len(audited.labels[g]), g in ("forget", audited.nonmembers)) for g in groups])
        columns |= {"shadow_logits": audited.shadow_logits.numpy(), "included": audited.included.numpy(), "scored": scored}
    content = io.BytesIO()
    np.savez_compressed(content, **columns)
    write_file(Path(path), content.getvalue())


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        names = reader.fieldnames or []
        missing = [name for name in ("id", "group", "label", "model") if name not in names]
        if missing:
            raise ValueError(f"no column {' or '.join(missing)} among {', '.join(names)}")
        lines = list(reader)
    scores = [f"logit_{k}" for k in range(sum(name.startswith("logit_") for name in names))]
    if set(scores) - set(names):
        raise ValueError(f"columns of logits must be {', '.join(scores)}; got {', '.join(n for n in names if n.startswith('logit_'))}")
    if not scores and "prediction" not in names:
        raise ValueError("neither a column prediction nor columns logit_0, logit_1, …")
    samples: dict[str, tuple[str, int]] = {}
    models: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=2):
        if None in line or None in line.values():
            raise ValueError(f"line {number} has not {len(names)} cells")
        sample = line["group"], int(line["label"])
        if samples.setdefault(line["id"], sample) != sample:
            raise ValueError(f"sample {line['id']} has two groups or labels, {samples[line['id']]} and {sample}")
        answers = models.setdefault(line["model"], {})
        if line["id"] in answers:
            raise ValueError(f"two answers of {line['model']} on sample {line['id']}")
        answers[line["id"]] = [float(line[name]) for name in scores] if scores else int(line["prediction"])
    for model, answers in models.items():
        if len(answers) < len(samples):
            raise ValueError(f"{model} answered {len(answers)} of {len(samples)} samples")
    columns = {
        "ids": _ids(list(samples)),
        "groups": np.array([g for g, _ in samples.values()]),
        "labels": np.array([y for _, y in samples.values()]),
    }
    kind = "logits" if scores else "predictions"
    return columns | {f"{kind}:{model}": np.array([answers[i] for i in samples]) for model, answers in models.items()}


def _ids(names: list[str]) -> np.ndarray:
    """The samples' own numbers, or where they have other names, the order in which they came."""
    return np.array([int(name) for name in names] if all(name.isdecimal() for name in names) else range(len(names)))


def _answers(columns: Mapping[str, np.ndarray], source: str) -> Answers:
    keys = [key for key in columns if key.split(":", 1)[0] in KINDS and key.split(":", 1)[1:] not in ([], [""])]
    models = {key.split(":", 1)[1]: key for key in keys}
    kinds = {key.split(":", 1)[0] for key in keys}
    if len(models) < len(keys) or ("predictions" in kinds and (len(kinds) > 1 or "shadow_logits" in columns)):
        raise DataError(
            f"models must be told apart by their names, and answer with labels alone (predictions:NAME) or all with confidence; got {', '.join(keys)}"
            f"{' and shadow_logits' * ('shadow_logits' in columns)} in {source}. Reduce all of them to predictions, or leave those out."
        )
    missing = [name for name in ("labels", "groups") if name not in columns] + ([] if models else ["logits:NAME"])
    if missing:
        raise DataError(
            f"answers need {', '.join(missing)}; got only {', '.join(columns) or 'nothing'} in {source}. `expunge audit --help` says what is in a file."
        )
    labels, groups = columns["labels"], columns["groups"].astype(str)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0 or groups.shape != labels.shape or labels.min() < 0:
        raise DataError(
            f"labels must be whole numbers from 0 on, and groups a text for each; got {labels.dtype} {labels.shape} and {groups.shape} in {source}. "
            "Write both in the order of the samples."
        )
    unknown = sorted(set(groups) - set(READ_GROUPS))
    if unknown:
        raise DataError(
            f"groups must be {', '.join(READ_GROUPS)}; got {', '.join(unknown[:3])} in {source}. Name what each sample was to the original model."
        )
    for key in models.values():
        if len(columns[key]) != len(labels) or columns[key].ndim != (1 if key.startswith("predictions:") else 2):
            raise DataError(
                f"{key} must have a row for each of {len(labels)} samples; got shape {columns[key].shape} in {source}. Score every model on all of them."
            )
    n_classes = max([int(labels.max()) + 1, *(_n_classes(columns[key], key) for key in models.values())])
    flags: list[Flag] = []
    logits = {name: _as_logits(columns[key], key, n_classes, flags) for name, key in models.items()}
    audited, where = _audited(columns, torch.from_numpy(labels.astype(np.int64)), groups, n_classes, kinds == {"predictions"}, source)
    if audited.labels_only:
        flags.append(
            Flag(LabelsOnly.__name__, "models gave predicted labels alone: what they know of samples that they answer alike stays unseen.")
        )
    return Answers(audited, {name: {group: z[positions] for group, positions in where.items()} for name, z in logits.items()}, flags)


def _audited(
    columns: Mapping[str, np.ndarray], labels: Tensor, groups: np.ndarray, n_classes: int, labels_only: bool, source: str
) -> tuple[Audited, dict[str, Tensor]]:
    """What the file says about the samples, and where those of each group are."""
    classes = tuple(map(str, columns.get("classes", range(n_classes))))
    if len(classes) < n_classes:
        raise DataError(
            f"classes must name all {n_classes} classes that models or labels know; got {len(classes)} in {source}. Name the others, or leave classes out."
        )
    forgotten = tuple(int(k) for k in columns.get("forget_classes", ()))
    if any(not 0 <= k < len(classes) for k in forgotten):
        raise DataError(f"forget_classes must lie in [0, {len(classes)}); got {forgotten} in {source}. Count classes from 0.")
    where = {group: torch.from_numpy(np.flatnonzero(groups == group)) for group in READ_GROUPS if (groups == group).any()}
    if "test" in where:
        unseen = where.pop("test")
        where |= {name: unseen[positions] for name, positions in unseen_groups(labels[unseen], forgotten, classes).items()}
    extras = _shadows(columns, where, source) if "forget" in where and "test" in where else {}
    audited = Audited(
        labels={group: labels[positions] for group, positions in where.items()}, classes=classes, forget_classes=forgotten,
        forget_ids=_forget_ids(columns, where, source), labels_only=labels_only, identity={"answers": Path(source).name}, **extras,
    )  # fmt: skip
    return audited, where


def _forget_ids(columns: Mapping[str, np.ndarray], where: Mapping[str, Tensor], source: str) -> Tensor | None:
    ids = columns.get("ids")
    if ids is None or "forget" not in where:
        return None
    if ids.shape != columns["labels"].shape or ids.dtype.kind not in "iu" or len(np.unique(ids[where["forget"]])) < len(where["forget"]):
        raise DataError(
            f"ids must be one integer for each sample, and differ on the forget set; got {ids.dtype} of shape {ids.shape} in {source}. Correct or leave them out."
        )
    return torch.from_numpy(ids.astype(np.int64))[where["forget"]]


def _shadows(columns: Mapping[str, np.ndarray], where: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Shadow logits and membership on forget samples and non-members; the file has them on all samples, or on those that `scored` says."""
    if "shadow_logits" not in columns or "included" not in columns:
        return {}
    shadow, included = torch.from_numpy(columns["shadow_logits"]).float(), torch.from_numpy(columns["included"]).bool()
    scored = columns.get("scored")
    n = len(columns["labels"])
    rows = torch.arange(n) if scored is None else torch.from_numpy(np.flatnonzero(scored))
    if shadow.ndim != 3 or included.shape != shadow.shape[:2] or shadow.shape[1] != len(rows):
        raise DataError(
            f"shadow_logits must be (M, {len(rows)}, K) and included (M, {len(rows)}); got {tuple(shadow.shape)} and {tuple(included.shape)} in {source}. "
            "Where they are of some samples only, say which in `scored`, a bool for each sample."
        )
    place = torch.full((n,), -1)
    place[rows] = torch.arange(len(rows))
    chosen = place[torch.cat([where["forget"], where["forget_test" if "forget_test" in where else "test"]])]
    if (chosen < 0).any():
        raise DataError(
            f"shadow models must be scored on all forget and test samples; got {int((chosen < 0).sum())} without in {source}. "
            "Score them there too, or leave shadow_logits out."
        )
    right = shadow.argmax(2) == torch.from_numpy(columns["labels"].astype(np.int64))[rows]
    accuracy = None if "forget_test" in where else float(right[~included].double().mean())
    return {"shadow_logits": shadow[:, chosen], "included": included[:, chosen], "shadow_accuracy": accuracy}


def _n_classes(column: np.ndarray, key: str) -> int:
    if key.startswith("predictions:"):
        if column.dtype.kind not in "iu" or column.min() < 0:
            raise DataError(f"{key} must be whole numbers from 0 on; got {column.dtype}. Write the number of the predicted class.")
        return int(column.max()) + 1
    if column.dtype.kind != "f":
        raise DataError(f"{key} must be floating point; got {column.dtype}. Class numbers belong into predictions:NAME.")
    return column.shape[1]


def _as_logits(column: np.ndarray, key: str, n_classes: int, flags: list[Flag]) -> Tensor:
    kind, name = key.split(":", 1)
    if kind == "predictions":
        return CERTAIN * torch.nn.functional.one_hot(torch.from_numpy(column.astype(np.int64)), n_classes).float()
    values = torch.from_numpy(np.ascontiguousarray(column)).double()
    if values.shape[1] != n_classes:
        raise DataError(
            f"all models must answer with the same {n_classes} classes; got {values.shape[1]} from {name}. Leave it out, or add the missing columns."
        )
    if kind == "probabilities":
        if _broken_probabilities(values):
            raise DataError(f"{key} must be non-negative and sum to 1 in each row; got others. Logits belong into logits:{name}.")
        flags.append(Flag(ProbabilitiesNotLogits.__name__, f"{name}: probabilities, rounded as they are; logits would show more."))
        return values.clamp_min(TINY).log().float()
    if not _broken_probabilities(values):
        flags.append(Flag(ProbabilitiesNotLogits.__name__, f"{name}: its logits look like probabilities. Name them probabilities:{name}."))
    return values.float()


def _broken_probabilities(values: Tensor) -> bool:
    return not (bool((values >= 0).all()) and torch.allclose(values.sum(1), torch.ones(1, dtype=values.dtype), atol=1e-3))
