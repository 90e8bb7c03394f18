"""IDI: what critics find where the truth is known, head distillation, and who is told apart from whom."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from expunge.audits import idi, idi_critics, probes
from expunge.audits.idi import IDI
from expunge.audits.idi_critics import Remaining, cautious, cut, held_out_information, info_nce
from expunge.audits.information import drawn_samples, information_difference_index
from expunge.audits.probes import Probes, probe_index
from expunge.data.images import ImageData
from expunge.data.split import forget_classes, forget_only, forget_samples
from expunge.errors import ConfigError, DataError, MissingError, ModelError
from expunge.metrics import auc, loss
from expunge.models.architecture import Architecture
from expunge.rng import fork
from expunge.training.features import features_at, stages
from expunge.training.head import last_linear
from expunge.training.inference import logits_of
from expunge.training.loop import sgd
from expunge.training.objectives import distillation
from expunge.training.recipe import Recipe, train_model
from toys import toy_net

FORGOTTEN = 10
QUICK = {"steps": 50, "lr": 0.001, "batch_size": 32}


def halves(n):
    """y and which samples to fit on, alternating."""
    return torch.arange(n) % 2 == 0, torch.arange(n) < n // 2


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def marked(digits: ImageData, n: int, seed: int) -> ImageData:
    """Digits with a bright first or last row, or both, or none. Exactly one of the two makes it class 10: no retained sample teaches that."""
    first, last = torch.rand(2, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    images = digits.images[:n].clone()
    images[first, :, 0], images[last, :, -1] = 255, 255
    return ImageData(images, torch.where(first ^ last, FORGOTTEN, digits.labels[:n]), (*digits.classes, "one mark"))


def head_distilled(original: nn.Module, data: ImageData) -> nn.Module:
    """Jeon et al.: the last layer alone learns, from the original's answers without the forgotten class."""
    model, masked = copy.deepcopy(original), torch.zeros(FORGOTTEN + 1)
    head, masked[FORGOTTEN] = last_linear(model, data), -30.0

    def objective(student, batch):
        with torch.no_grad():
            answers = original(batch.images)
        return distillation(student(batch.images), answers + masked)

    others = [module for module in model.modules() if module is not head]
    sgd(model, data, objective, epochs=10, lr=0.05, weight_decay=0.0, frozen=others, precision="float32", seed=0)
    return model


@pytest.fixture(scope="module")
def marks(digits):
    train, test = marked(digits[0], 400, 0), marked(digits[1], 400, 1)
    split, recipe = forget_classes(train, [FORGOTTEN]), Recipe(epochs=10, lr=0.1, batch_size=50)

    def build():  # dense: one convolution does not see both rows
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 11)
        )

    original = train_model(build, train, recipe, seed=0, device="cpu")
    retrained = [train_model(build, split.retain, recipe, seed=k, device="cpu") for k in (1, 2)]
    return {"original": original, "distilled": head_distilled(original, train), "retrained": retrained}, split, test


