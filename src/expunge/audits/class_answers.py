"""What each model answers on unseen images of one forgotten class, beside what retrained models answer: the profile that forgetting by force does not have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ..metrics.answers import mean_answer, predicted_shares, total_variation, total_variation_floor
from ..metrics.estimate import Estimate
from .decisions import MIANNResult, compare, mia_nn_floor, neighbour_of
from .mia_nn import MIANN, Exam, short_classes
from .told_apart import ClassLeakage


@final
@dataclass(frozen=True, eq=False)
class ClassRow:
    """One model on unseen images of the class.

    Attributes:
        model: its name.
        answer: (K,) mean probabilities. predicted: (K,) shares of images by top class: a row of the confusion matrix.
        distance: mean total-variation distance of its answers to the mean answer of the retrained models (for one of them: of the others); None without.
        neighbour: MIA-NN against the retrained models (for one of them: against the others); None without, or if it could not be asked (see `ClassAnswers`).
    """

    model: str
    answer: Tensor
    predicted: Tensor
    distance: Estimate | None = None
    neighbour: MIANNResult | None = None


@final
@dataclass(frozen=True, eq=False)
class ClassAnswers:
    """All models on one forgotten class.

    Attributes:
        name: of the class. classes: names of all classes, in the order of the models' outputs.
        n: unseen images of it.
        neighbour: name of the class that retrained models take them for. None without retrained models, with one remaining class (there is nothing else to take
            them for), or with too few images.
        distance_floor, neighbour_floor: the same measures between retrained models: what chance alone does.
        short: remaining classes with too few test images for MIA-NN, which is then left out.
        leakage: U-LiRA on many models of each method, if it was measured (see `class_leakage`).
    """

    name: str
    classes: tuple[str, ...]
    n: int
    rows: list[ClassRow]
    neighbour: str | None = None
    distance_floor: Estimate | None = None
    neighbour_floor: Estimate | None = None
    short: tuple[str, ...] = ()
    leakage: ClassLeakage | None = None

    def __getitem__(self, model: str) -> ClassRow:
        return {row.model: row for row in self.rows}[model]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the report."""
        return {
            "name": self.name, "classes": list(self.classes), "n": self.n, "neighbour": self.neighbour,
            "distance_floor": self.distance_floor and self.distance_floor.to_dict(),
            "neighbour_floor": self.neighbour_floor and self.neighbour_floor.to_dict(),
            "leakage": self.leakage and self.leakage.to_dict(),
            "rows": [
                {
                    "model": row.model, "answer": _rounded(row.answer), "predicted": _rounded(row.predicted),
                    "distance": row.distance and row.distance.to_dict(), "neighbour": row.neighbour and row.neighbour.to_dict(),
                }
                for row in self.rows
            ],
        }  # fmt: skip


def class_answers(
    logits: Mapping[str, Tensor],
    labels: Tensor,
    forgotten: int,
    forget_classes: Sequence[int],
    classes: Sequence[str],
    references: Sequence[str],
    leakage: ClassLeakage | None = None,
) -> ClassAnswers:
    """What the models answer on one forgotten class.

    Args:
        logits: of each model on unseen images of all classes, (N, K).
        labels: of these images, (N,).
        forgotten: number of the class. forget_classes: of all forgotten classes; images of the others are left out.
        classes: names of all classes.
        references: names of the retrained models among `logits`; may be empty.
        leakage: U-LiRA of this class, to be shown beside it.

    Raises:
        DataError: no image of the class.

    Cost: for each model one support vector machine a remaining class.
    """
    mine = labels == forgotten
    unseen = {name: z[mine] for name, z in logits.items()}
    n_outputs = next(iter(logits.values())).shape[1]
    names = (*classes, *(f"output {k}" for k in range(len(classes), n_outputs)))
    short = short_classes(labels, forget_classes, n_outputs) if references else []
    exam = None
    if references and not short and n_outputs - len(forget_classes) > 1:
        exam = MIANN().exam(labels, forget_classes, torch.stack([logits[r] for r in references]), forgotten)
    near = {} if exam is None else _near(exam, logits, references)
    rows = [
        ClassRow(name, mean_answer(z), predicted_shares(z), _distance(z, [unseen[r] for r in references if r != name]), near.get(name))
        for name, z in unseen.items()
    ]
    return ClassAnswers(
        classes[forgotten],
        names,
        int(mine.sum()),
        rows,
        neighbour=None if exam is None else names[neighbour_of(exam.references)],
        distance_floor=total_variation_floor(torch.stack([unseen[r] for r in references])) if references else None,
        neighbour_floor=None if exam is None else mia_nn_floor(exam.references),
        short=tuple(names[k] for k in short),
        leakage=leakage,
    )


def _near(exam: Exam, logits: Mapping[str, Tensor], references: Sequence[str]) -> dict[str, MIANNResult]:
    """MIA-NN of each model against the retrained ones other than itself, at the neighbour that all of them choose."""
    decided = dict(zip(references, exam.references, strict=True))
    decided |= {name: exam.decide(z) for name, z in logits.items() if name not in decided}
    neighbour, results = neighbour_of(exam.references), {}
    for name, own in decided.items():
        peers = [decided[r] for r in references if r != name]
        if peers:
            results[name] = compare(own, peers, neighbour)
    return results


def _distance(logits: Tensor, peers: list[Tensor]) -> Estimate | None:
    return total_variation(logits, torch.stack(peers)) if peers else None


def _rounded(values: Tensor) -> list[float]:
    return [round(v, 5) for v in values.tolist()]
