"""What an audit will need, before anything is trained: models, images and time for a wanted precision, in closed form.

    AUC ± m             z · √((n₁ + n₀ + 1) / (12 n₁ n₀)) ≤ m                  at the null; pairing with the retrained model only makes it narrower
    TPR at FPR ± r      (1 − TPR) / (TPR · n₁) + 1/k ≤ (asinh(r) / z)²,  k = FPR · n₀; half each where images allow it, otherwise the plentiful kind makes up for the other
    AUC of a sample ± s z · √((M + 1) / (3 M²)) ≤ s                             over M models, half of which saw the sample
    ε                   the bound of a perfect separation, with half of the models to choose the rule, is ≥ ε
    difference of seeds t · sd · √(1/U + 1/R) ≤ m                              U unlearned and R retrained models whose AUCs differ by sd from seed to seed

Every ± is half the width of an interval at `level`.
"""

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, final

from scipy.special import stdtrit

from ..checks import check_settings, is_integer, setting
from ..errors import ConfigError
from ..progress import roughly
from .epsilon import epsilon_ceiling
from .estimate import check_level
from .roc import FEW_FALSE_POSITIVES, MIN_FALSE_POSITIVES, false_positives

MOST = 10**6  # models; a wish beyond that is refused
SHADOWS, RETRAINED = 16, 3  # the fewest that LiRA with shrunk variances and any floor are worth having with
AMOUNTS = ("forget_images", "test_images", "shadow_models", "unlearned_models", "retrained_models")


@final
@dataclass(frozen=True)
class Need:
    """What one wish takes.

    Attributes:
        wish: in words. reachable: with the data at hand. needs: of each kind, how many (those that matter). reason: why not, and what could be reached; or None.
    """

    wish: str
    reachable: bool
    needs: dict[str, int] = field(default_factory=dict)
    reason: str | None = None

    def __str__(self) -> str:
        if not self.reachable:
            return f"{self.wish}: NOT REACHABLE, {self.reason}"
        parts = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in self.needs.items())
        return f"{self.wish}: {parts}{f' ({self.reason})' if self.reason else ''}"


