import copy
import json
import math

import numpy as np
import pytest
import torch
from scipy.special import stdtrit
from torch import nn

from expunge.audits.prototypes import PrototypicalRelearning, prototype_logits, share, share_difference
from expunge.data.images import ImageData
from expunge.data.split import forget_classes, forget_samples
from expunge.errors import ConfigError, DataError
from expunge.metrics import proportion_interval
from expunge.training.head import features_of, last_linear
from expunge.training.recipe import Recipe, train_model

FORGOTTEN = 3


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def without_class(model: nn.Module, data: ImageData, direction: bool) -> nn.Module:
    """The class is never answered again; with `direction`, its mean feature is projected out of the features too."""
    model = copy.deepcopy(model)
    head = last_linear(model, data)
    with torch.no_grad():
        if direction:
            mine = data.subset((data.labels == FORGOTTEN).nonzero().flatten())
            mean = features_of(model, head, mine).mean(0)
            model[1].weight[mean > mean.median()] = 0  # the neurons that the class uses most
            model[1].bias[mean > mean.median()] = 0
        model[3].bias[FORGOTTEN] -= 50
    return model


@pytest.fixture(scope="module")
def forgotten(digits):
    train = ImageData(digits[0].images[:300], digits[0].labels[:300], digits[0].classes)
    split, recipe = forget_classes(train, [FORGOTTEN]), Recipe(epochs=20, batch_size=50)
    original = train_model(build, train, recipe, seed=0, device="cpu")
    retrained = [train_model(build, split.retain, recipe, seed=k, device="cpu") for k in (1, 2, 3)]
    models = {"original": original, "suppressed": without_class(original, train, False), "gutted": without_class(original, train, True)}
    return models | {"retrained": retrained}, split, digits[1].subset(range(400))


def loop_logits(weight, bias, shots, features, classes, alpha, kind):
    """Row by row, as the formula says."""
    answers = []
    for h in features:
        row = []
        for j in range(len(weight)):
            w, b = weight[j], float(bias[j])
            if kind == "cosine":
                w, b = w / w.norm(), 0.0
            if j in classes:
                m = sum(shots[classes.index(j)]) / len(shots[0])
                if kind == "cosine":
                    w = (1 - alpha) * w + alpha * m / m.norm()
                    w = w / w.norm()
                else:
                    w, b = (1 - alpha) * w + alpha * 2 * m, (1 - alpha) * b - alpha * float(m @ m)
            row.append(float(w @ h) / (float(h.norm()) if kind == "cosine" else 1) + b)
        answers.append(row)
    return torch.tensor(answers, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["cosine", "l2"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_logits_are_those_of_the_formula_and_the_layer_stays_as_it_is(kind, alpha):
    rng = torch.Generator().manual_seed(0)
    weight, bias, shots, features = (torch.randn(*s, generator=rng).double() for s in ((4, 6), (4,), (2, 5, 6), (7, 6)))
    kept = weight.clone(), bias.clone()
    ours = prototype_logits(weight, bias, shots, features, [1, 3], alpha, kind)
    torch.testing.assert_close(ours, loop_logits(weight, bias, shots, features, [1, 3], alpha, kind))
    assert torch.equal(weight, kept[0]) and torch.equal(bias, kept[1])
    if kind == "l2" and alpha == 0:
        torch.testing.assert_close(ours, features @ weight.T + bias)


def test_with_all_rows_replaced_l2_is_the_nearest_mean():
    rng = torch.Generator().manual_seed(0)
    shots, features = torch.randn(4, 5, 6, generator=rng).double(), torch.randn(50, 6, generator=rng).double()
    answers = prototype_logits(torch.zeros(4, 6).double(), torch.zeros(4).double(), shots, features, [0, 1, 2, 3], 1.0, "l2").argmax(1)
    assert torch.equal(answers, torch.cdist(features, shots.mean(1)).argmin(1))


def test_recovery_does_not_depend_on_the_scale_of_the_last_layer(forgotten):
    """D13: a prototype of unit length beside rows of any length. Ten times smaller rows are the same classifier, and recover everything or nothing."""
    models, split, test = forgotten
    model, small, large = (copy.deepcopy(models["suppressed"]) for _ in range(3))
    with torch.no_grad():
        for scaled, factor in ((small, 0.01), (large, 100)):
            scaled[3].weight.mul_(factor)
            scaled[3].bias.mul_(factor)
    audit = PrototypicalRelearning(draws=4, alpha=1.0)
    same = audit({"a": model, "b": small, "c": large, "retrained": models["retrained"]}, split, test)
    assert same["a"].recovered == same["b"].recovered == same["c"].recovered and same["a"].taken == same["b"].taken

    mine = (test.labels == FORGOTTEN).nonzero().flatten()

    def faulty(model):  # what their code amounts to, with alpha 1
        head = last_linear(model, test)
        m = features_of(model, head, split.forget.subset(range(5))).mean(0)
        weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
        weight[FORGOTTEN], bias[FORGOTTEN] = m / m.norm(), 0
        answers = (features_of(model, head, test) @ weight.T + bias).argmax(1)
        return float((answers[mine] == FORGOTTEN).double().mean())

    assert faulty(small) == 1 and faulty(large) == 0


def test_what_was_only_suppressed_is_recovered_more_than_what_is_gone(forgotten):
    models, split, test = forgotten
    result = PrototypicalRelearning(alpha=0.3)(models, split, test)
    assert result["suppressed"].recovered == result["original"].recovered  # a bias hides nothing from a cosine
    assert result["suppressed"].difference.low > 0.5 and result["suppressed"].net_difference.low > 0.5 > result.net_floor.high
    assert result["gutted"].recovered.high < result["suppressed"].recovered.low
    assert result["retrained"].before.value == 0
    assert result.n == int((test.labels == FORGOTTEN).sum()) and result.floor.n == 3
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict() and "gutted" in str(result)


def test_a_class_that_is_won_back_by_taking_everything_has_no_net_recovery(forgotten):
    """Features behind a ReLU all point the same way: with the prototype alone, the cosine takes the images of all classes, of retrained models too."""
    models, split, test = forgotten
    for row in PrototypicalRelearning(alpha=1.0)(models, split, test).rows:
        assert row.recovered.value > 0.9 and row.taken.value > 0.8 and row.net.value < 0.2
        assert row.net.value == pytest.approx(row.recovered.value - row.taken.value) and row.net.low < row.net.value < row.net.high


def test_models_and_generators_stay_as_they_are_and_the_audit_repeats(forgotten):
    models, split, test = forgotten
    before = copy.deepcopy(models["suppressed"].state_dict())
    random = torch.get_rng_state(), np.random.get_state()[1].copy()
    audit = PrototypicalRelearning(draws=3, seed=4)
    assert audit(models, split, test).to_dict() == audit(models, split, test).to_dict()
    assert audit(models, split, test).to_dict() != PrototypicalRelearning(draws=3, seed=5)(models, split, test).to_dict()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), models["suppressed"].state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), random[0]) and (np.random.get_state()[1] == random[1]).all()


