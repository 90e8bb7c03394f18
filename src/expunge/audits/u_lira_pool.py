"""U-LiRA on a pool of samples: each model trained on one half of it, and was made to forget exactly that half."""

import torch
from torch import Tensor

from ..errors import DataError
from .lira import lira_leave_one_out
from .populations import checked_margins
from .told_apart import ULiRAResult, check_report, contrast, estimates


def u_lira_pool(
    after: Tensor,
    included: Tensor,
    *,
    variance: str = "shrunk",
    prior_weight: float = 10.0,
    fpr: float = 0.01,
    level: float = 0.95,
) -> ULiRAResult:
    """U-LiRA on a pool of samples of which each model trained on one half, and then unlearned exactly that half.

    Each model in turn is the target; it and its mate, which had the other half, are left out of the fit (groups.py says why). Its members
    are the samples that it forgot, its non-members those that it never saw. AUC, balanced accuracy and TPR are averaged over targets.
    The interval is that of `u_lira_class`, with pairs of mates in the place of models, hence M/2 − 1 degrees of freedom.

    Args:
        after: (M, N) margins after unlearning, M ≥ 6.
        included: (M, N) bool, which samples each model trained on and then unlearned; complementary pairs, no half twice.
        variance, prior_weight, fpr, level: as in `u_lira_class`.

    Raises:
        ConfigError: a setting is outside its range.
        DataError: shapes do not fit, a margin is not finite, or models are not at least 3 complementary pairs.

    Cost: 2M fits and M sorts of N scores.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> half = torch.rand(4, 500, generator=rng) < 0.5
        >>> included = torch.cat([half, ~half])
        >>> print(u_lira_pool(torch.randn(8, 500, generator=rng) + 20 * included, included).auc.value)
        1.0

    Paper: Hayes et al., SaTML 2025, arXiv:2403.01218. Departures: one forget set a model instead of several; models that never saw a sample
    have unlearned others, as in the paper.
    """
    check_report(fpr, level)
    after = checked_margins("models", after, 6)
    pairs = _pairs(after, included)
    scores = lira_leave_one_out(after, included, variance, prior_weight=prior_weight)
    m, n = after.shape
    values, influence = torch.empty(3, m, dtype=torch.float64), torch.zeros(3, n, dtype=torch.float64)
    for t, (row, member) in enumerate(zip(scores, included, strict=True)):
        seen, unseen = member.nonzero().flatten(), (~member).nonzero().flatten()
        terms = contrast(row[seen], row[unseen], fpr)
        values[:, t] = terms.values
        for who, of in ((seen, terms.of_members), (unseen, terms.of_nonmembers)):
            centred = (of - of.mean(1, keepdim=True)) * (n / (len(who) * m))  # so that the mean over the pool is the mean over the group
            influence.index_add_(1, who, centred)
    spread = values[:, pairs].mean(2).var(1) / len(pairs)
    fewest = int((~included).sum(1).min())
    found = estimates(values.mean(1), spread, influence, trials=len(pairs), n_nonmembers=fewest, fpr=fpr, level=level)
    return ULiRAResult(*found, fpr, m // 2, m // 2, n)


def _pairs(after: Tensor, included: Tensor) -> Tensor:
    """The numbers of the models of each complementary pair, (M/2, 2)."""
    if included.dtype != torch.bool or included.shape != after.shape:
        raise DataError(f"included must be bool of shape {tuple(after.shape)}; got {included.dtype} of shape {tuple(included.shape)}.")
    kinds, pair = (included ^ included[:, :1]).unique(dim=0, return_inverse=True)  # mates look alike once the first sample is out in both
    order = pair.argsort()
    complementary = 2 * len(kinds) == len(pair) and bool((included[order[::2]] ^ included[order[1::2]]).all())
    if not complementary or bool((included.all(1) | ~included.any(1)).any()):
        raise DataError(
            "models must come in complementary pairs, each with some samples of the pool and its mate with the others, no half twice; "
            f"got {len(included)} models that are not. Draw a random half of the pool for each pair, and train one model on it and one on the rest."
        )
    return order.view(-1, 2)