@final
@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """What an audit needs for all wishes together, and what it costs.

    Attributes:
        needs: one for each wish. shadow_models, unlearned_models, retrained_models: the largest number that a reachable wish asks for.
        trainings: of the original, shadow and retrained models. unlearnings: runs of one method, on unlearned models and on the pool of shadow models.
        seconds: None unless the caller said what a training takes.
    """

    needs: tuple[Need, ...]
    shadow_models: int
    unlearned_models: int
    retrained_models: int
    trainings: int
    unlearnings: int
    seconds: float | None

    @property
    def reachable(self) -> bool:
        """Whether all wishes can be reached with the data at hand."""
        return all(need.reachable for need in self.needs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        needs = [{"wish": x.wish, "reachable": x.reachable, "needs": dict(x.needs), "reason": x.reason} for x in self.needs]
        plain = ("shadow_models", "unlearned_models", "retrained_models", "trainings", "unlearnings", "seconds", "reachable")
        return {"needs": needs} | {name: getattr(self, name) for name in plain}

    def __str__(self) -> str:
        lines = [str(need) for need in self.needs]
        lines.append(
            f"together: {self.shadow_models} shadow, {self.unlearned_models} unlearned and {self.retrained_models} retrained models: "
            f"{self.trainings} trainings, {self.unlearnings} unlearnings{'' if self.seconds is None else f', {roughly(self.seconds)}'}"
        )
        return "\n".join(lines)


@final
@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How precise an audit shall be; None = not asked for.

    Args:
        auc: ± of the membership AUC, in (0, 0.5). tpr: ± of the TPR relative to itself, in (0, 1); 0.2 = ± 20 %. fpr: where, in (0, 1).
        expected_tpr: in (0, 1); None = `fpr`, as under the null. sample_auc: ± of the AUC over models of a single sample, in (0, 0.5).
        epsilon: the ε that a perfect separation shall prove, > 0. seed_auc: ± of the mean AUC difference of unlearned and retrained seeds, in (0, 0.5).
        seed_sd: standard deviation of the AUC from seed to seed, > 0; needed for `seed_auc`. Two or three retrained models tell it roughly.
    """

    auc: float | None = setting(None, gt=0, lt=0.5)
    tpr: float | None = setting(None, gt=0, lt=1)
    fpr: float = setting(0.01, gt=0, lt=1)
    expected_tpr: float | None = setting(None, gt=0, lt=1)
    sample_auc: float | None = setting(None, gt=0, lt=0.5)
    epsilon: float | None = setting(None, gt=0)
    seed_auc: float | None = setting(None, gt=0, lt=0.5)
    seed_sd: float | None = setting(None, gt=0)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.seed_auc is not None and self.seed_sd is None:
            raise ConfigError(
                "seed_auc needs seed_sd, how much the AUC differs from seed to seed; got None. Take it from two or three retrained models."
            )
        if all(getattr(self, name) is None for name in ("auc", "tpr", "sample_auc", "epsilon", "seed_auc")):
            raise ConfigError("a plan needs a wish; got none. Pass auc=0.02, tpr=0.2, sample_auc=0.1, epsilon=2 or seed_auc=0.01.")


def plan_audit(
    n_forget: int,
    n_test: int,
    level: float = 0.95,
    *,
    seconds_per_training: float | None = None,
    seconds_per_unlearning: float | None = None,
    most_models: int | None = None,
    **wishes: float,
) -> AuditPlan:
    """Says beforehand what a wanted precision needs, what it costs, and what cannot be reached with the images at hand.

    Args:
        n_forget: forget images (members) at hand, ≥ 1. n_test: test images (non-members) at hand, ≥ 1.
        level: confidence in (0, 1).
        seconds_per_training, seconds_per_unlearning: > 0; an unlearning that is not given counts as nothing.
        most_models: the largest number of models of one kind that can be paid for; None = any.
        wishes: see `Wishes`.

    Raises:
        ConfigError: no wish, an unknown one, or a number outside its range.

    Cost: none worth mention.

    Departures: sizes are at the null (AUC 0.5), where intervals of a given number of images are widest. Samples of one class or of duplicates are worth less than their number.

    Example:
        >>> print(plan_audit(200, 10000, auc=0.02, tpr=0.2, sample_auc=0.1, seconds_per_training=60.0))
        AUC ± 0.02: NOT REACHABLE, needs 871 forget images with 10,000 test images, got 200; ± 0.0405 can be reached
        TPR at 1% FPR ± 20%: NOT REACHABLE, needs 19,267 forget and 19,500 test images for a TPR of 0.01, got 200 and 10,000; at a TPR of 0.948 or more or at 34% FPR it can be reached; at 1% the TPR is less precise
        AUC of each sample ± 0.1: 130 shadow models (of a pool: each unlearned once)
        together: 130 shadow, 0 unlearned and 3 retrained models: 134 trainings, 130 unlearnings, 2.2 h
    """
    for name, n in (("n_forget", n_forget), ("n_test", n_test)):
        if not is_integer(n, 1):
            raise ConfigError(f"{name} must be an integer ≥ 1; got {n!r}. Pass how many images there are.")
    for name, seconds in (("seconds_per_training", seconds_per_training), ("seconds_per_unlearning", seconds_per_unlearning)):
        if seconds is not None and not (0 < seconds < math.inf):
            raise ConfigError(f"{name} must be a number > 0; got {seconds!r}. Leave it out if it is not known.")
    unknown = wishes.keys() - set(Wishes.__dataclass_fields__)
    if unknown:
        raise ConfigError(
            f"a wish must be one of {', '.join(Wishes.__dataclass_fields__)}; got {', '.join(sorted(unknown))}. Pass auc=0.02, say."
        )
    asked, z = Wishes(**wishes), NormalDist().inv_cdf((1 + check_level(level)) / 2)
    most, needs = MOST if most_models is None else most_models, []
    if asked.auc is not None:
        needs.append(_auc(asked.auc, n_forget, n_test, z))
    if asked.tpr is not None:
        needs.append(_tpr(asked, asked.tpr, n_forget, n_test, z))
    if asked.sample_auc is not None:
        needs.append(_sample_auc(asked.sample_auc, z, most))
    if asked.epsilon is not None:
        needs.append(_epsilon(asked.epsilon, level, most))
    if asked.seed_auc is not None and asked.seed_sd is not None:
        needs.append(_seeds(asked.seed_auc, asked.seed_sd, level, most))
    return _total(needs, asked.sample_auc is not None, seconds_per_training, seconds_per_unlearning)


def auc_reach(n_forget: int, n_test: int, z: float = 1.959964) -> float:
    """Half the width of the interval of an AUC at the null.

    Example:
        >>> round(auc_reach(200, 10000), 3)
        0.04
    """
    return z * math.sqrt((n_forget + n_test + 1) / (12 * n_forget * n_test))


def _auc(m: float, n1: int, n0: int, z: float) -> Need:
    wish, reach = f"AUC ± {m:g}", auc_reach(n1, n0, z)
    if reach <= m:
        return Need(wish, True, {"forget_images": n1, "test_images": min(n0, _partner(m, n1, z) or n0)})
    needed = _partner(m, n0, z)
    missing = (
        f"needs {needed:,} forget images with {n0:,} test images, got {n1:,}"
        if needed
        else f"needs more than {math.floor(z**2 / (12 * m**2)):,} test images, got {n0:,}, and as many forget images"
    )
    return Need(wish, False, {}, f"{missing}; ± {math.ceil(reach * 1e4) / 1e4:g} can be reached")


def _partner(m: float, n: int, z: float) -> int | None:
    """How many images of the other kind give the AUC ± m with n of this kind; None if no number does."""
    room = 12 * n * m**2 / z**2 - 1
    return None if room <= 0 else math.ceil((n + 1) / room)


def _tpr(asked: Wishes, r: float, n1: int, n0: int, z: float) -> Need:
    # room: what the relative variances of found members and of the threshold may add up to. They multiply the TPR: ± r of it is asinh(r) of its logarithm.
    fpr, room = asked.fpr, (math.asinh(r) / z) ** 2
    wish, tpr = f"TPR at {100 * fpr:g}% FPR ± {100 * r:g}%", asked.expected_tpr or fpr
    odds, k = (1 - tpr) / tpr, false_positives(fpr, n0)
    reason = f"for a TPR of {tpr:g} or more"
    members, tests = math.ceil(2 * odds / room), _test_images(room / 2, fpr)
    if n1 >= members and n0 >= tests:
        return Need(wish, True, {"forget_images": members, "test_images": tests}, reason)
    if (
        k >= MIN_FALSE_POSITIVES and odds / n1 + 1 / k <= room
    ):  # of one kind fewer than half of the error asks for, of the other enough to make up for it
        if n1 < members:
            return Need(wish, True, {"forget_images": n1, "test_images": min(n0, _test_images(room - odds / n1, fpr))}, reason)
        return Need(wish, True, {"forget_images": min(n1, math.ceil(odds / (room - 1 / k))), "test_images": n0}, reason)
    could = _tpr_within_reach(asked, n1, n0, room, odds)
    reason = f"needs {members:,} forget and {tests:,} test images for a TPR of {tpr:g}, got {n1:,} and {n0:,}; {could}"
    if n0 < tests:
        weak = "refused" if k < MIN_FALSE_POSITIVES else "flagged as underpowered" if k < FEW_FALSE_POSITIVES else "less precise"
        reason += f"; at {100 * fpr:g}% the TPR is {weak}"
    return Need(wish, False, {}, reason)


def _test_images(variance: float, fpr: float) -> int:
    """How many non-members give the threshold this relative variance, 1/k."""
    return math.ceil(max(math.ceil(1 / variance - 1e-9), MIN_FALSE_POSITIVES) / fpr - 1e-9)


def _tpr_within_reach(asked: Wishes, n1: int, n0: int, room: float, odds: float) -> str:
    """The FPR, and the TPR at the FPR asked for, from which on the images at hand are enough."""
    k, could = false_positives(asked.fpr, n0), []
    if k >= MIN_FALSE_POSITIVES and 1 / k < room:
        could.append(f"at a TPR of {math.ceil(1000 / (1 + n1 * (room - 1 / k))) / 1000:g} or more")
    if asked.expected_tpr is None:  # the TPR is the FPR: (1 − f)/(f n₁) + 1/(f n₀) ≤ room
        lowest = (1 / n1 + 1 / n0) / (room + 1 / n1)
    else:
        lowest = 1 / (n0 * (room - odds / n1)) if odds / n1 < room else math.inf
    lowest = max(lowest, MIN_FALSE_POSITIVES / n0)
    if lowest < 1 and (lowest := math.ceil(lowest * n0 - 1e-9) / n0) > asked.fpr:  # whole false positives
        could.append(f"at {_percent_up(lowest)}% FPR")
    return f"{' or '.join(could)} it can be reached" if could else "at no FPR can it be reached for this TPR"


def _percent_up(share: float) -> str:
    """In per cent with two digits, rounded up."""
    digits = 1 - math.floor(math.log10(100 * share))
    return f"{math.ceil(100 * share * 10**digits - 1e-9) / 10**digits:g}"


def _sample_auc(s: float, z: float, most: int) -> Need:
    wish, room = f"AUC of each sample ± {s:g}", (z / s) ** 2 / 3
    m = math.ceil((room + math.sqrt(room**2 + 4 * room)) / 2)  # M² ≥ room · (M + 1)
    m += m % 2
    if m > most:
        reach = z * math.sqrt((most + 1) / 3) / most
        return Need(wish, False, {}, f"needs {m:,} shadow models, at most {most:,} can be had; ± {reach:.3g} can be reached")
    return Need(wish, True, {"shadow_models": max(m, SHADOWS)}, "of a pool: each unlearned once")


def _epsilon(epsilon: float, level: float, most: int) -> Need:
    wish, low, high = f"a perfect separation proves ε ≥ {epsilon:g}", 2, 4
    most = min(most, MOST) // 2  # counted models; as many choose the rule
    if most < 2 or epsilon_ceiling(most, level=level) < epsilon:
        could = epsilon_ceiling(max(most, 1), level=level)
        return Need(wish, False, {}, f"needs more than {2 * most:,} unlearned and as many retrained models; ε ≥ {could:.2f} can be reached")
    while epsilon_ceiling(high, level=level) < epsilon:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if epsilon_ceiling(middle, level=level) < epsilon else (low, middle)
    n = 2 * (low if epsilon_ceiling(low, level=level) >= epsilon else high)
    return Need(wish, True, {"unlearned_models": n, "retrained_models": n}, "half of them choose the rule")


def _seeds(m: float, sd: float, level: float, most: int) -> Need:
    wish = f"AUC difference of unlearned and retrained seeds ± {m:g}"

    def reach(n: int) -> float:
        return float(stdtrit(n - 1, (1 + level) / 2)) * sd * math.sqrt(2 / n)

    if reach(max(most, 2)) > m:
        return Need(wish, False, {}, f"needs more than {most:,} models of each kind; ± {reach(max(most, 2)):.3g} can be reached")
    n = max(2, math.ceil(2 * (NormalDist().inv_cdf((1 + level) / 2) * sd / m) ** 2))
    while reach(n) > m:
        n += 1
    return Need(wish, True, {"unlearned_models": n, "retrained_models": max(n, RETRAINED)}, f"if AUCs differ by {sd:g} from seed to seed")


def _total(needs: list[Need], pool: bool, per_training: float | None, per_unlearning: float | None) -> AuditPlan:
    shadows, unlearned, retrained = (max([0, *(need.needs.get(name, 0) for need in needs)]) for name in AMOUNTS[2:])
    shadows, retrained = max(shadows, SHADOWS), max(retrained, RETRAINED)
    trainings, unlearnings = 1 + shadows + retrained, unlearned + (shadows if pool else 0)
    seconds = None if per_training is None else trainings * per_training + unlearnings * (per_unlearning or 0.0)
    return AuditPlan(
        needs=tuple(needs), shadow_models=shadows, unlearned_models=unlearned, retrained_models=retrained, trainings=trainings,
        unlearnings=unlearnings, seconds=seconds,
    )  # fmt: skip
