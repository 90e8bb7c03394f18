import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from expunge.audits import probe_fit
from expunge.audits.probe_fit import held_out_bits
from expunge.audits.probes import Probes, probe_index
from expunge.data.images import ImageData
from expunge.data.split import forget_classes, forget_only, forget_samples
from expunge.errors import ConfigError, DataError, MissingError, ModelError
from expunge.metrics import auc, loss, total_variation
from expunge.models.architecture import ARCHITECTURES, Architecture
from expunge.training.features import features_at, stages
from expunge.training.head import features_of, last_linear
from expunge.training.inference import logits_of
from expunge.training.recipe import Recipe, train_model

FORGOTTEN = 10


def halves(n):
    """y and which samples to fit on, alternating."""
    return torch.arange(n) % 2 == 0, torch.arange(n) < n // 2


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def marked(digits: ImageData, n: int, seed: int) -> ImageData:
    """Digits with a bright first or last row, or both, or none. Exactly one of the two makes it class 10: no retained sample teaches that."""
    first, last = torch.rand(2, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    images = digits.images[:n].clone()
    images[first, :, 0], images[last, :, -1] = 255, 255
    return ImageData(images, torch.where(first ^ last, FORGOTTEN, digits.labels[:n]), (*digits.classes, "one mark"))


def distilled(original: nn.Module, retrained: nn.Module, data: ImageData) -> nn.Module:
    """The original with another last layer, the least-squares one: its answers imitate the retrained model's."""
    model = copy.deepcopy(original)
    head = last_linear(model, data)
    z, target = features_of(model, head, data).double(), logits_of(retrained, data).double()
    solution = torch.linalg.lstsq(torch.cat([z, torch.ones(len(z), 1)], 1), target).solution.float()
    with torch.no_grad():
        head.weight.copy_(solution[:-1].T)
        head.bias.copy_(solution[-1])
    return model


@pytest.fixture(scope="module")
def marks(digits):
    train, test = marked(digits[0], 600, 0), marked(digits[1], 400, 1)
    split, recipe = forget_classes(train, [FORGOTTEN]), Recipe(epochs=15, lr=0.1, batch_size=50)

    def build():  # dense: one convolution does not see both rows
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, FORGOTTEN + 1))

    original = train_model(build, train, recipe, seed=0, device="cpu")
    retrained = [train_model(build, split.retain, recipe, seed=k, device="cpu") for k in (1, 2, 3)]
    return {"original": original, "distilled": distilled(original, retrained[0], train), "retrained": retrained}, split, test


def test_a_distilled_head_passes_audits_of_answers_and_fails_the_probes(marks):
    models, split, test = marks
    unseen = test.subset((test.labels == FORGOTTEN).nonzero().flatten())
    seen = {name: logits_of(models[name], split.forget) for name in ("original", "distilled")}
    answers = {name: logits_of(models[name], unseen) for name in ("original", "distilled")}
    references = torch.stack([logits_of(model, unseen) for model in models["retrained"]])

    assert (seen["original"].argmax(1) == FORGOTTEN).double().mean() > 0.95
    assert (seen["distilled"].argmax(1) == FORGOTTEN).double().mean() == 0
    membership = auc(-loss(seen["distilled"], split.forget.labels), -loss(answers["distilled"], unseen.labels))
    assert membership.low < 0.5 < membership.high
    assert total_variation(answers["distilled"], references).value < 0.5
    assert total_variation(answers["original"], references).value > 0.9

    result = Probes()(models, split)
    index = result["distilled"].index
    assert index.value > 0.8 and index.low > result.index_floor.high
    assert result["distilled"].differences[-1].low > 0.8
    assert result["original"].index.value == 1


def test_the_audit_leaves_models_and_generators_alone_and_repeats(marks):
    models, split, _ = marks
    before = copy.deepcopy(models["original"].state_dict()), torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (Probes(max_per_side=60, seed=3)(models, split) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), models["original"].state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), before[1]) and (np.random.get_state()[1] == before[2]).all()
    assert first.n == 60 and json.loads(json.dumps(first.to_dict(), allow_nan=False)) == first.to_dict()
    assert first.layers == ("2", "4") and "original" in str(first)


