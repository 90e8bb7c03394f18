"""The verdict: can this model be told from retrained ones, cannot it, or can this audit not say?

Each contrast is one number of the unlearned model beside the same number of R retrained models, on the same samples: D = a(U) − mean_j a(R_j). It is held against two widths:

    w = √(z² e² + t²_{R−1} s² / R)              how well D is known: the 95 % interval that is shown
    c = max(z e, t_{R−1} s √(1 + 1/R))          how far one more retrained model would be from the others by chance

e is the error of D over samples (paired), s the standard deviation of a between retrained models on these samples; with one retrained model s is unknown.

    indistinguishable   every D ± w lies within ± margin             (an intersection of tests: no correction is needed)
    distinguishable     some |D| > c, at a level corrected for the number of contrasts
    cannot tell         neither; then `needs` says what would decide it
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from ..metrics.answers import half_width
from ..metrics.estimate import Estimate
from ..metrics.roc import placements

INDISTINGUISHABLE, DISTINGUISHABLE, CANNOT_TELL = "indistinguishable", "distinguishable", "cannot tell"
LEVEL = 0.95
MARGINS = {"area": 0.02, "share": 0.05}  # what counts as no difference: of an AUC, and of a mean probability on a forgotten class
LEAST_REFERENCES, MOST_REFERENCES = 3, 30  # fewer say next to nothing about how retrained models differ; more are not asked for
MOST_TIMES_SAMPLES = 1000


@final
@dataclass(frozen=True)
class Contrast:
    """One number of a model against that of retrained ones.

    Attributes:
        name: what was measured. kind: "area" (an AUC) or "share" (a mean probability).
        gap: the model's value minus the mean of the retrained ones', with the 95 % interval that is described above.
        member_variance, nonmember_variance: of the gap, over forget samples (which nobody can add) and over non-members.
        spread: standard deviation between retrained models.
        n_references: how many there were.
    """

    name: str
    kind: str
    gap: Estimate
    member_variance: float
    nonmember_variance: float
    spread: float
    n_references: int

    @property
    def margin(self) -> float:
        """The largest difference that counts as none."""
        return MARGINS[self.kind]

    @property
    def within(self) -> bool:
        """Whether the interval lies within ± margin."""
        return self.n_references > 1 and -self.margin <= self.gap.low and self.gap.high <= self.margin

    def reach(self, references: int | None = None, nonmembers: int = 1) -> float:
        """w, half the width of the interval: as it is, or with other numbers of retrained models, or so many times the non-members."""
        r = references or self.n_references
        return half_width(self._image_variance(nonmembers), self.spread**2 / r, r, LEVEL)

    def chance(self, comparisons: int, references: int | None = None, nonmembers: int = 1) -> float:
        """c, what one more retrained model would not exceed, corrected for so many comparisons."""
        r, level = references or self.n_references, 1 - (1 - LEVEL) / comparisons
        return max(
            half_width(self._image_variance(nonmembers), 0.0, r, level), half_width(0.0, self.spread**2 * (1 + 1 / r), r, level)
        )  # fmt: skip

    def differs(self, comparisons: int) -> bool:
        """Whether the gap is larger than chance makes it, corrected for so many comparisons."""
        return self.n_references > 1 and abs(self.gap.value) > self.chance(comparisons)

    def _image_variance(self, nonmembers: int) -> float:
        return self.member_variance + self.nonmember_variance / nonmembers

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the report."""
        return asdict(self) | {"gap": self.gap.to_dict(), "margin": self.margin}


