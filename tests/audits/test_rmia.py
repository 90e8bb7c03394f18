import functools
import math

import pytest
import torch

import oracles
from expunge.audits import RMIA, choose_offline_a, rmia, rmia_leave_one_out, rmia_log_ratio, rmia_ratio, rmia_share
from expunge.errors import ConfigError, DataError
from expunge.metrics import auc
from oracles import halves


def log_probs(*shape: int, seed: int = 0, shift=0.0) -> torch.Tensor:
    """log σ of normal log-odds, float64."""
    rng = torch.Generator().manual_seed(seed)
    return torch.nn.functional.logsigmoid(2 * torch.randn(*shape, generator=rng, dtype=torch.float64) + shift)


@pytest.mark.parametrize(("online", "a"), [(True, 0.3), (False, 0.0), (False, 0.4), (False, 1.0)])
def test_log_ratio_equals_the_loop(online, a):
    included = halves(8, 50)
    shadow, target = log_probs(8, 50, seed=1, shift=included), log_probs(50, seed=2)
    expected = oracles.rmia_log_ratio(target.numpy(), shadow.numpy(), included.numpy(), online, a)
    torch.testing.assert_close(rmia_log_ratio(target, shadow, included, online, a), torch.tensor(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("with_population", [True, False])
def test_score_equals_the_pairwise_matrix(gamma, with_population):
    included = halves(8, 80)
    shadow, target = log_probs(8, 80, seed=1), log_probs(80, seed=2)
    population = log_probs(30, seed=3) + 1 if with_population else None
    ratio = oracles.rmia_log_ratio(target.numpy(), shadow.numpy(), included.numpy())
    expected = oracles.rmia_share([math.exp(r) for r in ratio], gamma, None if population is None else population.exp().tolist())
    scores = rmia(target, shadow, included, gamma=gamma, population=population)
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_share_of_signed_ratios_equals_the_pairwise_matrix(gamma):
    ratio = torch.tensor([3.0, 1.0, 0.4, 0.0, -0.3, -1.0, -5.0, 2.0, 0.9])
    torch.testing.assert_close(rmia_share(ratio, gamma), torch.tensor(oracles.rmia_share(ratio.tolist(), gamma)), rtol=0, atol=1e-12)
    population = torch.tensor([-2.0, 0.0, 0.5, 1.5])
    expected = oracles.rmia_share(ratio.tolist(), gamma, population.tolist())
    torch.testing.assert_close(rmia_share(ratio, gamma, population), torch.tensor(expected), rtol=0, atol=1e-12)


def test_the_score_never_reverses_two_samples_of_the_log_ratio():
    included, target = halves(8, 300), log_probs(300, seed=2)
    shadow = log_probs(8, 300, seed=1)
    order = rmia_log_ratio(target, shadow, included).argsort()
    assert (rmia(target, shadow, included)[order].diff() >= 0).all()


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("drop_mates", [True, False])
def test_leave_one_out_equals_the_loop(online, drop_mates):
    included = halves(8, 30)
    shadow = log_probs(8, 30, seed=1, shift=included)
    attack = functools.partial(oracles.rmia_log_ratio, online=online)
    expected = oracles.leave_one_out(attack, shadow.numpy(), included.numpy(), drop_mates)
    torch.testing.assert_close(
        rmia_leave_one_out(shadow, included, online, drop_mates=drop_mates), torch.tensor(expected), rtol=1e-6, atol=1e-6
    )


def test_leave_one_out_keeps_its_digits_where_only_the_target_is_sure():
    included = halves(4, 1)
    shadow = torch.full((4, 1), -60.0)
    shadow[0] = 0.0  # subtracting its probability from the total would leave 1 − 1 = 0
    assert rmia_leave_one_out(shadow, included, drop_mates=False)[0].item() == pytest.approx(60.0, abs=1e-9)


@pytest.mark.parametrize("n_models", [8, 16, 64])
@pytest.mark.parametrize("online", [True, False])
def test_pure_noise_gives_one_half_in_leave_one_out(n_models, online):
    included = halves(n_models, 16000 // n_models)
    scores = rmia_leave_one_out(log_probs(*included.shape, seed=1), included, online)
    members, nonmembers = scores[included], scores[~included]
    error = math.sqrt((included.numel() + 1) / (12 * len(members) * len(nonmembers)))
    # √2: model t on model m and m on t are nearly the same term, so that only half of the terms are independent (measured: 1.4).
    assert auc(members, nonmembers).value == pytest.approx(0.5, abs=3 * math.sqrt(2) * error)


@pytest.mark.parametrize(
    "audit", [RMIA(), RMIA(online=False), RMIA(signal="taylor"), RMIA(online=False, signal="taylor", offline_a=0.3)], ids=repr
)
def test_a_planted_difference_is_found(audit):
    included, rng = halves(16, 400), torch.Generator().manual_seed(0)
    labels, member = torch.arange(400) % 3, torch.arange(400) % 2 == 0
    logits = torch.randn(17, 400, 3, generator=rng) + 2 * torch.randn(400, 3, generator=rng)
    seen = torch.cat([included, member[None]])
    logits.scatter_add_(2, labels.expand(17, 400)[..., None], 1.5 * seen[..., None])
    scores = audit(logits[16], labels, logits[:16], included)
    assert auc(scores[member], scores[~member]).low > 0.55


def test_taylor_ratio_is_the_target_over_the_plain_mean_of_all_references():
    shadow, target, included = torch.tensor([[0.5, -0.1], [0.7, 0.3]]), torch.tensor([0.9, -0.2]), halves(2, 2)
    torch.testing.assert_close(rmia_ratio(target, shadow, included), torch.tensor([1.5, -2.0], dtype=torch.float64))


def test_share_of_the_class_orders_samples_as_its_scores_do():
    included, rng = halves(8, 50), torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 50, 3, generator=rng), torch.arange(50) % 3
    audit = RMIA(gamma=1.0)
    scores, share = (f(logits[8], labels, logits[:8], included) for f in (audit, audit.share))
    assert (share[scores.argsort()].diff() >= 0).all() and share.min() == 0 and share.max() == 1


def test_offline_a_is_chosen_by_its_auc_on_the_shadow_models():
    included = halves(8, 400)
    shadow = log_probs(8, 400, seed=1, shift=1.5 * included)
    best = choose_offline_a(shadow, included)
    areas = {}
    for i in range(11):
        scores = rmia_leave_one_out(shadow, included, online=False, offline_a=i / 10)
        areas[i / 10] = sum(auc(r[m], r[~m]).value for r, m in zip(scores, included, strict=True))
    assert best == max(areas, key=areas.get)


def test_offline_a_is_chosen_without_the_samples_that_no_shadow_model_saw():
    included = halves(8, 100)
    unseen = torch.cat([included, torch.zeros(8, 5, dtype=torch.bool)], 1)
    shadow = log_probs(8, 105, seed=1)
    assert choose_offline_a(shadow, unseen) == choose_offline_a(shadow[:, :100], included)
    with pytest.raises(DataError, match="Pass offline_a"):
        choose_offline_a(shadow, torch.zeros(8, 105, dtype=torch.bool))


def test_log_ratios_do_not_depend_on_order_or_batch_mates():
    included, target = halves(8, 60), log_probs(60, seed=2)
    shadow, order = log_probs(8, 60, seed=1), torch.randperm(60, generator=torch.Generator().manual_seed(0))
    scores = rmia_log_ratio(target, shadow, included)
    torch.testing.assert_close(rmia_log_ratio(target[order], shadow[:, order], included[:, order]), scores[order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rmia_log_ratio(target[:7], shadow[:, :7], included[:, :7]), scores[:7], rtol=1e-12, atol=1e-12)


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="gamma"):
        rmia(torch.zeros(3), torch.zeros(2, 3), halves(2, 3), gamma=0.0)
    with pytest.raises(ConfigError, match="offline_a"):
        rmia_log_ratio(torch.zeros(3), torch.zeros(2, 3), halves(2, 3), False, 1.5)
    with pytest.raises(ConfigError, match="'softmax', 'taylor'"):
        RMIA(signal="sigmoid")
    with pytest.raises(DataError, match="one sample and no population"):
        rmia_share(torch.ones(1))
    with pytest.raises(DataError, match="Train more shadow models"):
        rmia_leave_one_out(torch.zeros(2, 3), halves(2, 3))
