import copy
import json
import math

import numpy as np
import pytest
import torch
from scipy.special import stdtrit
from torch import nn

import oracles
from expunge.audits import over_unlearning
from expunge.audits.compared import difference
from expunge.audits.over_unlearning import OverUnlearning, without_classes
from expunge.costs import measure_cost
from expunge.data.images import ImageData
from expunge.data.split import forget_classes, forget_samples
from expunge.errors import ConfigError, DataError
from expunge.models.normalize import Normalize
from expunge.training.inference import logits_of
from expunge.training.recipe import Recipe, train_model

FORGOTTEN = 3


def build() -> nn.Module:
    return nn.Sequential(Normalize([0.3], [0.37]), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@pytest.fixture(scope="module")
def forgotten(digits):
    train = ImageData(digits[0].images[:300], digits[0].labels[:300], digits[0].classes)
    split, recipe = forget_classes(train, [FORGOTTEN]), Recipe(epochs=10, batch_size=50)
    original = train_model(build, train, recipe, seed=0, device="cpu")
    retrained = [train_model(build, split.retain, recipe, seed=k, device="cpu") for k in (1, 2, 3)]
    masked, ruined = copy.deepcopy(original), copy.deepcopy(original)
    with torch.no_grad():
        masked[4].bias[FORGOTTEN] -= 200
        ruined[4].weight.mul_(0.01)
    return {"original": original, "masked": masked, "ruined": ruined, "retrained": retrained}, split


def images_of(data) -> torch.Tensor:
    return data.fetch(torch.arange(len(data)))


def runner_up(model, data) -> torch.Tensor:
    return logits_of(model, data).scatter(1, data.labels[:, None], -math.inf).argmax(1)


def gap_to_runner_up(model, images, target) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images).log_softmax(1).gather(1, target[:, None])[:, 0]


def faulty_images(model, data, eps=0.03, step=0.01, steps=3, sign=1) -> torch.Tensor:
    """What public code does (D13): normalised images are clamped to [0, 1], and the gradient of the runner-up's loss is added. Returned in image units."""
    normalize, rest, target = model[0], model[1:].eval(), runner_up(model, data)
    x = normalize(images_of(data))
    walked = x.clamp(0, 1)
    for _ in range(steps):
        walked = walked.detach().requires_grad_()
        gradient = torch.autograd.grad(nn.functional.cross_entropy(rest(walked), target, reduction="sum"), walked)[0]
        walked = (torch.max(torch.min(walked + sign * step * gradient.sign(), x + eps), x - eps)).clamp(0, 1)
    return walked.detach() * normalize.std[0] + normalize.mean[0]


def test_images_stay_within_eps_and_in_the_unit_range_of_the_image(forgotten):
    """D13: clamped to [0, 1] after normalisation, every pixel darker than the mean becomes the mean: here by up to 0.3 where eps is 0.03."""
    models, split = forgotten
    x = images_of(split.forget)
    for perturbation in ("pgd", "gaussian"):
        near = OverUnlearning(perturbation=perturbation).perturbed(models["original"], split.forget)
        assert near.min() >= 0 and near.max() <= 1
        assert (near - x).abs().max() <= (0.03 if perturbation == "pgd" else 0.06)
        assert ((near - x).abs().flatten(1).max(1).values > 0.02).all()
    faulty = faulty_images(models["original"], split.forget)
    assert (faulty - x).abs().max() > 0.29


def test_the_walk_goes_towards_the_runner_up(forgotten):
    """Public code adds the gradient of its loss: away from it."""
    models, split = forgotten
    model, forget = models["original"], split.forget
    target, x = runner_up(model, forget), images_of(forget)
    start = gap_to_runner_up(model, x, target)
    assert (gap_to_runner_up(model, OverUnlearning().perturbed(model, forget), target) > start).double().mean() > 0.95
    plain = copy.deepcopy(model)  # without Normalize, so that only the direction differs
    with torch.no_grad():
        plain[0].mean.zero_()
        plain[0].std.fill_(1)
    start = gap_to_runner_up(plain, x, runner_up(plain, forget))
    assert (gap_to_runner_up(plain, faulty_images(plain, forget), runner_up(plain, forget)) < start).double().mean() > 0.95


def test_pgd_is_signed_steps_of_the_gradient_written_out(forgotten):
    models, split = forgotten
    plain = copy.deepcopy(models["original"])
    with torch.no_grad():
        plain[0].mean.zero_()
        plain[0].std.fill_(1)
    ours, theirs = OverUnlearning(batch_size=7).perturbed(plain, split.forget), faulty_images(plain, split.forget, sign=-1)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_the_divergence_is_that_of_the_masked_and_renormalised_original(forgotten):
    models, split = forgotten
    audit = OverUnlearning()
    result = audit(models, split)
    near = audit.perturbed(models["original"], split.forget)
    with torch.no_grad():
        p, q = (model.eval()(near).double() for model in (models["original"], models["retrained"][0]))
    rest = torch.cat([p[:, :FORGOTTEN], torch.full((len(p), 1), -1e4), p[:, FORGOTTEN + 1 :]], 1)
    expected = np.mean([oracles.jsd(a, b) for a, b in zip(rest.tolist(), q.tolist(), strict=True)])
    assert result["retrained"].divergence.value == pytest.approx(expected, abs=1e-6)


