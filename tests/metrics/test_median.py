import math

import numpy as np
import pytest

from expunge.errors import ConfigError, DataError
from expunge.metrics.median import median


def coverage(n: int, k: int) -> float:
    """By counting how many of n fair coins fall heads: the interval from the k-th smallest misses if fewer than k do, or fewer than k tails."""
    return 1 - 2 * sum(math.comb(n, j) for j in range(k)) / 2**n


@pytest.mark.parametrize("n", [6, 7, 8, 9, 20, 51])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_interval_is_the_closest_pair_that_covers(n, level):
    found = median(range(1, n + 1), level=level)
    k = int(found.low)
    assert found.high == n + 1 - k
    if coverage(n, 1) < level:
        assert k == 1 and f"covers {100 * coverage(n, 1):.1f} %" in found.note
    else:
        assert coverage(n, k) >= level > coverage(n, k + 1) and found.note is None


def test_five_draws_do_not_make_95_percent():
    assert "93.8 %" in median([1, 2, 3, 4, 5]).note and median([1, 2, 3, 4, 5, 6]).note is None


def test_the_interval_covers_the_median_of_a_skewed_distribution():
    draws = np.random.default_rng(0).lognormal(size=(2000, 9))
    inside = np.mean([found.low <= 1 <= found.high for found in map(median, draws)])
    assert inside == pytest.approx(coverage(9, 2), abs=3 * math.sqrt(0.04 * 0.96 / 2000))


def test_what_is_beyond_the_cap_is_in_the_interval_and_not_averaged():
    found = median([2, 3, 4, 5, 6, 7, math.inf])
    assert (found.value, found.low, found.high) == (5, 2, math.inf) and "1 of 7 beyond" in found.note
    for hidden in ([1, 2, math.inf, math.inf], [1, math.inf, math.inf]):  # the median may be any number above 2, above 1
        assert not median(hidden, cap="100 steps").supported and "beyond 100 steps" in median(hidden, cap="100 steps").note


def test_draws_known_only_to_lie_between_two_numbers():
    found = median([1, 2, 3, 4, 5, 6, 0], [1, 2, 3, 4, 5, 6, 0.5])
    assert (found.value, found.low, found.high) == (3, 0, 6) and "1 of 7" in found.note
    assert not median([1, 2, 3], [1, 9, 3]).supported


def test_what_is_no_number_is_refused():
    for bad in ([], [1, math.nan]):
        with pytest.raises(DataError, match="a median needs numbers"):
            median(bad)
    with pytest.raises(DataError, match="to "):
        median([2.0], [1.0])
    with pytest.raises(ConfigError, match="level"):
        median([1.0], level=1.0)


def test_one_draw_has_a_value_and_no_interval():
    found = median([2.5])
    assert found.value == 2.5 and math.isnan(found.low) and math.isnan(found.high) and "no interval" in found.note
