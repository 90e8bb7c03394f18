"""MIA-NN: does the model take images of a forgotten class for the classes that retrained models take them for?

Per remaining class c a small classifier learns, on unseen retained images, what the model's output looks like on class c, and is then asked about
unseen images of the forgotten classes:

    a_c(m) = share of forgotten images whose output under model m looks like class c
    rn     = argmax_c mean_j a_c(r_j),        the neighbour, chosen by the retrained models r_j alone
    gap(m) = a_rn(m) − mean_j a_rn(r_j)

A test of how a whole class is treated; it says nothing about single images, hidden features or weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..checks import check_indices, check_settings, setting
from ..errors import DataError
from ..metrics.answers import check_references
from ..metrics.signals import check_logits
from ..rng import permutation, seed_setting
from .decisions import Decisions, MIANNResult, compare

FEATURES = ("probability", "probabilities", "logits")
FITS = ("own", "reference")
LEAST_IMAGES = 4  # of a remaining class: half to fit on, half to check, two at least


@final
@dataclass(frozen=True, kw_only=True)
class MIANN:
    """The class-level audit with support vector machines on the outputs of models.

    Use when: whole classes were forgotten and at least three retrained models are at hand; the gap means something beside `mia_nn_floor` only.
    Cost: K − |F| small SVMs for each model, on at most 2 · max_per_class images each: 0.05 s of CPU for ten classes, 0.5 s with all
    logits. The references of an `exam` are fitted once.

    Args:
        features: what a discriminator sees. "probability": the softmax probability of its own class; "probabilities": all of them; "logits": all logits.
        fit: "own": the discriminators of a model are fitted on its own outputs. "reference": on those of each retrained model, and what they say is
            averaged; a retrained model is not judged by its own, so that it is in the position of the audited one (unless it is the only one). Full outputs need
            "reference": fitted on its own, a discriminator can learn to ignore the logit of the forgotten class, and sees no difference.
        C: penalty of the SVM, > 0. gamma is 1 / number of features.
        max_per_class: images of the class, and of others, that a discriminator is fitted on, ≥ 2; half of the images of the class if that is fewer.
        seed: in [0, 2**63), of the choice of these images, which is the same for all models.

    Raises:
        ConfigError: a setting is outside its range (at construction).

    Example:
        >>> labels = torch.arange(3).repeat(20)
        >>> seen = 5 * torch.nn.functional.one_hot(torch.where(labels == 0, 2, labels), 3).float()  # all zeros are taken for twos
        >>> exam = MIANN().exam(labels, [0], seen.expand(3, -1, -1))
        >>> kept = 5 * torch.nn.functional.one_hot(labels, 3).float()  # a model that still knows the zeros
        >>> exam(seen).neighbour, exam(seen).gap.value, exam(kept).gap.value
        (2, 0.0, -1.0)

    Paper: Ebrahimpour-Boroojeny et al., "Unlearning Isn't Forgetting: Revealing Hidden Leakage in Class Unlearning Evaluations", ICML 2026,
        arXiv:2506.20893 (there CMIA; MIA-NN in the arXiv version).
    Departures: the authors' code and full text are not known to us; features, kernel and sizes are a reconstruction. Several forgotten classes are one group.
        Intervals, floor and the test over models are ours.
    """

    name: ClassVar[str] = "mia_nn"
    paper: ClassVar[str] = "Ebrahimpour-Boroojeny et al., ICML 2026, arXiv:2506.20893"

    features: str = setting("probability", choices=FEATURES)
    fit: str = setting("own", choices=FITS)
    C: float = setting(3.0, gt=0)
    max_per_class: int = setting(500, ge=2)
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self, logits: Tensor, labels: Tensor, forget_classes: Sequence[int], references: Tensor) -> MIANNResult:
        """Audits one model; for several, `exam` fits the references once.

        Args:
            logits: (N, K), of the model on unseen test images of all classes.
            labels: (N,) int64 in [0, K).
            forget_classes: class numbers.
            references: (M, N, K), of M ≥ 1 retrained models on the same images.

        Raises:
            DataError: as `exam`, or the shapes of model and references differ.
            ModelError: logits are NaN or infinite.
        """
        return self.exam(labels, forget_classes, references)(logits)

    def exam(self, labels: Tensor, forget_classes: Sequence[int], references: Tensor, asked: int | None = None) -> "Exam":
        """The audit with everything fitted that does not depend on the audited model: `exam(logits)` is a result, `exam.references` the decisions.

        Args:
            labels, forget_classes, references: as for one model.
            asked: the one forgotten class whose images the question is about; None = all of them as a group.

        Raises:
            DataError: shapes or labels do not fit; fewer than two classes remain, or one has fewer than 4 images; no image of the forgotten classes.
            ModelError: logits are NaN or infinite.
        """
        return Exam(self, labels, forget_classes, references, asked)


@final
class Exam:
    """One set of test images and retrained models, for any number of audited models. Made by `MIANN.exam`.

    Attributes:
        references: the decisions on each retrained model, for `mia_nn_floor` and `two_sample_test`.
    """

    def __init__(self, audit: MIANN, labels: Tensor, forget_classes: Sequence[int], references: Tensor, asked: int | None = None):
        check_references(references)
        check_logits(references[0], labels, "logits of retrained model 0")
        self.audit, self.labels = audit, labels.cpu()
        self.n_classes = references.shape[2]
        forgotten = check_indices(forget_classes, self.n_classes, "forget_classes")
        self.images = torch.isin(self.labels, forgotten if asked is None else torch.tensor([asked])).nonzero().flatten()
        if len(self.images) == 0:
            about = forgotten.tolist() if asked is None else [asked]
            raise DataError(f"the audit asks about images of the forgotten classes {about}; got none. Keep them in the test set.")
        if asked is not None and asked not in forgotten:
            raise DataError(f"asked must be one of the forgotten classes {forgotten.tolist()}; got {asked}.")
        self.samples = _draw(self.labels, forgotten, self.n_classes, audit.max_per_class, audit.seed)
        fitted = [self._fit(logits) for logits in references]
        self.judges = None if audit.fit == "own" else fitted
        judges = [[one] if audit.fit == "own" else (fitted[:j] + fitted[j + 1 :] or fitted) for j, one in enumerate(fitted)]
        self.references = tuple(self._judge(logits, theirs) for logits, theirs in zip(references, judges, strict=True))

    def decide(self, logits: Tensor) -> Decisions:
        """What the discriminators say about a model, from its logits (N, K) on the images of the exam.

        Raises:
            DataError: not the shape of one of the references.
            ModelError: logits are NaN or infinite.
        """
        if logits.shape != (len(self.labels), self.n_classes):
            raise DataError(
                f"logits must have the shape ({len(self.labels)}, {self.n_classes}) of the retrained models'; got {tuple(logits.shape)}. "
                "Score the model on the test images of the exam."
            )
        check_logits(logits, self.labels.to(logits.device))
        return self._judge(logits, self.judges or [self._fit(logits)])

    def __call__(self, logits: Tensor) -> MIANNResult:
        """The result of a model, from its logits (N, K) on the images of the exam. Raises what `decide` raises."""
        return compare(self.decide(logits), self.references)

    def _fit(self, logits: Tensor) -> dict[int, Any]:
        """One discriminator for each remaining class."""
        from sklearn.svm import SVC

        seen, judges = self._seen(logits), {}
        for c, sample in self.samples.items():
            is_class = np.arange(len(sample.fit)) < len(sample.fit) // 2
            # random_state: SVC draws from NumPy's global generator otherwise, although nothing random comes of it
            judges[c] = SVC(C=self.audit.C, kernel="rbf", gamma="auto", random_state=0).fit(self._columns(seen[sample.fit], c), is_class)
        return judges

    def _judge(self, logits: Tensor, judges: Sequence[dict[int, Any]]) -> Decisions:
        seen, n = self._seen(logits), len(self.images)
        hits, sanity = np.zeros((n, self.n_classes)), np.full(self.n_classes, np.nan)
        for c, sample in self.samples.items():
            shown = self._columns(seen[torch.cat([self.images, sample.check])], c)
            says = np.mean([judge[c].predict(shown) for judge in judges], axis=0)
            positive, negative = np.split(says[n:], 2)
            hits[:, c], sanity[c] = says[:n], (positive.mean() + 1 - negative.mean()) / 2
        return Decisions(torch.from_numpy(hits), torch.from_numpy(sanity))

    def _seen(self, logits: Tensor) -> Tensor:
        logits = logits.detach().double().cpu()
        return logits if self.audit.features == "logits" else logits.softmax(1)

    def _columns(self, seen: Tensor, c: int) -> np.ndarray:
        return (seen[:, c : c + 1] if self.audit.features == "probability" else seen).numpy()


def short_classes(labels: Tensor, forget_classes: Sequence[int] | Tensor, n_classes: int) -> list[int]:
    """The remaining classes with too few images for an exam.

    Example:
        >>> short_classes(torch.tensor([0, 1, 1, 1, 2, 2, 2, 2]), [0], 3)
        [1]
    """
    counts = labels.bincount(minlength=n_classes).tolist()
    return [c for c in range(n_classes) if c not in forget_classes and counts[c] < LEAST_IMAGES]


class Sample(NamedTuple):
    """Positions of retained images for one discriminator; in each, the first half is of its class, the second of others."""

    fit: Int64[Tensor, " n"]
    check: Int64[Tensor, " n"]


def _draw(labels: Tensor, forgotten: Tensor, n_classes: int, max_per_class: int, seed: int) -> dict[int, Sample]:
    """The images of each remaining class's discriminator: a function of the labels and the seed, so that all models get the same."""
    members = {c: (labels == c).nonzero().flatten() for c in range(n_classes) if c not in forgotten}
    short = short_classes(labels, forgotten, n_classes)
    if len(members) < 2:
        raise DataError(
            f"the audit needs at least two remaining classes, to tell one from another; got {len(members)} of {n_classes}. "
            "With one remaining class every image goes there, and nothing is left to compare."
        )
    if short:
        raise DataError(
            f"every remaining class needs at least {LEAST_IMAGES} test images, half to fit on and half to check; "
            f"got {len(members[short[0]])} of class {short[0]}. Score the models on more test images."
        )
    samples = {}
    for c in members:
        order = permutation(n_classes, seed, c).tolist()  # of classes: with many classes and few images not all of them have a turn
        shuffled = {k: members[k][permutation(len(members[k]), seed, c, k)] for k in order if k in members}
        own = shuffled.pop(c)
        others = pad_sequence(list(shuffled.values()), padding_value=-1).flatten()  # one image of each class in turn
        others = others[others >= 0]
        size = min(len(own) // 2, len(others) // 2, max_per_class)
        samples[c] = Sample(*(torch.cat([own[part], others[part]]) for part in (slice(size), slice(size, 2 * size))))
    return samples
