"""Counting what a computation costs."""

import pytest
import torch

from expunge import measure_cost
from expunge.costs import count, sources

IDS = torch.arange(10)


def test_samples_are_counted_by_the_first_set_that_has_them_and_noise_by_its_name():
    with measure_cost() as cost, sources(forget=IDS[:3], retain=IDS[2:6]):
        count(IDS, forward=2, input_gradients=1)
        count(torch.tensor([0, 0, 5]), backward=1)
        count(IDS[:4], forward=1, source="noise")
    assert dict(cost.forward) == {"forget": 6, "retain": 6, "other": 8, "noise": 4}
    assert dict(cost.backward) == {"forget": 2, "retain": 1} and cost.input_gradients.total() == 10
    assert cost.passes(10) == pytest.approx((24 + 2 * 3 + 10) / 30)
    assert cost.to_dict()["backward"] == {"forget": 2, "retain": 1} and "forward: 6 forget" in str(cost)


def test_blocks_may_be_nested_and_nothing_is_counted_outside():
    count(IDS, forward=1)
    with measure_cost() as outer:
        count(IDS, forward=1)
        with measure_cost() as inner:
            count(IDS, forward=1)
        count(IDS, forward=1)
    count(IDS, forward=1)
    assert inner.forward.total() == 10 and outer.forward.total() == 30 and outer.seconds >= inner.seconds > 0


def test_an_error_inside_still_leaves_what_was_spent():
    with pytest.raises(RuntimeError), measure_cost() as cost:
        count(IDS, forward=1)
        raise RuntimeError
    count(IDS, forward=1)
    assert cost.forward.total() == 10 and cost.seconds > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="then the GPU's memory is measured")
def test_the_peak_is_that_of_the_block_also_around_another_block():
    with measure_cost() as outer:
        torch.ones(50_000_000).sum()  # 200 MB, and gone again
        with measure_cost() as inner:
            pass
    if outer.peak_memory is None:
        pytest.skip("the system does not tell")
    assert outer.peak_memory > 150e6 and inner.peak_memory < 100e6