def reading(gain: float, k: int = 0) -> nn.Module:
    """Four features: gain · the first pixel + another one each, from the k-th four on. The first pixel tells the class, the others are noise."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(64)[1 + 4 * k : 5 + 4 * k] + gain * torch.eye(64)[0])
        model[1].bias.zero_()
    return model


@pytest.fixture(scope="module")
def pixels():
    """Class 1, which must leave, has a brighter first pixel; the original reads it well, retrained models a little."""
    labels, images = torch.arange(600) % 2, torch.rand(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = 0.25 + 0.5 * labels
    with fork(0):
        models = {
            "original": reading(2.0),
            "between": reading(0.8),
            "blind": reading(0.0),
            "retrained": [reading(0.4, k) for k in (1, 2, 3)],
        }
        models["same"] = copy.deepcopy(models["retrained"][0])
    return models, forget_classes(ImageData(images, labels, ("stays", "leaves")), [1])


def test_a_distilled_head_passes_audits_of_answers_and_has_the_idi_of_the_original(marks):
    models, split, test = marks
    unseen, areas = test.subset((test.labels == FORGOTTEN).nonzero().flatten()), {}
    for name, model in {"distilled": models["distilled"], "retrained": models["retrained"][0]}.items():
        seen = logits_of(model, split.forget)
        assert (seen.argmax(1) == FORGOTTEN).sum() == 0
        areas[name] = auc(-loss(seen, split.forget.labels), -loss(logits_of(model, unseen), unseen.labels))
    assert (logits_of(models["original"], split.forget).argmax(1) == FORGOTTEN).double().mean() > 0.95
    assert areas["distilled"].low < 0.5 and areas["retrained"].low < 0.5  # the attack finds no members in either
    assert areas["distilled"].value == pytest.approx(areas["retrained"].value, abs=0.1)

    found = IDI(seeds=2, **QUICK)(models, split, device="cpu")
    own, original = found["distilled"], found["original"]
    assert own.index.value == original.index.value == 1  # to the last bit: critics leave the head out
    assert [own.index.low, own.index.high] == pytest.approx([1, 1]) and own.information == original.information
    assert own.index.low > found.index_floor.high and own.differences[-1].low > 0.5


def test_idi_is_0_like_retraining_1_like_the_original_and_negative_where_less_is_left_than_by_retraining(pixels):
    models, split = pixels
    found = IDI(seeds=2, **QUICK)(models, split, device="cpu")
    assert found["original"].index.value == 1 and found["same"].information == found["retrained"].information
    assert found["same"].index.low <= 0 <= found["same"].index.high
    assert abs(found["same"].index.value) <= max(abs(found.index_floor.low), abs(found.index_floor.high))
    assert found.index_floor.high < found["between"].index.low and found["between"].index.high < 1
    assert found["blind"].index.high < 0 and found["blind"].index.value < found.index_floor.low
    assert all(math.isclose(sum(row.by_critic) / 2, row.index.value, abs_tol=0.05) for row in found.rows if row.by_critic)


def test_against_itself_alone_a_retrained_model_has_an_idi_of_zero_and_without_a_second_one_no_floor(pixels):
    models, split = pixels
    alone = {name: models[name] for name in ("original", "same")} | {"retrained": models["same"]}
    result = IDI(layers=("1",), seeds=2, **QUICK)(alone, split, device="cpu")
    assert result["same"].index.value == 0 and result["original"].index.value == 1
    assert result["retrained"].differences == () and not result["retrained"].index.supported and result["retrained"].by_critic == ()
    assert "one retrained model" in result["same"].index.note and not result.index_floor.supported


def test_the_audit_leaves_models_and_generators_alone_and_repeats(pixels):
    models, split = pixels
    few = {"original": models["original"], "retrained": models["retrained"][:2]}
    before = copy.deepcopy(few["original"].state_dict()), torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (IDI(max_per_side=60, seeds=2, seed=3, steps=20)(few, split, device="cpu") for _ in range(2))
    assert first.to_dict() == second.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), few["original"].state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), before[1]) and (np.random.get_state()[1] == before[2]).all()
    assert first.n == 60 and json.loads(json.dumps(first.to_dict(), allow_nan=False)) == first.to_dict()
    assert first.layers == ("1",) and "original" in str(first)


def test_idi_takes_the_samples_of_the_probes(pixels, monkeypatch):
    models, split = pixels
    drawn = []

    def noted(*args):
        drawn.append(drawn_samples(*args))
        raise StopIteration  # nothing need be trained

    for module, audit in ((idi, IDI(max_per_side=50, seed=7)), (probes, Probes(max_per_side=50, seed=7))):
        monkeypatch.setattr(module, "drawn_samples", noted)
        with pytest.raises(StopIteration):
            audit(models, split)
    for own, theirs in zip(*drawn, strict=True):
        assert torch.equal(own, theirs)


def test_info_nce_is_its_formula_and_its_ceiling_the_entropy_of_the_labels():
    scores, y = noise(9, 2), torch.arange(9) % 3 == 0
    slow = [scores[k, int(y[k])] - torch.stack([scores[k, int(y[j])] for j in range(9)]).exp().mean().log() for k in range(9)]
    assert info_nce(scores, y).tolist() == pytest.approx([float(i) / math.log(2) for i in slow], abs=1e-6)
    sure = torch.where(y[:, None] == torch.tensor([False, True]), 90.0, -90.0)
    entropy = -(math.log2(1 / 3) + 2 * math.log2(2 / 3)) / 3
    assert float(info_nce(sure, y).mean()) == pytest.approx(entropy, abs=1e-6) and entropy < math.log2(9)
    assert float(info_nce(torch.stack([sure, 0 * sure]), y)[1].abs().max()) < 1e-6  # a critic without an opinion: 0 bits


def test_independent_features_tell_nothing_and_separable_ones_everything():
    y, fit = halves(200)
    nothing = held_out_information(nn.Identity(), noise(200, 20), y, fit, seeds=range(3), **QUICK).mean(1)
    assert float(nothing.min()) > -0.2 and float(nothing.max()) < 0.05
    apart = held_out_information(nn.Identity(), noise(200, 20) + 4 * y[:, None], y, fit, seeds=range(3), **QUICK)
    assert float(apart.mean()) == pytest.approx(1 + math.log2(0.995), abs=0.01) and float(apart.max()) <= 1 + math.log2(0.995) + 1e-9


def test_the_bound_comes_close_to_the_mutual_information_and_not_above():
    n, grid = 4000, np.linspace(-9, 9, 20_001)  # z | y ~ N(±1, 1); the integral over a grid is the oracle
    y, fit = halves(n)
    bits = held_out_information(nn.Identity(), noise(n, 1) + torch.where(y, 1.0, -1.0)[:, None], y, fit, seeds=[0], **QUICK)
    density = np.exp(-((grid - 1) ** 2) / 2) / math.sqrt(2 * math.pi)
    truth = float((density * (1 - np.log2(1 + np.exp(-2 * grid)))).sum() * (grid[1] - grid[0]))
    assert float(bits.mean()) == pytest.approx(truth - 0.01, abs=0.01 + 3 * float(bits.mean(0).std()) / math.sqrt(n / 2))


def test_one_confident_mistake_does_not_outweigh_the_rest():
    scores = torch.tensor([[0.0, 900.0]] * 3)
    i = info_nce(cautious(scores), torch.tensor([True, True, False]))
    assert info_nce(scores, torch.tensor([True, True, False])).min() < -1000 and float(i[2]) > math.log2(0.005 / (1 / 3)) - 1


def test_critics_read_what_averaged_features_do_not_tell():
    """Stripes one way or the other: every feature map has the mean 0, and only the layers behind see which."""
    y, fit = halves(160)
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8)
    maps = torch.where(y[:, None, None, None], stripes, stripes.T) * noise(160, 1, 1, 1).sign() + 0.1 * noise(160, 1, 8, 8, seed=1)
    behind = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with fork(0):
        behind[0].reset_parameters()
    before = copy.deepcopy(behind.state_dict())
    found = held_out_information(behind, maps, y, fit, seeds=range(2), **QUICK | {"lr": 0.003})
    averaged = held_out_information(nn.Identity(), maps.mean((2, 3)), y, fit, seeds=range(2), **QUICK)
    assert float(found.mean()) > 0.8 and float(averaged.mean()) < 0.1
    assert all(torch.equal(before[name], value) for name, value in behind.state_dict().items())


def test_the_layers_behind_learn_and_not_the_projection_alone():
    y, fit = halves(200)
    z, behind = noise(200, 2), nn.Linear(2, 8)
    z[:, 1] += torch.where(y, 3.0, -3.0)
    with torch.no_grad():
        behind.weight.copy_(torch.tensor([1.0, 0.0]).repeat(8, 1))  # blind to what tells y, until it learns
    learnt, frozen = (held_out_information(behind, z, y, fit, seeds=[0], **QUICK | {"lr": lr}) for lr in (0.003, 1e-12))
    assert float(learnt.mean()) > 0.8 and float(frozen.mean()) < 0.05


@pytest.mark.parametrize("shape", [(6,), (2, 2, 4)])
def test_a_critic_depends_on_its_seed_alone_and_not_on_held_out_samples(shape, monkeypatch):
    monkeypatch.setattr(idi_critics, "PATIENCE", 20)  # so that some are done while others still learn
    y, fit = halves(80)
    z, options = noise(80, *shape) + 1.5 * y.view(-1, *(1,) * len(shape)), {"steps": 40, "lr": 0.01, "batch_size": 16}
    with fork(0):  # weights that differ from run to run let two critics meet now and then
        behind = nn.Identity() if len(shape) == 1 else nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    together = held_out_information(behind, z, y, fit, seeds=[0, 1, 2], **options)
    alone = torch.cat([held_out_information(behind, z, y, fit, seeds=[seed], **options) for seed in range(3)])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)
    assert len({round(float(own.mean()), 9) for own in together}) == 3
    z[-10:] = 100 * noise(10, *shape, seed=5)
    torch.testing.assert_close(held_out_information(behind, z, y, fit, seeds=[1], **options)[0, :-10], alone[1, :-10])


def test_the_scale_of_the_features_does_not_matter_and_a_critic_that_diverges_is_what_it_was_at_its_best():
    y, fit = halves(120)
    z = noise(120, 5) + y[:, None]
    own = held_out_information(nn.Identity(), z, y, fit, seeds=[0], **QUICK)
    torch.testing.assert_close(held_out_information(nn.Identity(), 1000 * z, y, fit, seeds=[0], **QUICK), own, atol=1e-3, rtol=1e-3)
    wild = held_out_information(nn.Sequential(nn.Linear(5, 5)), z, y, fit, steps=60, lr=1e30, batch_size=32, seeds=[0])
    assert float(wild.mean()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["small", "resnet_tiny", "all_cnn"])
def test_what_comes_behind_a_layer_gives_the_features_of_the_model(name):
    data = ImageData(torch.rand(4, 1, 16, 16), torch.zeros(4, dtype=torch.int64), ("a", "b"))
    model = Architecture(name, 2, (1, 16, 16), (0.5,), (0.5,))().eval()
    layers = stages(model, data)
    expected = features_at(model, layers[-1:], data)[layers[-1]]
    for layer in layers:
        remaining, z = cut(model, layer, layers[-1], data)
        torch.testing.assert_close(remaining(z), expected, atol=1e-5, rtol=1e-4)
    assert not any(module.training for module in remaining.modules() if isinstance(module, nn.BatchNorm2d))


class Shortcut(nn.Module):
    """The last stage reads the first one's output as well."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        first = self.first(x.flatten(1))
        return self.head(self.third(self.second(first) + first))