def test_one_retrained_model_is_the_yardstick(forgotten):
    models, split, test = forgotten
    result = PrototypicalRelearning(draws=2)({"suppressed": models["suppressed"], "retrained": models["retrained"][0]}, split, test)
    assert result["retrained"].difference is None and "one retrained model" in result["suppressed"].difference.note
    assert not result.floor.supported and result.to_dict()["rows"][1]["net_difference"] is None


def test_an_interval_of_a_share_is_never_narrower_than_the_exact_one():
    for hits in (torch.ones(4, 30).bool(), torch.zeros(4, 30).bool(), torch.arange(30).expand(4, -1) % 3 > 0):
        found = share(hits)
        low, high = proportion_interval(found.value * 30, 30)
        assert found.low <= low and found.high >= high
    apart = torch.stack([torch.ones(30).bool(), torch.zeros(30).bool()])  # two draws that could not differ more
    assert (share(apart).low, share(apart).high) == (0, 1)
    gap = share_difference(torch.ones(3, 30).bool(), torch.ones(2, 3, 30).bool())
    assert gap.value == 0 and gap.low < 0 < gap.high


def test_the_interval_of_a_difference_covers_the_truth():
    """Draws, images and retrained models with effects of their own; the true difference is −0.2."""
    rng, inside, runs = np.random.default_rng(0), 0, 300
    for _ in range(runs):
        image, draw = 0.1 * rng.standard_normal(100), 0.05 * rng.standard_normal((8, 1))
        rates = [0.4, *(0.6 + 0.04 * rng.standard_normal(3))]
        own, *others = (torch.from_numpy(rng.random((8, 100)) < rate + image + draw + 0.03 * rng.standard_normal((8, 1))) for rate in rates)
        found = share_difference(own, torch.stack(others))
        inside += found.low <= -0.2 <= found.high
    assert inside / runs >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / runs)


def test_what_has_no_prototype_is_refused(forgotten):
    models, split, test = forgotten
    with pytest.raises(DataError, match="whole forgotten classes"):
        PrototypicalRelearning()(models, forget_samples(split.train, range(20)), test)
    with pytest.raises(DataError, match=r"'3' needs 1000 forget samples and 2 test images"):
        PrototypicalRelearning(k=1000)(models, split, test)
    with pytest.raises(DataError, match="and 0. Choose"):
        PrototypicalRelearning()(models, split, test.subset((test.labels != FORGOTTEN).nonzero().flatten()))
    with pytest.raises(ConfigError, match="at least one 'retrained'"):
        PrototypicalRelearning()({"original": models["original"]}, split, test)
    for bad in ({"kind": "dot"}, {"k": 0}, {"alpha": 1.5}, {"draws": 1}):
        with pytest.raises(ConfigError, match=f"PrototypicalRelearning: {next(iter(bad))} must be"):
            PrototypicalRelearning(**bad)


@pytest.mark.parametrize("m", [3, 10])
def test_the_difference_of_one_more_retrained_model_holds_0(m):
    """It has a seed of its own: s² (1 + 1/M). With s²/M only, about half of further retrained models are told apart from the ten."""
    rng, ours, faulty, runs = np.random.default_rng(m), 0, 0, 300
    for _ in range(runs):
        image = 0.1 * rng.standard_normal(400)
        own, *others = (torch.from_numpy(rng.random((4, 400)) < 0.5 + image + 0.08 * rng.standard_normal()) for _ in range(m + 1))
        others = torch.stack(others)
        found, s2 = share_difference(own, others), float(others.double().mean((1, 2)).var())
        ours += found.low <= 0 <= found.high
        t = float(stdtrit(m - 1, 0.975))
        narrow = math.sqrt(max(0.0, (found.high - found.low) ** 2 / 4 - t**2 * s2))  # the half width without s² of the audited model
        faulty += abs(found.value) <= narrow
    assert ours / runs >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / runs)
    assert faulty / runs < 0.92 if m == 3 else faulty / runs < 0.75
