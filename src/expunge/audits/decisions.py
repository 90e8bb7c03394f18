"""What discriminators between classes say about models, and what follows from it: the neighbour, the gap to retrained models, its floor, a test over models.

Pure functions of `Decisions`, which `MIANN.exam` makes from logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DataError
from ..metrics.answers import ONE_REFERENCE, TwoSample, half_width, profile_test
from ..metrics.estimate import Estimate, proportion_interval, unsupported


class Decisions(NamedTuple):
    """What the discriminators of an exam say about one model.

    Attributes:
        hits: (n_F, K), 1 where a forgotten image is taken for the class, else 0; with several discriminators for a class, the share of them that say
            so. 0 in the columns of forgotten classes.
        sanity: (K,), accuracy on as many retained images of the class and of others that the discriminator was not fitted on; NaN for forgotten
            classes. Near 0.5 the hits of that class mean nothing.
    """

    hits: Float[Tensor, "n_F K"]
    sanity: Float[Tensor, " K"]

    @property
    def scores(self) -> Tensor:
        """a_c, (K,): the share of forgotten images that is taken for each class."""
        return self.hits.mean(0)

    @property
    def remaining(self) -> Tensor:
        """bool (K,): True for classes that are not forgotten."""
        return ~self.sanity.isnan()


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class MIANNResult:
    """One model held against retrained ones.

    Attributes:
        neighbour: rn, the class that retrained models take most forgotten images for.
        scores: a_c of the model, (K,) in [0, 1]; 0 for forgotten classes.
        reference_scores: a_c of each retrained model, (M, K).
        score: a_rn of the model, with its exact interval over images.
        reference: the mean a_rn of the retrained models.
        gap: score − reference, signed, in [−1, 1]: below 0 the class is still seen as itself or as nothing, above 0 it is pushed into the
            neighbour. The intervals of both cover which images and which retrained models were drawn (see `half_width`), as if there were two more
            images, one at each end of the range, so that they have a width also when all images agree. With one retrained model: images alone.
        profile_gap: the mean of |a_c − mean_j a_c(r_j)| over the remaining classes.
    """

    neighbour: int
    scores: Float[Tensor, " K"]
    reference_scores: Float[Tensor, "M K"]
    score: Estimate
    reference: Estimate
    gap: Estimate
    profile_gap: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return {k: v.to_dict() if isinstance(v, Estimate) else v for k, v in plain.items()}


def neighbour_of(references: Sequence[Decisions]) -> int:
    """rn, the class that retrained models take most forgotten images for: from the decisions on M ≥ 1 of them.

    Raises:
        DataError: no retrained model, or decisions on different images or classes.

    Example:
        >>> neighbour_of([Decisions(torch.tensor([[0.0, 0.2, 0.7]]).double(), torch.tensor([torch.nan, 0.9, 0.9]).double())])
        2
    """
    if not references:
        raise DataError("the neighbour is chosen by retrained models; got none. Pass the decisions of at least one, better three.")
    _check_one_exam(references)
    mean = torch.stack([one.scores for one in references]).mean(0)
    return int(torch.where(references[0].remaining, mean, -1.0).argmax())


def compare(decisions: Decisions, references: Sequence[Decisions], neighbour: int | None = None) -> MIANNResult:
    """Holds the decisions on one model against those on M ≥ 1 retrained models, all from one exam; at `neighbour`, or at theirs.

    Raises:
        DataError: no retrained model, or decisions on other images or classes.

    Example:
        >>> taken, sanity = torch.tensor([[0.0, 1.0]]).repeat(50, 1).double(), torch.tensor([0.9, 0.9]).double()
        >>> print(compare(Decisions(taken.flip(1), sanity), [Decisions(taken, sanity)] * 3).gap)
        -1.000 [-1.000, -0.887]
    """
    chosen = neighbour_of(references)
    neighbour = chosen if neighbour is None else neighbour
    _check_one_exam([*references, decisions])
    hits = torch.stack([r.hits for r in references])
    note = ONE_REFERENCE if len(references) == 1 else None
    own, theirs = decisions.hits[:, neighbour], hits[:, :, neighbour]
    n, taken = len(own), float(own.sum())
    reference_scores, remaining = hits.mean(1), decisions.remaining
    return MIANNResult(
        neighbour=neighbour,
        scores=decisions.scores,
        reference_scores=reference_scores,
        score=Estimate(taken / n, *proportion_interval(taken, n), n),
        reference=_mean(theirs.mean(0), (0.0, 1.0), theirs.mean(1), note),
        gap=_mean(own - theirs.mean(0), (-1.0, 1.0), theirs.mean(1), note),
        profile_gap=float((decisions.scores - reference_scores.mean(0)).abs()[remaining].mean()),
    )


def mia_nn_floor(references: Sequence[Decisions]) -> Estimate:
    """The gap that retraining itself has: |a_rn(r_j) − mean of the other retrained models|.

    Value: the mean over the M models. low and high are the smallest and the largest of them, not a confidence interval. n is M.

    Raises:
        DataError: no retrained model, or decisions on different images or classes.

    Example:
        >>> sanity = torch.tensor([0.9, 0.9]).double()
        >>> models = [Decisions((torch.arange(10) < k).double()[:, None] * torch.tensor([1.0, 0.0]).double(), sanity) for k in (5, 6, 8)]
        >>> print(mia_nn_floor(models))
        0.167 [0.050, 0.250]
    """
    neighbour, m = neighbour_of(references), len(references)
    if m < 2:
        return unsupported("needs two retrained models, got 1", n=m)
    scores = torch.stack([one.scores[neighbour] for one in references])
    gaps = (scores - (scores.sum() - scores) / (m - 1)).abs()
    return Estimate(float(gaps.mean()), float(gaps.min()), float(gaps.max()), m)


def two_sample_test(unlearned: Sequence[Decisions], retrained: Sequence[Decisions], seed: int = 0) -> TwoSample:
    """Tests whether unlearned models (several seeds) treat the forgotten classes as retrained models do: `profile_test` on their a_c, c remaining.

    Exact with fit="own"; with "reference" nearly: a retrained model has one judge fewer than an unlearned one.

    Raises:
        DataError: an empty group, or decisions on different images or classes.

    Example:
        >>> sanity = torch.tensor([0.9, 0.9]).double()
        >>> models = [Decisions((torch.arange(10) < k).double()[:, None].repeat(1, 2), sanity) for k in (0, 0, 0, 5, 5, 5)]
        >>> two_sample_test(models[:3], models[3:])
        TwoSample(statistic=0.5, p_value=0.1, n_permutations=20, smallest_p=0.1)
    """
    models = [*unlearned, *retrained]
    _check_one_exam(models)
    scores = [one.scores[one.remaining] for one in models]
    if not unlearned or not retrained:
        raise DataError(f"the test needs at least one model in each group; got {len(unlearned)} unlearned and {len(retrained)} retrained.")
    return profile_test(torch.stack(scores[: len(unlearned)]), torch.stack(scores[len(unlearned) :]), seed)


def _check_one_exam(models: Sequence[Decisions]) -> None:
    for one in models:
        if one.hits.shape != models[0].hits.shape or not torch.equal(one.remaining, models[0].remaining):
            got = " and ".join(f"{tuple(d.hits.shape)} with {int(d.remaining.sum())} remaining classes" for d in (models[0], one))
            raise DataError(f"decisions must be on the same images and classes; got {got}. Take all of them from one exam.")


def _mean(values: Tensor, ends: tuple[float, float], reference_scores: Tensor, note: str | None) -> Estimate:
    """The mean over images, with the interval that MIANNResult describes."""
    images = torch.cat([values, values.new_tensor(ends)])
    spread = float(reference_scores.var()) / len(reference_scores) if len(reference_scores) > 1 else 0.0
    reach = half_width(float(images.var(correction=0)) / len(images), spread, len(reference_scores))
    low, high = (float(images.mean()) + x for x in (-reach, reach))
    return Estimate(float(values.mean()), max(ends[0], low), min(ends[1], high), len(values), note)