@final
@dataclass(frozen=True)
class Verdict:
    """What an audit says about one model.

    Attributes:
        model: its name.
        word: "indistinguishable", "distinguishable" or "cannot tell".
        text: a sentence to quote.
        contrasts: what it rests on.
        needs: where the audit cannot tell, what would decide it.
    """

    model: str
    word: str
    text: str
    contrasts: tuple[Contrast, ...]
    needs: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the report."""
        return asdict(self) | {"contrasts": [c.to_dict() for c in self.contrasts], "needs": list(self.needs)}

    def __str__(self) -> str:
        return self.text


def area_contrast(name: str, mine: tuple[Tensor, Tensor], *references: tuple[Tensor, Tensor]) -> Contrast:
    """The contrast of an attack's AUC.

    Args:
        name: of the attack.
        mine, references: scores of members and of non-members, of the model and of R ≥ 1 retrained ones; the same samples in the same order.

    Example:
        >>> members, nonmembers = torch.linspace(0, 2, 50), torch.linspace(-1, 1, 50)
        >>> round(area_contrast("RMIA", (members, nonmembers), (members - 0.5, nonmembers), (members - 0.4, nonmembers)).gap.value, 3)
        0.137
    """
    own, theirs = placements(*mine), [placements(*scores) for scores in references]
    sides = [a - torch.stack(bs).mean(0) for a, bs in zip(own[:2], zip(*(t[:2] for t in theirs), strict=True), strict=True)]
    return _contrast(f"{name} AUC", "area", own.auc, [t.auc for t in theirs], *sides)


def share_contrast(name: str, mine: Tensor, references: Sequence[Tensor]) -> Contrast:
    """The contrast of a mean over samples of values in [0, 1]: (n,) of the model, and of R ≥ 1 retrained ones on the same samples.

    Example:
        >>> round(share_contrast("answered cat", torch.full((100,), 0.5), [torch.full((100,), 0.25), torch.full((100,), 0.35)]).gap.value, 3)
        0.2
    """
    rest = torch.stack(list(references)).double()
    return _contrast(
        name, "share", float(mine.double().mean()), rest.mean(1).tolist(), mine.double() - rest.mean(0), torch.zeros(1)
    )  # fmt: skip


def class_contrasts(mine: Tensor, *references: Tensor, labels: Tensor, names: Sequence[str]) -> list[Contrast]:
    """Where whole classes are forgotten: the mean probability of each one on its own unseen images, and of the class that retrained models take it for.

    Args:
        mine, references: logits (n, K) on unseen images of the forgotten classes, of the model and of R ≥ 1 retrained ones.
        labels: of these images. names: of all classes; further outputs are named by number.
    """
    own, theirs = mine.double().softmax(1), torch.stack(references).double().softmax(2)
    names = (*names, *(f"output {k}" for k in range(len(names), mine.shape[1])))
    found = []
    for k in labels.unique().tolist():
        where = labels == k
        answer = theirs[:, where].mean((0, 1)).index_fill(0, labels.unique(), -1)  # the neighbour is a class that remains
        for c in (k, int(answer.argmax())):
            text = f"probability of {names[c]}" + (f" on images of {names[k]}" if c != k else "")
            found.append(share_contrast(text, own[where, c], list(theirs[:, where, c])))
    return found


def judge(model: str, contrasts: Sequence[Contrast], *, n_references: int, labels_only: bool = False) -> Verdict:
    """The verdict on one model from its contrasts with the same retrained models; `labels_only` where models told no more than labels, so that it is said."""
    contrasts = tuple(contrasts)
    clearest = max(contrasts, key=lambda c: abs(c.gap.value) / c.chance(len(contrasts)))
    what = " and ".join(f"{_noun(kind)} within ±{MARGINS[kind]:g}" for kind in dict.fromkeys(c.kind for c in contrasts))
    if n_references < LEAST_REFERENCES:
        needs = (f"{_more(LEAST_REFERENCES - n_references)}, to know how much they differ from one another",)
        text = f"This audit cannot tell {model} from retraining or not: it has {n_references} retrained model{'s' * (n_references > 1)}, and needs {needs[0]}."
        return Verdict(model, CANNOT_TELL, text, contrasts, needs)
    if all(c.within for c in contrasts):
        text = f"{model} is indistinguishable from retraining at the precision of this audit{', which saw predicted labels alone' * labels_only} ({what}, 95 %; {n_references} retrained models)."
        return Verdict(model, INDISTINGUISHABLE, text, contrasts)
    if clearest.differs(len(contrasts)):
        text = (
            f"{model} is distinguishable from retraining: its {clearest.name} differs by {clearest.gap:+.3f} from the mean of {n_references} retrained models, "
            f"and one more of these would by at most {clearest.chance(len(contrasts)):.3f} (95 %, corrected for {len(contrasts)} comparison{'s' * (len(contrasts) > 1)})."
        )
        return Verdict(model, DISTINGUISHABLE, text, contrasts)
    open_ones = [c for c in contrasts if not c.within]
    widest = max(open_ones, key=lambda c: max(-c.gap.low, c.gap.high) / c.margin)
    sizes = {text: size for size, text in (_need(c, len(contrasts)) for c in open_ones)}
    text = (
        f"This audit cannot tell whether {model} differs from retraining by more than ±{widest.margin:g}: its {widest.name} differs by "
        f"{widest.gap.value:+.3f} [{widest.gap.low:+.3f}, {widest.gap.high:+.3f}] (95 %, {n_references} retrained models). To decide: {max(sizes, key=lambda text: sizes[text])}."
    )
    return Verdict(model, CANNOT_TELL, text, contrasts, tuple(sizes))


def _contrast(name: str, kind: str, value: float, references: list[float], members: Tensor, nonmembers: Tensor) -> Contrast:
    """From the values of the model and of the retrained ones, and what each sample does to the gap."""
    theirs, r = torch.tensor(references, dtype=torch.float64), len(references)
    gap = value - float(theirs.mean())
    of_members, of_nonmembers = (_variance_of_mean(x) if len(x) > 1 else 0.0 for x in (members, nonmembers))
    spread = float(theirs.std()) if r > 1 else 0.0
    alone = Estimate(gap, -1.0, 1.0, len(members), "one retrained model: how these differ is unknown")
    found = Contrast(name, kind, alone, of_members, of_nonmembers, spread, r)
    if r == 1:
        return found
    reach = found.reach()
    return replace(found, gap=Estimate(gap, max(-1.0, gap - reach), min(1.0, gap + reach), len(members)))


def _variance_of_mean(values: Tensor) -> float:
    """Not below that of one sample on either side at the ends of the range, so that no interval has zero width where all samples agree."""
    n = len(values)
    return max(float(values.double().var(correction=0)) / n, 2 / (n + 2) ** 2)


def _need(contrast: Contrast, comparisons: int) -> tuple[float, str]:
    """What would decide this contrast, were its gap what it seems to be: how much of it, to compare needs by, and in words."""
    gap = abs(contrast.gap.value)
    for times in (1, 2, 4, 8, 16, MOST_TIMES_SAMPLES):
        for r in range(contrast.n_references + (times == 1), MOST_REFERENCES + 1):
            if gap + contrast.reach(r, times) <= contrast.margin or gap > contrast.chance(comparisons, r, times):
                models = _more(r - contrast.n_references) if r > contrast.n_references else ""
                images = f"{times} times as many test samples" if times > 1 else ""
                return float(r * times), " and ".join(filter(None, (models, images))) + f" (for {contrast.name})"
    forget = half_width(contrast.member_variance, 0.0, 1, LEVEL)  # what is left with all the models and test samples in the world
    if gap + forget > contrast.margin and forget > gap:
        return math.inf, f"for {contrast.name} more forget samples than there are: with these no audit gets below ±{gap + forget:.3f}"
    return 1e6, (
        f"for {contrast.name} more than {MOST_REFERENCES} retrained models, because these differ from one another by a standard deviation of {contrast.spread:.3f}"
    )


def _more(n: int) -> str:
    return f"{n} more retrained model{'s' * (n > 1)}"


def _noun(kind: str) -> str:
    return {"area": "AUC difference", "share": "answers on the forgotten class"}[kind]
