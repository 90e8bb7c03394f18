import itertools
import json
import math

import numpy as np
import pytest
import torch

import oracles
from expunge.errors import ConfigError, DataError, MissingError, ModelError
from expunge.metrics.agreement import agreement, own_variance
from expunge.metrics.signals import jsd
from expunge.metrics.tug_of_war import tug_of_war, tug_of_war_floor
from expunge.metrics.zrf import rf_jsd, zrf

LN2 = math.log(2)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return torch.special.xlogy(p, p / q.clamp_min(1e-300))


def faulty_jsd(a: torch.Tensor, b: torch.Tensor, over_elements: bool) -> float:
    """As in copied code (D4): torch's kl_div(log p, m) is KL(m ‖ p), and its mean is over classes too."""
    log_p, log_q = a.log_softmax(1), b.log_softmax(1)
    m = (log_p.exp() + log_q.exp()) / 2
    both = [torch.nn.functional.kl_div(x, m, reduction="none") for x in (log_p, log_q)]
    terms = (both[0] + both[1]) / 2
    return float(terms.mean() if over_elements else terms.sum(1).mean())


@pytest.mark.parametrize("over_elements", [False, True])
def test_exchanged_arguments_and_means_over_classes_are_not_the_jensen_shannon_divergence(over_elements):
    a = 40 * torch.nn.functional.one_hot(torch.arange(10), 10).double()
    b = a.flip(0)
    truth = np.mean([oracles.jsd(p, q) for p, q in zip(a.numpy(), b.numpy(), strict=True)])
    found = agreement(a, b[None]).distance
    assert found.value == pytest.approx(truth, abs=1e-9) and found.value <= LN2
    faulty = faulty_jsd(a, b, over_elements)
    assert faulty > 1.5 > LN2 if over_elements else faulty > 8.5
    nearer = 2 * noise(50, 10, seed=1), 2 * noise(50, 10, seed=2)
    assert abs(faulty_jsd(*nearer, over_elements) / float(jsd(*nearer).mean()) - 1) > 0.1


def test_zrf_with_exchanged_arguments_leaves_its_range():
    a = 40 * torch.nn.functional.one_hot(torch.arange(10), 10).double()
    assert 1 - LN2 - 1e-9 <= zrf(a, a.flip(0)).value <= 1
    assert 1 - faulty_jsd(a, a.flip(0), False) < 0
    assert zrf(a, a).value == 1


@pytest.mark.parametrize("measure", ["jsd", "tv"])
def test_distance_floor_and_excess_are_plain_means(measure):
    logits, references = noise(7, 4, seed=1), noise(3, 7, 4, seed=2)

    def d(a, b):
        if measure == "jsd":
            return oracles.jsd(a.numpy(), b.numpy())
        return float(abs(oracles.softmax(a.numpy()) - oracles.softmax(b.numpy())).sum() / 2)

    distance = np.mean([d(logits[x], r[x]) for r in references for x in range(7)])
    floor = np.mean([d(a[x], b[x]) for a, b in itertools.combinations(references, 2) for x in range(7)])
    found = agreement(logits, references, measure=measure)
    assert found.distance.value == pytest.approx(distance, abs=1e-9)
    assert found.floor.value == pytest.approx(floor, abs=1e-9)
    assert found.excess.value == pytest.approx(distance - floor, abs=1e-9)
    assert found.per_image.mean() == pytest.approx(distance, abs=1e-9)


def test_one_more_retrained_model_has_an_excess_of_zero():
    """Models differ in how far they are from all others; the interval holds 0 as often as promised, and the mean is 0."""
    covered, values, rng = 0, [], torch.Generator().manual_seed(0)
    for seed in range(100):
        base = 2 * noise(60, 5, seed=seed)
        scale = 0.3 + torch.rand(6, 1, 1, generator=rng)
        models = base + scale * noise(6, 60, 5, seed=seed + 1000)
        found = agreement(models[0], models[1:]).excess
        covered += found.low <= 0 <= found.high
        values.append(found.value)
    assert 0.9 <= covered / 100 <= 1
    assert abs(np.mean(values)) <= 3 * np.std(values) / math.sqrt(100)


@pytest.mark.parametrize("m", [3, 7])
def test_a_models_own_share_of_distances_is_found_exactly(m):
    own = noise(m)
    pairs = (5 + own[:, None] + own).fill_diagonal_(0)
    assert own_variance(pairs) == pytest.approx(float(own.var()))


def test_a_model_that_answers_otherwise_is_found_with_three_retrained_models():
    base = 3 * noise(400, 10, seed=1)
    found = agreement(3 * noise(400, 10, seed=2), base + 0.3 * noise(3, 400, 10, seed=3))
    assert found.excess.low > 0.1 and found.distance.low > found.floor.high


def test_the_interval_of_the_distance_shrinks_with_images_and_is_paired():
    logits, references = noise(400, 5, seed=1), noise(4, 400, 5, seed=2)
    few, many = agreement(logits[:40], references[:, :40]).distance, agreement(logits, references).distance
    assert few.high - few.low > many.high - many.low > 0


def test_few_models_and_images_say_so():
    logits, references = noise(30, 5, seed=1), noise(2, 30, 5, seed=2)
    one = agreement(logits, references[:1])
    assert not one.floor.supported and not one.excess.supported and "one retrained" in one.distance.note
    assert "two retrained" in agreement(logits, references).excess.note
    single = agreement(logits[:1], references[:, :1]).distance
    assert (single.low, single.high) == (0, LN2) and "one image" in single.note


