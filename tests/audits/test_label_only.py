import math

import pytest
import torch
from scipy.stats import betabinom
from torch import nn

from expunge.audits.label_only import LabelOnly, _agreement, _posterior, gap_accuracy, gap_attack, label_only_lira
from expunge.audits.views import QueryView, _looked_at, predictions_over_views, query_views
from expunge.data.images import Augment, ImageData
from expunge.errors import ConfigError, DataError
from expunge.metrics import auc
from oracles import halves

N, M = 2000, 32


def answers(n_views: int, memory: float, common: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right or wrong for a target, whose members are the first half, and shadow models. `common` is what the views of one model share."""
    rng, included = torch.Generator().manual_seed(seed), halves(M, N, seed)
    member = torch.cat([included, (torch.arange(N) < N // 2)[None]])
    ease = 1.5 * torch.randn(N, generator=rng) + memory * member
    shared, own = torch.randn(M + 1, 1, N, generator=rng), torch.randn(M + 1, n_views, N, generator=rng)
    right = ease[:, None] + math.sqrt(common) * shared + math.sqrt(1 - common) * own > 0
    return right[-1], right[:-1], included


def area(scores: torch.Tensor) -> float:
    return auc(scores[: N // 2], scores[N // 2 :]).value


def test_with_one_view_it_is_the_beta_binomial_of_scipy():
    target, shadow, included = answers(1, 1.0)
    scores, counts, groups = label_only_lira(target, shadow, included), shadow.sum(1).double(), (included, ~included)
    one = torch.ones((), dtype=torch.float64)
    fits = [_posterior(counts, group, 1, one) for group in groups]
    expected = [betabinom.logpmf(target[0].numpy(), 1, fit.a.numpy(), fit.b.numpy()) for fit in fits]
    torch.testing.assert_close(scores, torch.tensor(expected[0] - expected[1]), rtol=1e-9, atol=1e-9)
    # And the posterior is the prior with the sample's own answers counted in.
    prior = [fit.a - (counts * g).sum(0) for fit, g in zip(fits, groups, strict=True)]
    assert all(p.std() < 1e-9 for p in prior)


def test_the_prior_is_that_which_rates_were_drawn_from():
    rng = torch.distributions.Beta(3.0, 1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        counts = torch.distributions.Binomial(4, rng.sample((20000,)).expand(16, -1)).sample().double()
    fit = _posterior(counts, torch.ones(16, 20000).bool(), 4, torch.ones((), dtype=torch.float64))
    prior = fit.a - counts.sum(0), fit.b - (4 - counts).sum(0)
    assert prior[0][0].item() == pytest.approx(3, rel=0.05) and prior[1][0].item() == pytest.approx(1, rel=0.05)


def test_members_are_found_better_than_by_the_gap_attack():
    target, shadow, included = answers(9, 1.0)
    lira, gap = area(label_only_lira(target, shadow, included)), area(target.double().mean(0))
    assert lira > gap + 0.1 and area(label_only_lira(target, shadow, included, online=False)) > gap + 0.1


def test_several_views_find_more_than_one():
    target, shadow, included = answers(9, 1.0)
    assert area(label_only_lira(target, shadow, included)) > area(label_only_lira(target[:1], shadow[:, :1], included)) + 0.1


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("n_views", [1, 5])
def test_the_null_has_an_auc_of_one_half(online, n_views):
    target, shadow, included = answers(n_views, 0.0)
    error = math.sqrt((N + 1) / (12 * (N / 2) ** 2))
    assert area(label_only_lira(target, shadow, included, online=online)) == pytest.approx(0.5, abs=3 * error)


def test_views_that_agree_entirely_count_as_one():
    target, shadow, included = answers(1, 1.0)
    once = label_only_lira(target, shadow, included)
    often = label_only_lira(target.repeat(7, 1), shadow.repeat(1, 7, 1), included)
    torch.testing.assert_close(often, once, rtol=1e-6, atol=1e-6)
    # As independent trials they would be evidence seven times over: far too sure.
    counts, one = shadow.repeat(1, 7, 1).sum(1).double(), torch.ones((), dtype=torch.float64)
    naive = [_posterior(counts, g, 7, one).log_likelihood(7.0 * target[0], 7.0 * ~target[0]) for g in (included, ~included)]
    assert (naive[0] - naive[1]).abs().mean() > 2 * once.abs().mean()


def test_the_agreement_of_views_is_measured():
    _, shadow, included = answers(8, 1.0)
    assert _agreement(shadow.sum(1).double(), included, 8) < 0.02
    _, shadow, included = answers(8, 1.0, common=0.9)
    assert 0.3 < _agreement(shadow.sum(1).double(), included, 8) < 0.95


def test_the_class_reads_only_which_logit_is_the_highest():
    rng, labels, included = torch.Generator().manual_seed(0), torch.arange(200) % 4, halves(8, 200)
    logits = torch.randn(9, 200, 4, generator=rng)
    scores = LabelOnly()(logits[8], labels, logits[:8], included)
    again = LabelOnly()(100 * logits[8] ** 3, labels, logits[:8].exp(), included)
    assert torch.equal(scores, again) and torch.isfinite(scores).all()
    right = logits.argmax(2) == labels
    assert torch.equal(scores, label_only_lira(right[8][None], right[:8, None], included))
    with pytest.raises(DataError, match="at least 2 shadow models"):
        LabelOnly()(logits[8], labels, logits[:2], included[:2])


def test_a_wrong_answer_speaks_against_membership_and_most_where_members_are_always_right():
    included = torch.tensor([True, False]).repeat(20)[:, None].expand(40, 2)
    easy = torch.ones(40, dtype=torch.bool)
    shadow = torch.stack([easy, included[:, 1]], 1)[:, None]  # sample 0: always right; sample 1: right if trained on
    right, wrong = (label_only_lira(torch.full((1, 2), x), shadow, included) for x in (True, False))
    assert right[1] > right[0] and wrong[1] < wrong[0] and right[1] > 0 > wrong[1]


def test_the_gap_attack_is_right_or_wrong_and_its_accuracy_is_the_gap():
    predictions, labels = torch.tensor([[0, 1, 2], [0, 0, 0]]), torch.tensor([0, 1, 0])
    assert gap_attack(predictions, labels).tolist() == [1.0, 0.5, 0.5] and gap_attack(predictions[0], labels).tolist() == [1, 1, 0]
    accuracy = gap_accuracy(torch.arange(100) < 95, torch.arange(300) < 240)
    assert accuracy.value == pytest.approx(0.5 + (0.95 - 0.8) / 2) and accuracy.low < 0.575 < accuracy.high
    with pytest.raises(DataError, match=r"\(N,\) or \(V, N\)"):
        gap_attack(predictions[:, :2], labels)


def test_wrong_shapes_are_refused():
    target, shadow, included = answers(2, 0.0)
    with pytest.raises(DataError, match=r"must be bool and fit; got torch.bool of shapes \(2, 2000\), \(32, 1, 2000\) and \(32, 2000\)"):
        label_only_lira(target, shadow[:, :1], included)


def images(n: int = 6, **options) -> ImageData:
    pixels = torch.randint(0, 256, (n, 1, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageData(pixels, torch.arange(n) % 3, ("a", "b", "c"), **options)


def test_views_are_the_image_first_and_all_different():
    assert len(set(query_views())) == 18 and query_views()[0] == QueryView() and query_views()[1] == QueryView(mirrored=True)
    assert len(set(query_views(9, mirror=False))) == 9 and not any(v.mirrored for v in query_views(9, mirror=False))
    with pytest.raises(ConfigError, match=r"n must be in \[1, 9\]"):
        query_views(10, mirror=False)


def test_a_view_moves_pixels_as_it_says():
    image = torch.arange(1.0, 7.0).view(1, 1, 2, 3)
    assert _looked_at(image, QueryView()).equal(image)
    assert _looked_at(image, QueryView(mirrored=True))[0, 0].tolist() == [[3, 2, 1], [6, 5, 4]]
    assert _looked_at(image, QueryView(down=1))[0, 0].tolist() == [[0, 0, 0], [1, 2, 3]]
    assert _looked_at(image, QueryView(right=-1))[0, 0].tolist() == [[2, 3, 0], [5, 6, 0]]
    assert _looked_at(image, QueryView(True, -1, 1))[0, 0].tolist() == [[0, 6, 5], [0, 0, 0]]


def test_answers_over_views_are_those_of_the_model_on_each_view():
    data, rng = images(augment=Augment(flip=True)), torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 3))
    model[1].weight.data = torch.randn(3, 20, generator=rng)
    found = predictions_over_views(model, data)
    expected = [model(_looked_at(data.fetch(torch.arange(6)), look)).argmax(1) for look in query_views()]
    assert torch.equal(found, torch.stack(expected)) and len(predictions_over_views(model, images())) == 9
