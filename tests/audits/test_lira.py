import functools
import math

import pytest
import torch

import oracles
from expunge.audits import LiRA, lira, lira_leave_one_out
from expunge.errors import ConfigError, DataError
from expunge.metrics import auc
from oracles import halves


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("variance", ["per_example", "fixed", "shrunk"])
@pytest.mark.parametrize("online", [True, False])
def test_lira_equals_the_loop(variance, online):
    included = halves(10, 40)
    shadow, target = noise(10, 40, seed=1) * 3 + included * 2 + 5, noise(40, seed=2) * 3 + 6
    expected = oracles.lira(target.numpy(), shadow.numpy(), included.numpy(), variance, online)
    torch.testing.assert_close(lira(target, shadow, included, variance, online), torch.tensor(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("drop_mates", [True, False])
@pytest.mark.parametrize("variance", ["per_example", "shrunk"])
def test_leave_one_out_equals_the_loop(variance, drop_mates):
    included = halves(8, 30)
    shadow = noise(8, 30, seed=1) + included + 100
    attack = functools.partial(oracles.lira, variance=variance)
    expected = oracles.leave_one_out(attack, shadow.numpy(), included.numpy(), drop_mates)
    fast = lira_leave_one_out(shadow, included, variance, drop_mates=drop_mates)
    torch.testing.assert_close(fast, torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variance", ["fixed", "shrunk"])
@pytest.mark.parametrize("online", [True, False])
def test_lira_on_gaussians_reaches_the_auc_of_theory(variance, online):
    """Margins N(μ_x, σ²) if x was not trained on and N(μ_x + Δ, σ²) if it was: AUC = Φ(Δ / (σ√2)), whatever the μ_x."""
    n, sigma, shift = 4000, 0.7, 1.0
    included = halves(400, n)
    centre, member = 5 * noise(n, seed=1), torch.arange(n) % 2 == 0
    shadow = centre + sigma * noise(400, n, seed=2) + shift * included
    scores = lira(centre + sigma * noise(n, seed=3) + shift * member, shadow, included, variance, online)
    truth, error = 0.5 * (1 + math.erf(shift / (2 * sigma))), math.sqrt((n + 1) / (12 * (n / 2) ** 2))
    assert auc(scores[member], scores[~member]).value == pytest.approx(truth, abs=3 * error)


@pytest.mark.parametrize("n_models", [8, 16, 64])
@pytest.mark.parametrize("variance", ["per_example", "shrunk"])
def test_pure_noise_gives_one_half_in_leave_one_out(n_models, variance):
    included = halves(n_models, 16000 // n_models)
    scores = lira_leave_one_out(noise(*included.shape, seed=1), included, variance)
    members, nonmembers = scores[included], scores[~included]
    error = math.sqrt((included.numel() + 1) / (12 * len(members) * len(nonmembers)))
    # √2: model t on model m and m on t are nearly the same term, so that only half of the terms are independent (measured: 1.4).
    assert auc(members, nonmembers).value == pytest.approx(0.5, abs=3 * math.sqrt(2) * error)


def test_keeping_the_mate_leaks_the_answer():
    """The group sizes then depend on the label of the target: 0.43 instead of 0.5, on noise."""
    included = halves(8, 2000)
    scores = lira_leave_one_out(noise(8, 2000, seed=1), included, "per_example", drop_mates=False)
    assert auc(scores[included], scores[~included]).value < 0.46


def test_fixed_variance_takes_the_out_deviation_from_out_scores():
    """Widely used code computes it from the IN scores."""
    included = halves(20, 200)
    shadow = torch.where(included, 1.0, 10.0) * noise(20, 200, seed=1)
    scores = lira(torch.full((200,), 4.0, dtype=torch.float64), shadow, included, "fixed")
    assert (scores < 0).all()  # 4 is four IN deviations, but less than half an OUT deviation from the common mean


def test_offline_is_one_sided():
    shadow, included = noise(6, 1, seed=1), torch.zeros(6, 1, dtype=torch.bool)
    below, above = (lira(torch.tensor([x]), shadow, included, "per_example", online=False).item() for x in (-30.0, 30.0))
    assert below < 0 < above  # a two-sided density would call both members unlikely


def test_shrinking_ends_in_the_other_two_variances():
    included, target = halves(10, 50), noise(50, seed=2)
    shadow = noise(10, 50, seed=1) * torch.linspace(0.5, 2, 50)
    for weight, variance in ((0.0, "per_example"), (1e12, "fixed")):
        torch.testing.assert_close(
            lira(target, shadow, included, prior_weight=weight), lira(target, shadow, included, variance), rtol=1e-6, atol=1e-6
        )


def test_constant_scores_are_no_evidence():
    included = halves(8, 20)
    assert lira(torch.full((20,), 3.3), torch.full((8, 20), 3.3), included).abs().max() == 0
    assert lira_leave_one_out(torch.full((8, 20), 3.3), included).abs().max() == 0


def test_scores_do_not_depend_on_order_and_own_variances_not_on_batch_mates():
    included, target = halves(10, 60), noise(60, seed=2)
    shadow, order = noise(10, 60, seed=1), torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for variance in ("per_example", "shrunk", "fixed"):
        scores = lira(target, shadow, included, variance)
        torch.testing.assert_close(lira(target[order], shadow[:, order], included[:, order], variance), scores[order], rtol=1e-9, atol=1e-9)
    part = lira(target[:7], shadow[:, :7], included[:, :7], "per_example")
    torch.testing.assert_close(part, lira(target, shadow, included, "per_example")[:7], rtol=1e-12, atol=1e-12)


def test_the_class_scores_margins():
    included, rng = halves(8, 12), torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 12, 4, generator=rng), torch.arange(12) % 4
    margins = torch.stack([torch.tensor([oracles.margin(r, int(y)) for r, y in zip(m, labels, strict=True)]) for m in logits])
    expected = oracles.lira(margins[8].double().numpy(), margins[:8].double().numpy(), included.numpy())
    torch.testing.assert_close(LiRA()(logits[8], labels, logits[:8], included), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_wrong_settings_are_refused():
    included = halves(8, 3)
    with pytest.raises(ConfigError, match="'shrunk', 'per_example', 'fixed'; got 'free'"):
        lira(torch.zeros(3), torch.zeros(8, 3), included, "free")
    with pytest.raises(ConfigError, match="prior_weight"):
        LiRA(prior_weight=-1.0)
    with pytest.raises(DataError, match="drop_mates=False"):
        lira_leave_one_out(torch.zeros(3, 3), torch.eye(3).bool())
    with pytest.raises(DataError, match="first: sample 0 with 1 and 1"):
        lira_leave_one_out(torch.zeros(4, 3), halves(4, 3))