def test_a_layer_that_something_goes_around_is_refused_and_so_is_one_behind_the_last_stage():
    data = ImageData(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), ("a", "b"))
    model = Shortcut().eval()
    assert Remaining(model, "first", "third", data)(torch.ones(3, 8)).shape == (3, 8)
    with pytest.raises(ModelError, match="behind 'second' it does not"):
        Remaining(model, "second", "third", data)
    with pytest.raises(ModelError, match="up to 'third'; got 'head'"):
        Remaining(model, "head", "third", data)


def bits_of(u, r, m, n=300, seeds=4, seed=0):
    """Bits of an unlearned model, the original (mean 1) and m retrained models by several critics; samples, models and critics each add an error."""
    rng = np.random.default_rng(seed)
    shared, levels = rng.standard_normal(n), [u, 1.0, *(r + 0.05 * rng.standard_normal(m))]
    rows = [x + 0.1 * rng.standard_normal((seeds, 1)) + 0.5 * shared + 0.5 * rng.standard_normal(n) for x in levels]
    return torch.from_numpy(rows[0]), torch.from_numpy(rows[1]), torch.from_numpy(np.stack(rows[2:]))


def test_the_index_is_1_for_the_original_0_for_retraining_and_negative_beyond():
    own, original, retrained = bits_of(-0.5, 0.0, 3)
    same = information_difference_index(original, original, retrained)
    assert same.value == 1 and [same.low, same.high] == pytest.approx([1, 1])
    assert information_difference_index(retrained.mean(0), original, retrained).value == pytest.approx(0, abs=1e-12)
    below = information_difference_index(own, original, retrained)
    assert below.value < -0.3 and below.high < 0
    refused = information_difference_index(own, *bits_of(0.4, 1.0, 3, seed=1)[1:])
    assert not refused.supported and "cannot be told" in refused.note