def test_a_model_that_only_lost_the_class_is_at_0_and_a_ruined_one_is_above_retraining(forgotten):
    models, split = forgotten
    for perturbation in ("pgd", "gaussian"):
        result = OverUnlearning(perturbation=perturbation)(models, split)
        assert result["masked"].divergence.value < 1e-6 and result["masked"].difference.value < 0
        assert result["ruined"].divergence.value > result["retrained"].divergence.value
        assert 0 < result.floor.value < math.log(2) and result.floor.n == 3
        assert [row.model for row in result.rows] == ["masked", "ruined", "retrained", "retrained 2", "retrained 3"]
        assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict() and "ruined" in str(result)


def test_models_and_generators_stay_as_they_are_and_the_audit_repeats(forgotten):
    models, split = forgotten
    before = copy.deepcopy(models["original"].state_dict())
    random = torch.get_rng_state(), np.random.get_state()[1].copy()
    for audit in (OverUnlearning(), OverUnlearning(perturbation="gaussian")):
        assert audit(models, split).to_dict() == audit(models, split).to_dict()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), models["original"].state_dict().values(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in models["original"].parameters())
    assert torch.equal(torch.get_rng_state(), random[0]) and (np.random.get_state()[1] == random[1]).all()


def test_noise_is_normal_and_a_function_of_the_sample(forgotten):
    models, split = forgotten
    grey = ImageData(torch.full((50, 1, 8, 8), 0.5), split.forget.labels[:1].repeat(50), split.forget.classes)
    noise = OverUnlearning(perturbation="gaussian", std=0.02).perturbed(models["original"], grey) - 0.5
    assert float(noise.std()) == pytest.approx(0.02, rel=0.05) and abs(float(noise.mean())) < 0.001
    assert float((noise.abs() < 0.02).double().mean()) == pytest.approx(0.683, abs=0.03)
    few = OverUnlearning(perturbation="gaussian", std=0.02, batch_size=3).perturbed(models["original"], grey.subset([4, 9])) - 0.5
    assert torch.equal(few, noise[[4, 9]])
    assert not torch.equal(OverUnlearning(perturbation="gaussian", seed=1).perturbed(models["original"], grey) - 0.5, noise)


def test_passes_are_counted(forgotten):
    models, split = forgotten
    n = len(split.forget)
    with measure_cost() as cost:
        OverUnlearning()({"original": models["original"], "retrained": models["retrained"][0]}, split)
    assert cost.input_gradients.total() == 3 * n and cost.backward.total() == 0
    assert cost.forward.total() == (1 + 3 + 2) * n + 2 * min(8, n)  # runner-up, steps, both models; and a check of eight images, twice


def test_what_has_no_classes_to_leave_aside_is_refused(forgotten):
    models, split = forgotten
    with pytest.raises(DataError, match="whole forgotten classes"):
        OverUnlearning()(models, forget_samples(split.train, range(20)))
    with pytest.raises(ConfigError, match="one 'original' and at least one 'retrained'"):
        OverUnlearning()({"retrained": models["retrained"]}, split)
    with pytest.raises(DataError, match="at least one class must stay"):
        without_classes(torch.zeros(1, 2), [0, 1])
    for bad in ({"perturbation": "fgsm"}, {"eps": 0.0}, {"step": 0.1}, {"steps": 0}, {"std": -1.0}):
        with pytest.raises(ConfigError, match=f"OverUnlearning: {next(iter(bad))} must be"):
            OverUnlearning(**bad)


@pytest.mark.parametrize("m", [3, 10])
def test_the_paired_difference_of_one_more_retrained_model_holds_0(m):
    """It has a seed of its own: s² (1 + 1/M). With s²/M only, half of further retrained models are told apart from the ten."""
    rng, ours, faulty, runs = np.random.default_rng(m), 0, 0, 1000
    for _ in range(runs):
        shared = rng.standard_normal(200)
        own, *others = (torch.from_numpy(shared + 0.1 * rng.standard_normal(200) + rng.standard_normal()) for _ in range(m + 1))
        others = torch.stack(others)
        found = difference(own, others)
        ours += found.low <= 0 <= found.high
        faulty += abs(found.value) <= float(stdtrit(m - 1, 0.975)) * math.sqrt(float(others.mean(1).var()) / m) + 0.02
    assert 0.93 <= ours / runs <= 0.975
    assert faulty / runs < (0.9 if m == 3 else 0.6)


def test_images_are_perturbed_block_by_block_and_of_many_some_evenly_spread(forgotten, monkeypatch):
    models, split = forgotten
    whole, sizes, perturbed = OverUnlearning(batch_size=4)(models, split).to_dict(), [], OverUnlearning.perturbed
    monkeypatch.setattr(over_unlearning, "AT_A_TIME", 5)
    monkeypatch.setattr(OverUnlearning, "perturbed", lambda self, model, data: sizes.append(len(data)) or perturbed(self, model, data))
    parts = OverUnlearning(batch_size=4)(models, split).to_dict()
    assert max(sizes) == 5 and sum(sizes) == len(split.forget)
    for a, b in zip(whole["rows"], parts["rows"], strict=True):
        assert b["divergence"]["value"] == pytest.approx(a["divergence"]["value"], abs=1e-6)
    assert OverUnlearning(max_images=7)(models, split).n == 7