def test_a_model_has_no_distance_to_itself():
    logits = noise(20, 5)
    found = agreement(logits, logits.expand(3, -1, -1))
    assert max(map(abs, (found.distance.value, found.floor.value, found.excess.high))) < 1e-12
    assert json.loads(json.dumps(found.to_dict()))["n_retrained"] == 3 and "JSD to 3" in str(found)


def test_tug_of_war_by_hand_and_its_interval():
    ours, theirs = torch.tensor([[0.9, 1.0, 0.8], [0.7, 0.9, 0.8], [0.8, 1.0, 0.8]]), torch.tensor([[0.8, 1.0, 0.8]] * 3)
    found = tug_of_war(ours, theirs)
    products = [0.9, 0.9 * 0.9, 1.0]
    assert found.value == pytest.approx(np.mean(products), abs=1e-6)
    assert found.value - found.low == pytest.approx(4.302653 * np.std(products, ddof=1) / math.sqrt(3), rel=1e-4)


def test_retraining_tugs_at_one_with_itself_and_its_floor_is_below():
    accuracies = torch.tensor([[0.8, 1.0, 0.8], [0.85, 0.99, 0.81], [0.7, 1.0, 0.79]])
    assert tug_of_war(accuracies, accuracies).value == 1
    floor = tug_of_war_floor(accuracies)
    assert floor.low <= floor.value <= floor.high < 1
    assert floor.value == pytest.approx(
        np.mean([tug_of_war(accuracies[i : i + 1], accuracies[j : j + 1]).value for i, j in ((0, 1), (0, 2), (1, 2))])
    )
    assert tug_of_war(accuracies[:1], accuracies[:1]).low == 0 and "one seed" in tug_of_war(accuracies[:1], accuracies[:1]).note
    assert not tug_of_war_floor(accuracies[:1]).supported


def test_rf_jsd_by_hand_and_blind_to_single_samples():
    labels = torch.tensor([0, 0, 1, 1])
    seen = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.4, 0.6]], dtype=torch.float64).log()
    forget = torch.tensor([[0.6, 0.4], [1.0, 1e-9], [0.1, 0.9]], dtype=torch.float64).log()
    expected = (oracles.jsd(np.log([0.7, 0.3]), np.log([0.8, 0.2])) + oracles.jsd(np.log([0.3, 0.7]), np.log([0.1, 0.9]))) / 2
    found = rf_jsd(seen, labels, forget, torch.tensor([0, 0, 1]))
    assert found.value == pytest.approx(expected, abs=1e-6) and "one forget image" in found.note
    swapped = rf_jsd(seen, labels, seen[[1, 0, 3, 2]], labels)
    assert swapped.value == pytest.approx(0, abs=1e-12)


def test_rf_jsd_interval_is_as_wide_as_its_spread():
    """Of 60 draws of images; the copied code divides by the number of images too, and would be 1/n of it."""
    labels, values, reaches = torch.arange(3).repeat(60), [], []
    for seed in range(60):
        seen, forget = (
            2 * noise(180, 3, seed=seed),
            2 * noise(180, 3, seed=seed + 100) + 2 * torch.nn.functional.one_hot((labels + 1) % 3, 3),
        )
        found = rf_jsd(seen, labels, forget, labels, replicates=50)
        values.append(found.value)
        reaches.append((found.high - found.value) / 1.96)
    assert np.mean(reaches) == pytest.approx(np.std(values), rel=0.3)
    assert np.mean(values) > 0.03


def test_seeds_decide_and_global_generators_do_not_move():
    labels, seen, forget = torch.arange(3).repeat(10), noise(30, 3), noise(30, 3, seed=1)
    state = torch.get_rng_state()
    assert (
        rf_jsd(seen, labels, forget, labels, seed=1) == rf_jsd(seen, labels, forget, labels, seed=1) != rf_jsd(seen, labels, forget, labels)
    )
    assert torch.equal(state, torch.get_rng_state())


def test_bad_inputs_are_refused():
    logits, references, labels = noise(9, 4), noise(2, 9, 4, seed=1), torch.zeros(9, dtype=torch.int64)
    broken = logits.clone()
    broken[2, 1] = torch.nan
    for function in (lambda x: agreement(x, references), lambda x: zrf(x, references[0]), lambda x: rf_jsd(x, labels, logits, labels)):
        with pytest.raises(ModelError, match="sample 2"):
            function(broken)
    with pytest.raises(ModelError, match="retrained model 1"):
        agreement(logits, torch.stack([logits, broken]))
    with pytest.raises(DataError, match=r"\(M, 9, 4\)"):
        agreement(logits, references[:, :8])
    with pytest.raises(MissingError, match="measure"):
        agreement(logits, references, measure="kl")
    with pytest.raises(ConfigError, match="level"):
        agreement(logits, references, level=95.0)
    with pytest.raises(DataError, match="none of class 1"):
        rf_jsd(logits, labels, logits, labels + 1)
    with pytest.raises(DataError, match="as many of both"):
        tug_of_war(torch.ones(2, 3), torch.ones(3, 3))
    for shape in ((3,), (2, 2), (2, 4), (2, 3, 3)):
        with pytest.raises(DataError, match=r"shape \(seeds, 3\)"):
            tug_of_war(torch.ones(shape), torch.ones(shape))
        with pytest.raises(DataError, match=r"shape \(seeds, 3\)"):
            tug_of_war_floor(torch.ones(shape))
    with pytest.raises(DataError, match=r"fractions in \[0, 1\]; got 95"):
        tug_of_war(torch.full((2, 3), 95.0), torch.ones(2, 3))