def test_one_retrained_model_is_the_yardstick_and_has_no_index(marks):
    models, split, _ = marks
    result = Probes(layers=("4",), max_per_side=60)(models | {"retrained": models["retrained"][0]}, split)
    assert result["retrained"].differences == () and not result["retrained"].index.supported
    assert "one retrained model" in result["distilled"].index.note and not result.index_floor.supported


def test_a_probe_is_penalised_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    for n, d, ridge in ((80, 5, 0.1), (80, 5, 1e-3), (30, 50, 0.01)):
        x, y = noise(1, n, d), halves(n)[0]
        signs, w = torch.where(y, 1.0, -1.0).double(), torch.zeros(1, 1, d + 1).double()
        ones = torch.cat([x, torch.ones(1, n, 1)], -1)
        ours = probe_fit._newton(ones, signs, torch.ones(1, n).double(), w, ridge)[0, 0]
        oracle = LogisticRegression(C=1 / (n * ridge), tol=1e-10, max_iter=10_000).fit(x[0], y)
        assert ours[:-1].tolist() == pytest.approx(oracle.coef_[0].tolist(), abs=2e-3)
        assert float(ours[-1]) == pytest.approx(oracle.intercept_[0], abs=2e-3)


def test_more_features_than_samples_change_the_basis_and_not_the_probe(monkeypatch):
    monkeypatch.setattr(probe_fit, "RIDGES", (0.1,))
    x, held, y = noise(1, 24, 60), noise(1, 10, 60, seed=1), halves(24)[0]
    fast = probe_fit._fit_linear(x, y, probe_fit._folds(y), held, 0)
    signs, w = torch.where(y, 1.0, -1.0).double(), torch.zeros(1, 1, 61).double()
    slow = probe_fit._newton(torch.cat([x, torch.ones(1, 24, 1)], -1), signs, torch.ones(1, 24).double(), w, 0.1)[0, 0]
    torch.testing.assert_close(fast[0], held[0] @ slow[:-1] + slow[-1], atol=1e-6, rtol=1e-6)


def test_bits_are_the_mutual_information_where_it_is_known():
    # z | y ~ N(±1, 1): a logistic model is right, so that the bound is tight. The integral over a grid is the oracle.
    n, grid = 4000, np.linspace(-9, 9, 20_001)
    y, fit = halves(n)
    bits = held_out_bits((noise(1, n, 1) + torch.where(y, 1.0, -1.0)[None, :, None]), y, fit)[0]
    density = np.exp(-((grid - 1) ** 2) / 2) / math.sqrt(2 * math.pi)
    truth = float((density * (1 - np.log2(1 + np.exp(-2 * grid)))).sum() * (grid[1] - grid[0]))
    assert float(bits.mean()) == pytest.approx(truth - 0.0072, abs=0.0072 + 3 * float(bits.std()) / math.sqrt(len(bits)))


@pytest.mark.parametrize("probe", ["linear", "mlp"])
def test_noise_tells_next_to_nothing_and_a_bad_probe_does_not_invent_bits(probe):
    y, fit = halves(120)
    bits = held_out_bits(noise(6, 120, 40), y, fit, probe).mean(1)
    assert float(bits.mean()) > -0.1 and float(bits.max()) < 0.05
    bits = held_out_bits(torch.ones(1, 120, 3), y, fit, probe)
    torch.testing.assert_close(bits, torch.zeros_like(bits), atol=1e-6, rtol=0)


def test_one_confident_mistake_does_not_outweigh_the_rest():
    """Without the coin toss in q it would: a single far sample of the other kind costs hundreds of bits."""
    y, fit = halves(400)
    z = torch.where(y, 1.0, -1.0)[None, :, None].double() + 0.3 * noise(1, 400, 1)
    z[0, -1] = 300.0  # a retain sample that looks more like a forget sample than any forget sample does
    bits = held_out_bits(z, y, fit)[0]
    assert float(bits[-1]) == pytest.approx(1 + math.log2(0.005)) and float(bits.mean()) > 0.9
    assert float(bits.max()) == pytest.approx(1 + math.log2(0.995))


