"""SVC-MIA, "MIA-efficacy": what share of the forget set looks like test samples rather than like retain samples?

One model, one number for each sample (a feature), one rule for all samples, fitted on retain (member) against test samples (non-member):

    efficacy = #{x ∈ D_F : the rule says non-member} / |D_F|

A population attack: it knows nothing of single samples, and a model can pass it and fail LiRA. Good is not 1, but what a retrained model
gets. The threshold of the default maximises balanced accuracy; that maximum, 2 · accuracy − 1, is the Kolmogorov-Smirnov statistic of the two
groups, which tells whether the rule is better than chance (a machine has more freedom: its p-value is larger still).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import check_settings, choose, setting
from ..errors import ConfigError, DataError
from ..metrics.accuracy import accuracy_difference
from ..metrics.balanced import balanced_accuracy
from ..metrics.estimate import Estimate, proportion_interval, unsupported
from ..metrics.signals import check_logits, entropy, logit_margin, modified_entropy
from ..rng import permutation, seed_setting

SCALARS = ("correctness", "confidence", "entropy", "modified_entropy")
FEATURES = (*SCALARS, "probabilities")
CHANCE = 0.05  # p-value above which a rule may be chance


@final
@dataclass(frozen=True, eq=False)
class SVCMIAResult:
    """MIA-efficacy of one model by feature.

    Attributes:
        efficacy: the share of forget samples taken for non-members, in [0, 1], with its exact interval over forget samples, the rule as given.
        fit: balanced accuracy on the samples that the rule was fitted on, hence too high; 0.5 = the rule knows nothing.
        verdicts: bool (n_forget,), True = taken for a non-member; only of features whose rule is one.
        n_retain, n_test: how many samples the rules were fitted on.
    """

    efficacy: dict[str, Estimate]
    fit: dict[str, Estimate]
    verdicts: dict[str, Tensor]
    n_retain: int
    n_test: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        numbers = {name: {k: v.to_dict() for k, v in getattr(self, name).items()} for name in ("efficacy", "fit")}
        return numbers | {"n_retain": self.n_retain, "n_test": self.n_test}


@final
@dataclass(frozen=True, kw_only=True)
class SVCMIA:
    """The population attack of the unlearning literature, right by default, and as published on request.

    Use when: published tables quote MIA-efficacy, or as the cheapest look at one model. Cost: `rule="threshold"` one sort a feature, 0.9 ms
    at 4,000 + 4,000 samples; `rule="svc"` and `compatible=True` a support vector machine a feature, O(n²): seconds.

    Args:
        rule: "threshold": the threshold with the best balanced accuracy, members on the side where training puts them (right, sure).
            "svc": RBF machine, gamma = 1 / number of features, classes weighed by their size; it also takes the feature "probabilities".
        compatible: compute what the published code does: "svc", no weights, the first retain samples instead of random ones, float32, and its
            modified entropy, which is none (see `copied_modified_entropy`). For comparison with published tables only.
        C: penalty of the machine, > 0.
        seed: in [0, 2**63), of the choice of retain samples; the global generators are not touched.

    Raises:
        ConfigError: a setting is outside its range.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(200) % 4
        >>> seen, unseen = (torch.randn(200, 4, generator=rng) + s * torch.nn.functional.one_hot(labels, 4) for s in (6, 1))
        >>> print(SVCMIA()((seen, labels), (unseen, labels), (unseen[:100], labels[:100])).efficacy["confidence"])
        0.990 [0.946, 1.000]

    Paper: Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, arXiv:2304.04934; attacks of Song and Mittal, USENIX
        Security 2021, arXiv:2003.10595.
    Departures: the default takes thresholds, correct modified entropy and random retain samples. Known fault, only in `compatible`: widely copied
        code writes the columns of all labels of a group for all rows, and log p for log(1 − p). The other copies' differences are not reproduced.
    """

    name: ClassVar[str] = "svc_mia"
    paper: ClassVar[str] = "Jia et al., NeurIPS 2023, arXiv:2304.04934"

    rule: str = setting("threshold", choices=("threshold", "svc"))
    compatible: bool = setting(False)
    C: float = setting(3.0, gt=0)
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(
        self,
        retain: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        forget: tuple[Tensor, Tensor],
        features: Sequence[str] | None = None,
        level: float = 0.95,
    ) -> SVCMIAResult:
        """The efficacy of one model.

        Args:
            retain, test, forget: (logits (N, K), labels (N,)) of the model on samples of each set. Of retain samples as many are used as there are
                test samples, so give at least that many.
            features: some of "correctness", "confidence", "entropy", "modified_entropy", "probabilities"; None = all that the rule takes.
            level: confidence in (0, 1).

        Raises:
            DataError: shapes or labels do not fit. MissingError: an unknown feature. ConfigError: "probabilities" with a threshold.
            ModelError: logits are NaN or infinite.
        """
        machine = self.compatible or self.rule == "svc"
        features = (FEATURES if machine else SCALARS) if features is None else features
        for name in features:
            choose("feature", name, FEATURES)
            if name == "probabilities" and not machine:
                raise ConfigError('a threshold needs one number a sample; got the feature "probabilities". Pass rule="svc".')
        groups = self._groups(retain, test, forget)
        efficacy, fit, verdicts = {}, {}, {}
        for name in features:
            columns = [_feature(name, *group, compatible=self.compatible, scores=not machine) for group in groups]
            sides = self._machine(*columns) if machine else threshold_verdicts(*columns)
            n = len(groups[2][1])
            if sides is None:
                efficacy[name] = unsupported("no threshold tells retain from test samples", n)
                fit[name] = unsupported("no threshold tells retain from test samples", len(groups[0][1]) + len(groups[1][1]))
                continue
            members, nonmembers, verdicts[name] = sides
            fit[name] = balanced_accuracy(~members, nonmembers, level)
            k = int(verdicts[name].sum())
            efficacy[name] = Estimate(k / n, *proportion_interval(k, n, level), n, _chance(name, fit[name], len(members), len(nonmembers)))
        return SVCMIAResult(efficacy, fit, verdicts, len(groups[0][1]), len(groups[1][1]))

    def _groups(self, *groups: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        for name, (logits, labels) in zip(("retain", "test", "forget"), groups, strict=True):
            check_logits(logits, labels, f"{name} logits")
            if logits.shape[1] != groups[0][0].shape[1]:
                raise DataError(
                    f"all logits must be of one model; got {groups[0][0].shape[1]} classes for retain and {logits.shape[1]} for {name}."
                )
        (logits, labels), test, forget = ((z.detach().cpu(), y.cpu()) for z, y in groups)
        n = min(len(labels), len(test[1]))
        chosen = torch.arange(n) if self.compatible else permutation(len(labels), self.seed)[:n]
        return [(logits[chosen], labels[chosen]), test, forget]

    def _machine(self, members: Tensor, nonmembers: Tensor, asked: Tensor) -> list[Tensor]:
        from sklearn.svm import SVC

        weight = None if self.compatible else "balanced"
        machine = SVC(C=self.C, kernel="rbf", gamma="auto", class_weight=weight, random_state=0)  # else it draws from the global generator
        machine.fit(np.concatenate([members, nonmembers]), np.repeat([1, 0], [len(members), len(nonmembers)]))
        return [torch.from_numpy(machine.predict(group.numpy()) == 0) for group in (members, nonmembers, asked)]


def threshold_verdicts(
    members: Float[Tensor, " n_members"], nonmembers: Float[Tensor, " n_nonmembers"], asked: Float[Tensor, " n_asked"]
) -> list[Tensor] | None:
    """Who is taken for a non-member by the threshold with the best balanced accuracy: one bool tensor for each group, True = score below it.

    Among equally good thresholds the highest is taken. It lies halfway between two scores.

    Args:
        members, nonmembers: scores that the threshold is fitted on, higher = member; at least one each, no NaN.
        asked: other samples that it is applied to.

    Returns:
        Verdicts on members, non-members and asked samples; None if no threshold beats guessing.

    Cost: one sort, O(n log n).

    Example:
        >>> threshold_verdicts(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.4, 1.6]))[2]
        tensor([ True, False])
    """
    n1, n0 = len(members), len(nonmembers)
    ranked, order = torch.cat([members, nonmembers]).double().sort(descending=True)
    gain = torch.where(order < n1, n0, -n1).cumsum(0)  # n₁ n₀ (TPR − FPR) of calling everything down to here a member; whole numbers
    last = torch.cat([ranked[1:] < ranked[:-1], ranked.new_ones(1, dtype=torch.bool)])  # of its ties
    best = torch.where(last, gain, -1).argmax()
    if gain[best] <= 0:
        return None
    threshold = (ranked[best] + ranked[best + 1]) / 2  # there is a next one: after all of them the gain is 0
    threshold = torch.where(threshold > ranked[best + 1], threshold, ranked[best])  # neighbours in floating point
    return [group.double() < threshold for group in (members, nonmembers, asked)]


def efficacy_difference(a: SVCMIAResult, b: SVCMIAResult, level: float = 0.95) -> dict[str, Estimate]:
    """Efficacy of model a minus that of model b on the same forget samples in the same order, in [−1, 1], by feature, with a paired interval.

    The interval covers which forget samples were drawn, not the samples that the rules were fitted on.

    Raises:
        DataError: different numbers of forget samples, or no feature in common.

    Example:
        >>> half, one = torch.arange(50) < 25, Estimate(0.5, 0.4, 0.6, 50)
        >>> results = [SVCMIAResult({"entropy": one}, {"entropy": one}, {"entropy": x}, 50, 50) for x in (half | True, half)]
        >>> print(efficacy_difference(*results)["entropy"])
        0.500 [0.340, 0.622]
    """
    shared = [name for name in a.efficacy if name in b.efficacy]
    if not shared:
        raise DataError(
            f"results must share a feature; got {', '.join(a.efficacy)} and {', '.join(b.efficacy)}. Ask both for the same ones."
        )
    return {
        name: accuracy_difference(a.verdicts[name], b.verdicts[name], level)
        if name in a.verdicts and name in b.verdicts
        else unsupported("no threshold tells retain from test samples in one of the models", a.efficacy[name].n)
        for name in shared
    }


def efficacy_floor(references: Sequence[SVCMIAResult], feature: str = "confidence") -> Estimate:
    """How far retrained models are from one another: |efficacy of one − mean of the others|.

    Value: the mean over the M ≥ 2 models. low and high are the smallest and largest of them, not a confidence interval. n is M.

    Raises:
        MissingError: a result without the feature.

    Example:
        >>> models = [SVCMIAResult({"entropy": Estimate(x, 0.0, 1.0, 50)}, {}, {}, 50, 50) for x in (0.5, 0.6)]
        >>> print(efficacy_floor(models, "entropy"))
        0.100 [0.100, 0.100]
    """
    found = [one.efficacy[choose("feature", feature, one.efficacy, "Ask for it when the models are audited.")] for one in references]
    m = len(found)
    if m < 2 or not all(one.supported for one in found):
        return unsupported(f"needs two retrained models with this number, got {sum(one.supported for one in found)}", n=m)
    values = torch.tensor([one.value for one in found], dtype=torch.float64)
    gaps = (values - (values.sum() - values) / (m - 1)).abs()
    return Estimate(float(gaps.mean()), float(gaps.min()), float(gaps.max()), m)


def copied_modified_entropy(probabilities: Float[Tensor, "N K"], labels: Tensor) -> Float[Tensor, " N"]:
    """What widely copied code computes instead of the modified entropy, (N,): for comparison with its tables only.

        Σ_j w_j (−log p_j),    w_j = 1 − p_j if j is the label of *any* sample of the group, else p_j

    It does not depend on the sample's own label, but on which labels the rest of the group has: a forget set of one class gets another
    feature than the samples that the machine was fitted on.

    Example:
        >>> copied_modified_entropy(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([0, 1]))
        tensor([0.6931, 0.6931])
    """
    present = torch.zeros(probabilities.shape[1], dtype=torch.bool).index_fill(0, labels, True)
    log_p = torch.where(probabilities > 0, probabilities, 1e-30).log()
    return -(torch.where(present, 1 - probabilities, probabilities) * log_p).sum(1)


def _feature(name: str, logits: Tensor, labels: Tensor, *, compatible: bool, scores: bool) -> Tensor:
    """A column of features for a machine, (n, d); or with `scores` one number a sample, higher = member, (n,)."""
    if name == "correctness":
        found = (logits.argmax(1) == labels).float()
    elif name == "confidence" and scores:
        return logit_margin(logits, labels)  # an increasing function of p_y without its ties at 1
    elif name in ("probabilities", "confidence"):
        p = logits.float().softmax(1) if compatible else logits.double().softmax(1)
        found = p if name == "probabilities" else p.gather(1, labels[:, None])
    elif name == "modified_entropy" and compatible:
        found = copied_modified_entropy(logits.float().softmax(1), labels)
    else:
        found = entropy(logits) if name == "entropy" else modified_entropy(logits, labels)
    if scores:
        return found if name == "correctness" else -found
    return found.reshape(len(labels), -1)


def _chance(feature: str, fit: Estimate, n1: int, n0: int) -> str | None:
    """A note if retain and test samples are not told apart: Kolmogorov and Smirnov's one-sided test, or the interval where there are two values only."""
    p = math.exp(-2 * max(0.0, 2 * fit.value - 1) ** 2 * n1 * n0 / (n1 + n0))
    if fit.low > 0.5 if feature == "correctness" else p <= CHANCE:
        return None
    return f"the rule may be chance: it does not tell retain from test samples (balanced accuracy {fit.value:.3f})"
