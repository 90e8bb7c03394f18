import importlib
import json

import numpy as np
import pytest
import torch

from expunge.audits.cka import cka, cka_to_retrained
from expunge.errors import ConfigError, DataError
from expunge.training.features import features_at, stages
from toys import toy_net

module = importlib.import_module("expunge.audits.cka")  # expunge.audits.cka is the function


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic(x: torch.Tensor, y: torch.Tensor, debiased: bool) -> float:
    """With whole kernels, as in the papers."""
    n, k, ell = len(x), x @ x.T, y @ y.T
    if not debiased:
        h = torch.eye(n, dtype=torch.float64) - 1 / n
        return float((k @ h @ ell @ h).trace())
    k, ell, one = k - k.diag().diag(), ell - ell.diag().diag(), torch.ones(n, dtype=torch.float64)
    terms = (k @ ell).trace() + (one @ k @ one) * (one @ ell @ one) / ((n - 1) * (n - 2)) - 2 * (one @ k @ ell @ one) / (n - 2)
    return float(terms / (n * (n - 3)))


def by_kernels(x: torch.Tensor, y: torch.Tensor, debiased: bool) -> float:
    return hsic(x, y, debiased) / (hsic(x, x, debiased) * hsic(y, y, debiased)) ** 0.5


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize(("n", "d", "e"), [(30, 4, 6), (9, 40, 30), (12, 3, 200)])
def test_value_and_interval_are_those_of_whole_kernels_and_of_a_loop_that_leaves_images_out(debiased, n, d, e):
    x, y = noise(n, d, seed=1) + 5, noise(n, e, seed=2)
    y[:, :3] += 2 * x[:, :3]
    without = np.array([by_kernels(x[torch.arange(n) != i], y[torch.arange(n) != i], debiased) for i in range(n)])
    found = cka(x, y, debiased=debiased)
    assert found.value == pytest.approx(by_kernels(x, y, debiased), abs=1e-9)
    assert found.value - found.low == pytest.approx(1.959964 * ((n - 1) / n * ((without - without.mean()) ** 2).sum()) ** 0.5, rel=1e-5)


def test_both_ways_to_compute_agree_in_blocks_too(monkeypatch):
    x, y = noise(20, 15, seed=1), noise(20, 15, seed=2)
    small = module._row_sums(x, y)
    monkeypatch.setattr(module, "ROWS", 45)
    wide = torch.cat([x, torch.zeros(20, 200)], 1), torch.cat([y, torch.zeros(20, 200)], 1)  # zeros change nothing but the way
    assert torch.allclose(module._row_sums(*wide), small)


def test_rotation_scale_and_shift_do_not_matter_and_unrelated_features_are_unlike():
    x = noise(60, 8, seed=1)
    rotation = torch.linalg.qr(noise(8, 8, seed=2)).Q
    for debiased in (True, False):
        assert cka(x, 7 * x @ rotation + 3, debiased=debiased).value == pytest.approx(1)
    assert cka(x * 1e-6, x * 1e6).value == pytest.approx(1)


def test_the_biased_estimate_of_unrelated_features_is_near_one_with_few_images_and_the_debiased_is_zero():
    pairs = [(noise(20, 200, seed=2 * s), noise(20, 200, seed=2 * s + 1)) for s in range(40)]
    assert min(cka(x, y, debiased=False).value for x, y in pairs) > 0.85
    values = [cka(x, y).value for x, y in pairs]
    assert abs(np.mean(values)) < 3 * np.std(values) / 40**0.5 + 0.02


def test_the_interval_covers_the_truth():
    """y is x and as many dimensions of noise: of the population, CKA = ‖Cov(x, y)‖² / (‖Cov x‖ ‖Cov y‖) = 5 / √(5 · 10)."""
    covered = 0
    for seed in range(150):
        x = noise(100, 5, seed=2 * seed)
        found = cka(x, torch.cat([x, noise(100, 5, seed=2 * seed + 1)], 1))
        covered += found.low <= 0.5**0.5 <= found.high
    assert covered >= 0.9 * 150