def test_only_the_network_sees_what_is_not_linear():
    y, fit = halves(400)
    side = torch.where(noise(400, seed=1) > 0, 1.0, -1.0).double()
    z = torch.stack([side, torch.where(y, side, -side)], 1)[None] + 0.2 * noise(1, 400, 2)
    assert float(held_out_bits(z, y, fit).mean()) < 0.05
    assert float(held_out_bits(z, y, fit, "mlp").mean()) > 0.8


@pytest.mark.parametrize("probe", ["linear", "mlp"])
def test_nothing_about_a_probe_depends_on_held_out_samples_or_on_other_probes(probe):
    y, fit = halves(80)
    z = noise(3, 80, 6) + 0.7 * y[None, :, None]
    bits, changed = held_out_bits(z, y, fit, probe), z.clone()
    changed[:, -10:] = 100 * noise(3, 10, 6, seed=5)
    torch.testing.assert_close(held_out_bits(changed, y, fit, probe)[:, :-10], bits[:, :-10])
    torch.testing.assert_close(held_out_bits(z[1:2], y, fit, probe)[0], bits[1], atol=1e-5, rtol=1e-5)


def test_choosing_the_ridge_on_the_held_out_half_would_find_bits_in_noise(monkeypatch):
    """What the cross-validation is for: the best of seven looks at the held-out half is above 0 on noise."""
    y, fit = halves(80)
    z, ours = noise(40, 80, 10), []
    honest = held_out_bits(z, y, fit).mean(1)
    for ridge in probe_fit.RIDGES:
        monkeypatch.setattr(probe_fit, "RIDGES", (ridge,))
        ours.append(held_out_bits(z, y, fit).mean(1))
    peeked = torch.stack(ours).max(0).values
    assert float(peeked.mean()) > 0 and float(honest.mean()) < float(peeked.mean())


