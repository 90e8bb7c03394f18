import pytest
import torch

from expunge.audits.populations import checked_populations, matched
from expunge.errors import DataError


def numbered(n: int, start: int) -> torch.Tensor:
    """Models whose margins are their number, so that a row says who it is."""
    return torch.arange(start, start + n, dtype=torch.float64)[:, None].expand(-1, 3).contiguous()


def models(x: torch.Tensor) -> set[float]:
    return set(x[:, 0].tolist())


def test_halves_are_disjoint_and_of_one_size():
    groups = matched(numbered(9, 0), numbered(12, 100), None, 2, seed=3)
    (a, b), (c, d) = groups.ours
    assert groups.size == 4 == len(a) == len(b) == len(c) == len(d)
    assert not models(a) & models(c) and not models(b) & models(d)
    assert models(a) | models(c) <= set(range(9)) and models(b) | models(d) <= set(range(100, 112))
    assert [models(x) for x in groups.floor] == [models(b), models(d)]


def test_a_second_group_of_retrained_models_keeps_all_others_whole():
    unlearned, retrained, second = numbered(9, 0), numbered(12, 100), numbered(7, 200)
    groups = matched(unlearned, retrained, second, 2, seed=0)
    assert groups.size == 7 == len(groups.ours[0][0]) == len(groups.floor[0])
    assert models(groups.ours[0][1]) == models(groups.floor[1]) == models(retrained)
    assert models(groups.floor[0]) == models(second)


def test_redrawn_groups_stay_apart_and_a_shared_one_is_drawn_once():
    groups = matched(numbered(40, 0), numbered(40, 100), None, 2, seed=0)
    again = groups.redrawn(torch.Generator().manual_seed(0))
    assert torch.equal(again.ours[0][1], again.floor[0]) and torch.equal(again.ours[1][1], again.floor[1])
    assert not models(again.floor[0]) & models(again.floor[1])
    assert all(models(x) <= models(y) for new, old in zip(again.ours, groups.ours, strict=True) for x, y in zip(new, old, strict=True))
    assert len(again.floor[0]) == 20 > len(models(again.floor[0]))


def test_too_few_models_have_no_match():
    assert matched(numbered(7, 0), numbered(20, 100), None, 4, seed=0) is None
    assert matched(numbered(8, 0), numbered(20, 100), None, 4, seed=0) is not None


def test_broken_margins_are_refused_by_the_name_of_their_group():
    good = numbered(4, 0)
    for broken, match in (
        (good[:, :0], "of shape"),
        (good[0], "of shape"),
        (good[:1], "at least 2 retrained models; got 1"),
        (good[:, :2], "margins of retrained models must be of the same 3 samples as the others; got 2"),
        (good / 0, "retrained models must be finite"),
    ):
        with pytest.raises(DataError, match=match):
            checked_populations(unlearned=good, retrained=broken)
