import itertools
import json

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from expunge.errors import ConfigError, DataError
from expunge.metrics.ranking import _mean, holm, rank_methods, ties_with_best


def draws(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def ties_without_correction(gaps: dict) -> set[str]:
    """Each against the one that looks best, each at 95 %: the faulty way."""
    best = min(gaps, key=lambda name: gaps[name].mean())
    differences = {n: x - gaps[best] for n, x in gaps.items()}
    return {n for n, d in differences.items() if n == best or not d.mean() > 2.776 * d.std(ddof=1) / 5**0.5}  # t of 4 degrees of freedom


def test_holm_equals_the_step_by_step_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(6) ** 3
        adjusted = np.array(holm(p.tolist()))
        for alpha in (0.01, 0.05, 0.2):
            rejected, order = set(), np.argsort(p)
            for r, i in enumerate(order):
                if p[i] > alpha / (6 - r):
                    break
                rejected.add(int(i))
            assert set(np.flatnonzero(adjusted <= alpha).tolist()) == rejected


def test_pairs_have_the_paired_t_test_of_scipy():
    gaps = {name: draws(i, 8) + i for i, name in enumerate("abc")}
    ranking = rank_methods(gaps)
    raw = [ttest_1samp(gaps[p.worse] - gaps[p.better], 0).pvalue for p in ranking.pairs]
    assert [p.p for p in ranking.pairs] == pytest.approx(holm(raw))


def test_equal_methods_are_ties_in_at_least_95_percent_and_without_correction_they_are_not():
    """Twelve methods that are all the same, 5 seeds."""
    right, kept, faulty = 0, 0, 0
    for r in range(150):
        gaps = {str(i): x for i, x in enumerate(draws(r, 12, 5))}
        right += len(rank_methods(gaps).groups) == 1
        kept += "0" in ties_with_best(gaps)
        faulty += len(ties_without_correction(gaps)) == 12
    assert right >= 134 and kept >= 134 and faulty < 90  # 134 is 3 standard errors below 142.5


def test_the_truly_best_stays_among_the_best_and_clearly_worse_ones_leave():
    kept, left = 0, 0
    for r in range(200):
        gaps = {str(i): x + 0.2 * (i > 0) + 3 * (i > 5) for i, x in enumerate(draws(1000 + r, 8, 10))}
        best = ties_with_best(gaps)
        kept, left = kept + ("0" in best), left + ("7" not in best)
    assert kept >= 185 and left >= 190


def test_ranks_and_groups_overlap_where_the_middle_ties_with_both_ends():
    noise = draws(0, 3, 6) * 0.01
    gaps = {"low": noise[0], "middle": noise[1] + np.array([0.5, -0.5, 1.5, 0.2, 0.9, 0.4]), "high": noise[2] + 1}
    ranking = rank_methods(gaps)
    assert ranking.names == ("low", "middle", "high")
    assert ranking.ranks == {"low": (1, 2), "middle": (1, 3), "high": (2, 3)}
    assert ranking.groups == (("low", "middle"), ("middle", "high")) and set(ranking.best) >= {"low", "middle"}


def test_clearly_different_methods_have_ranks_of_their_own():
    gaps = {name: draws(i, 20) * 0.1 + 5 * i for i, name in enumerate("abcd")}
    ranking = rank_methods(dict(reversed(gaps.items())))
    assert ranking.ranks == {name: (i + 1, i + 1) for i, name in enumerate("abcd")} and ranking.best == ("a",)
    assert len(ranking.groups) == 4 and all(len(group) == 1 for group in ranking.groups)


def test_pairing_on_seeds_finds_what_two_separate_intervals_hide():
    shared = 10 * draws(0, 10)
    gaps = {"a": shared + 0.1 * draws(1, 10), "b": shared + 1 + 0.1 * draws(2, 10)}
    ranking = rank_methods(gaps)
    assert ranking.best == ("a",) and ranking.means["a"].high > ranking.means["b"].low


def test_seeds_and_samples_are_both_units():
    """Differences with effects of seeds and of samples: the error of the mean over 4 seeds × 30 samples against its true spread."""
    means = [_mean(draws(r, 4, 1) + draws(500 + r, 1, 30) + draws(900 + r, 4, 30)) for r in range(300)]
    hits = sum(
        abs(m.value) <= 1.0 * m.error * np.abs(np.quantile(np.random.default_rng(0).standard_t(m.freedom, 4000), 0.025)) for m in means
    )
    assert 0.9 <= hits / 300 <= 0.985
    naive = [
        abs(m.value) <= 1.96 * np.std(draws(r, 4, 1) + draws(500 + r, 1, 30) + draws(900 + r, 4, 30)) / 120**0.5
        for r, m in enumerate(means)
    ]
    assert np.mean(naive) < 0.6  # as if 120 numbers were independent


def test_two_seeds_and_a_thousand_samples_hold_the_truth_and_satterthwaite_would_not():
    hits, faulty = 0, 0
    for r in range(400):
        x = draws(r, 2, 1) + draws(500 + r, 1, 200) + 0.3 * draws(900 + r, 2, 200)
        mean, by_seed, by_sample = _mean(x), 200 * x.mean(1).var(ddof=1), 2 * x.mean(0).var(ddof=1)
        hits += abs(mean.value) <= student.ppf(0.975, mean.freedom) * mean.error
        freedom = (by_seed + by_sample) ** 2 / (by_seed**2 + by_sample**2 / 199)
        faulty += abs(mean.value) <= student.ppf(0.975, freedom) * mean.error
    assert hits >= 374 and faulty < 367  # 3 standard errors below 95 %


def test_equal_differences_under_two_seeds_are_two_signs_however_many_samples():
    shared = draws(0, 2, 1000)
    ranking = rank_methods({"a": shared, "b": shared + 1, "c": shared + 2})
    assert ranking.best == ("a", "b", "c") and min(pair.p for pair in ranking.pairs) >= 0.5
    assert rank_methods({"a": np.zeros(1000), "b": np.ones(1000)}).best == ("a",)  # a thousand units


def test_one_seed_ranks_by_samples():
    gaps = {"a": draws(0, 1, 200), "b": draws(0, 1, 200) + draws(1, 1, 200) * 0.1 + 0.2}
    assert rank_methods(gaps).best == ("a",)


def test_three_seeds_without_spread_prove_nothing_by_themselves():
    ranking = rank_methods({"a": [1.0, 1.0, 1.0], "b": [2.0, 2.0, 2.0]})
    assert ranking.pairs[0].p == 0.25 and ranking.groups == (("a", "b"),)
    assert rank_methods({"a": [1.0, 2.0], "b": [1.0, 2.0]}).pairs[0].p == 1.0


def test_the_order_of_methods_does_not_matter():
    gaps = {name: draws(i, 6) + 0.5 * i for i, name in enumerate("abcd")}
    found = {str(rank_methods({name: gaps[name] for name in order})) for order in itertools.permutations(gaps)}
    assert len(found) == 1


def test_a_ranking_prints_and_becomes_json():
    ranking = rank_methods({name: draws(i, 6) + 3 * i for i, name in enumerate("ab")})
    assert "could be the best" in str(ranking) and json.loads(json.dumps(ranking.to_dict()))["names"] == ["a", "b"]


@pytest.mark.parametrize(
    ("gaps", "error", "match"),
    [
        ({"a": [1.0, 2.0]}, ConfigError, "at least two methods"),
        ({"a": [1.0, 2.0], "b": [1.0]}, DataError, "same seeds"),
        ({"a": [1.0], "b": [1.0]}, DataError, "at least 2 seeds"),
        ({"a": [1.0, 2.0], "b": [1.0, float("nan")]}, DataError, "'b' must be finite"),
    ],
)
def test_unusable_gaps_are_refused(gaps, error, match):
    with pytest.raises(error, match=match):
        rank_methods(gaps)