@pytest.mark.parametrize("debiased", [True, False])
def test_one_more_retrained_model_has_no_gap_and_another_has(debiased):
    covered = 0
    for seed in range(40):
        shared = noise(80, 6, seed=seed)
        models = [{"a": shared + (0.3 + 0.1 * k) * noise(80, 6, seed=1000 * k + seed)} for k in (2, 1, 2, 3, 0)]
        found = cka_to_retrained(models[0], models[1:], debiased=debiased)["a"]
        covered += found.gap.low <= 0 <= found.gap.high
    assert covered >= 36
    other = cka_to_retrained({"a": noise(80, 6, seed=99)}, models[1:], debiased=debiased)["a"]
    assert other.gap.high < -0.2 and other.to_retrained.value < other.floor.value


def test_a_changed_last_layer_leaves_every_other_layer_as_the_original(digits):
    """What audits of answers cannot see: CKA to the original is 1, whatever the answers are."""
    images, model = digits[0].subset(range(100)), toy_net()
    changed = toy_net()
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed[-1].weight.copy_(changed[-1].weight.flip(0))
    layers = stages(model, images)
    ours, theirs = (features_at(x, layers, images) for x in (changed, model))
    for similarity in cka_to_retrained(ours, [theirs]).values():
        assert similarity.to_retrained.value == pytest.approx(1, abs=1e-6)
    assert all(not module._forward_hooks for module in changed.modules())


def test_few_models_say_so_and_results_are_plain_values():
    features = [{"a": noise(20, 3, seed=k), "b": noise(20, 4, seed=k + 9)} for k in range(3)]
    one = cka_to_retrained(features[0], features[1:2])
    assert list(one) == ["a", "b"] and not one["a"].gap.supported and "one retrained" in one["a"].to_retrained.note
    two = cka_to_retrained(features[0], features[1:])["a"]
    assert "two retrained" in two.gap.note and json.loads(json.dumps(two.to_dict()))["n_retrained"] == 2
    assert "among them" in str(two)


def test_features_that_do_not_vary_are_not_supported():
    assert not cka(torch.ones(10, 3), noise(10, 3)).supported
    single = torch.zeros(10, 3)
    single[0] = 1  # nothing is left without this image
    assert not cka(single, noise(10, 3), debiased=False).supported
    assert "do not vary" in cka_to_retrained({"a": torch.ones(9, 2)}, [{"a": noise(9, 2)}] * 2)["a"].gap.note


def test_bad_inputs_are_refused():
    x, broken = noise(9, 4), noise(9, 4)
    broken[0, 0] = torch.nan
    with pytest.raises(DataError, match="finite; got 1"):
        cka(x, broken)
    with pytest.raises(DataError, match="same N images"):
        cka(x, x[:8])
    with pytest.raises(DataError, match="same N images"):
        cka(x, x[:, :, None])
    with pytest.raises(DataError, match="at least 5 images; got 4"):
        cka(x[:4], x[:4])
    with pytest.raises(ConfigError, match="level"):
        cka(x, x, level=2.0)
    with pytest.raises(DataError, match="no 'a' in one"):
        cka_to_retrained({"a": x}, [{"b": x}])
    with pytest.raises(DataError, match="0 models"):
        cka_to_retrained({"a": x}, [])


def test_the_floor_of_the_gap_is_that_of_each_retrained_model_held_against_the_others():
    noise = torch.Generator().manual_seed(3)
    shared = torch.randn(60, 6, generator=noise)
    models = [{"body": shared + 0.5 * torch.randn(60, 6, generator=noise)} for _ in range(5)]
    found = cka_to_retrained(models[0], models[1:])["body"]
    each = [cka_to_retrained(one, [other for other in models[1:] if other is not one])["body"].gap.value for one in models[1:]]
    assert [found.gap_floor.low, found.gap_floor.high] == pytest.approx([min(each), max(each)])
    assert found.gap_floor.value == pytest.approx(sum(each) / 4) and found.gap_floor.n == 4
    assert "needs three" in cka_to_retrained(models[0], models[1:3])["body"].gap_floor.note