def samples(u, r, m, n=400, seed=0):
    """Bits of an unlearned model, the original (mean 1) and m retrained models, sharing the noise of the samples."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(n)
    own, original = (torch.from_numpy(x + 0.5 * shared + 0.5 * rng.standard_normal(n)) for x in (u, 1.0))
    retrained = [x + 0.5 * shared + 0.5 * rng.standard_normal(n) for x in r + 0.05 * rng.standard_normal(m)]
    return own, original, torch.from_numpy(np.stack(retrained))


def test_the_index_is_1_for_the_original_0_for_retraining_and_negative_beyond():
    own, original, retrained = samples(-0.5, 0.0, 3)
    assert probe_index(original, original, retrained).value == 1
    assert [probe_index(original, original, retrained).low, probe_index(original, original, retrained).high] == pytest.approx([1, 1])
    assert probe_index(retrained.mean(0), original, retrained).value == pytest.approx(0, abs=1e-12)
    assert probe_index(own, original, retrained).value < -0.3 and probe_index(own, original, retrained).high < 0


def test_the_interval_of_the_index_is_that_of_a_bootstrap():
    own, original, retrained = samples(0.4, 0.0, 1)
    ours, draws = probe_index(own, original, retrained), np.random.default_rng(0).integers(400, size=(4000, 400))
    a, b = (x.numpy()[draws].mean(1) for x in (own - retrained[0], original - retrained[0]))
    low, high = np.quantile(a / b, [0.025, 0.975])
    assert [ours.low, ours.high] == pytest.approx([low, high], abs=0.15 * (high - low))


def test_the_interval_of_the_index_covers_the_truth():
    inside = 0
    for k in range(300):
        found = probe_index(*samples(0.4, 0.0, 4, n=200, seed=k))
        inside += found.low <= 0.4 <= found.high
    assert inside / 300 >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 300)


@pytest.mark.parametrize("r", [1.0, 0.97, 1.6])
def test_where_the_original_is_not_above_retraining_there_is_no_index(r):
    """The ratio alone would print a number, and here any number."""
    found = probe_index(*samples(0.4, r, 3, n=50))
    assert not found.supported and "cannot be told" in found.note


def test_stages_are_the_parts_before_the_logits():
    expected = {
        "small": ["1.1", "1.3", "1.5"], "resnet_tiny": ["1.relu", "1.layer1", "1.layer2", "1.layer3", "1.layer4"],
        "resnet9": ["1.0", "1.1", "1.2", "1.5"], "all_cnn": [*(f"1.{k}" for k in range(7)), "1.8"],
    }  # fmt: skip
    data = ImageData(torch.rand(4, 1, 16, 16), torch.zeros(4, dtype=torch.int64), ("a", "b"))
    for name, layers in expected.items():
        assert name in ARCHITECTURES
        model = Architecture(name, 2, (1, 16, 16), (0.5,), (0.5,))().eval()
        assert stages(model, data) == layers
        found = features_at(model, layers, data)
        torch.testing.assert_close(found[layers[-1]].flatten(1), features_of(model, last_linear(model, data), data))


def test_a_part_that_gives_no_tensor_is_taken_apart_into_those_that_do():
    class Trunk(nn.Module):  # as transformers have it: a list of layers, and an object for an output
        def __init__(self):
            super().__init__()
            self.stem, self.layers = nn.Conv2d(1, 4, 3), nn.ModuleList([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)])

        def forward(self, images):
            x = self.stem(images)
            for layer in self.layers:
                x = layer(x)
            return SimpleNamespace(maps=x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = Trunk(), nn.Linear(4, 2)

        def forward(self, images):
            return self.head(self.trunk(images).maps.mean((2, 3)))

    data = ImageData(torch.rand(4, 1, 9, 9), torch.zeros(4, dtype=torch.int64), ("a", "b"))
    assert stages(Net().eval(), data) == ["trunk.stem", "trunk.layers.0", "trunk.layers.1"]


def test_features_are_what_the_layer_gave_before_an_in_place_layer_changed_it():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)).eval()
    data = ImageData(torch.rand(9, 1, 8, 8), torch.zeros(9, dtype=torch.int64), ("a", "b"))
    with torch.no_grad():
        torch.testing.assert_close(features_at(model, ["2"], data)["2"], model[:3](data.images))


def test_layers_that_give_no_features_are_refused():
    data = ImageData(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), ("a", "b"))
    model = nn.Sequential(nn.Flatten(), Skips())
    with pytest.raises(ModelError, match="a stage before"):
        stages(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), data)
    with pytest.raises(MissingError, match="no layer named '7'"):
        features_at(model, ["7"], data)
    with pytest.raises(ModelError, match=r"'1\.unused', which is not"):
        features_at(model, ["1.unused"], data)
    with pytest.raises(ModelError, match=r"one row for each of 2 images.*'1' gives tuple"):
        features_at(nn.Sequential(nn.Flatten(), nn.LSTM(64, 2)), ["1"], data)


class Skips(nn.Module):
    """A linear layer beside one that is never called."""

    def __init__(self):
        super().__init__()
        self.linear, self.unused = nn.Linear(64, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)


def test_what_cannot_be_audited_is_refused(digits):
    model, split = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), forget_samples(digits[0], range(100))
    with pytest.raises(ConfigError, match="one 'original' and at least one 'retrained'; got original"):
        Probes()({"original": model}, split)
    with pytest.raises(DataError, match="at least 16 forget and 16 retain samples; got 15"):
        Probes()({"original": model, "retrained": model}, forget_samples(split.train, range(15)))
    with pytest.raises(DataError, match="no retain samples"):
        Probes()({"original": model, "retrained": model}, forget_only(split.train))
    for bad in ({"probe": "forest"}, {"max_per_side": 8}, {"layers": ()}, {"layers": ("3", "3")}):
        with pytest.raises(ConfigError, match=f"Probes: {next(iter(bad))} must"):
            Probes(**bad)
