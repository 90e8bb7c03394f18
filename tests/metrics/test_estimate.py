import json
import math

import pytest
from scipy.stats import binomtest, ttest_1samp

from expunge.errors import ConfigError
from expunge.metrics import Estimate, mean_estimate, proportion_interval, unsupported


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_of_a_mean_is_students(level):
    values = [0.3, 0.1, 0.7, 0.65]
    found, expected = mean_estimate(values, level), ttest_1samp(values, 0).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high)) and found.n == 4
    assert mean_estimate(values, level, within=(0.4, 0.5)) == Estimate(found.value, max(0.4, found.low), min(0.5, found.high), 4)
    assert math.isnan(mean_estimate([0.3], level, within=(0.0, 1.0)).low)


@pytest.mark.parametrize(("k", "n", "level"), [(0, 10, 0.95), (3, 17, 0.95), (17, 17, 0.9), (500, 1000, 0.99)])
def test_proportion_interval_is_scipys_exact_one(k, n, level):
    expected = binomtest(k, n).proportion_ci(level, method="exact")
    assert proportion_interval(k, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_unsupported_estimate_says_why_and_has_no_value():
    estimate = unsupported("too few", n=3)
    assert not estimate.supported and math.isnan(estimate.value)
    assert str(estimate) == f"{estimate:.1%}" == "n/a (too few)"


def test_an_estimate_goes_through_strict_json():
    assert json.loads(json.dumps(unsupported("x", 1).to_dict(), allow_nan=False)) == {
        "value": None,
        "low": None,
        "high": None,
        "n": 1,
        "note": "x",
    }
    assert Estimate(**json.loads(json.dumps(Estimate(0.5, 0.4, 0.6, 7).to_dict()))) == Estimate(0.5, 0.4, 0.6, 7)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_outside_its_range_is_refused(level):
    with pytest.raises(ConfigError, match="Pass 0"):
        proportion_interval(1, 2, level)