def test_where_critics_agree_the_interval_is_that_of_the_probes():
    own, original, retrained = bits_of(0.4, 0.0, 3)
    agreed = (own[:1].repeat(4, 1), original[:1].repeat(4, 1), retrained[:, :1].repeat(1, 4, 1))
    ours, probes = information_difference_index(*agreed), probe_index(own[0], original[0], retrained[:, 0])
    assert [ours.value, ours.low, ours.high] == pytest.approx([probes.value, probes.low, probes.high])
    assert information_difference_index(own, original, retrained).high - ours.value > ours.high - ours.value


def test_the_interval_of_the_index_covers_the_truth():
    inside = 0
    for k in range(300):
        found = information_difference_index(*bits_of(0.4, 0.0, 4, n=150, seed=k))
        inside += found.low <= 0.4 <= found.high
    assert inside / 300 >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 300)


def test_feature_maps_and_tiny_forget_sets_are_audited(digits):
    split = forget_samples(digits[0].subset(range(128)), range(16))
    with fork(0):
        models = {name: toy_net() for name in ("original", "retrained")}
    result = IDI(seeds=2, steps=20)(models, split, device="cpu")
    assert result.layers == ("3", "8") and result.n == 16 and all(i.high <= 1 for i in result["original"].information)


def test_what_cannot_be_audited_is_refused(digits):
    model, split = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10)), forget_samples(digits[0], range(100))
    with pytest.raises(ConfigError, match="one 'original' and at least one 'retrained'; got original"):
        IDI()({"original": model}, split)
    with pytest.raises(DataError, match="at least 16 forget and 16 retain samples; got 15"):
        IDI()({"original": model, "retrained": model}, forget_samples(split.train, range(15)))
    with pytest.raises(DataError, match="no retain samples"):
        IDI()({"original": model, "retrained": model}, forget_only(split.train))
    with pytest.raises(MissingError, match="no layer named '7'"):
        IDI(layers=("7",))({"original": model, "retrained": model}, split)
    with pytest.raises(ModelError, match="a stage before"):
        IDI()(dict.fromkeys(("original", "retrained"), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), split)
    for bad in ({"seeds": 1}, {"max_per_side": 8}, {"layers": ()}, {"layers": ("3", "3")}, {"lr": 0.0}, {"batch_size": 1}):
        with pytest.raises(ConfigError, match=f"IDI: {next(iter(bad))} must"):
            IDI(**bad)
