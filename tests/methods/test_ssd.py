import copy
import dataclasses

import pytest
import torch
from torch.nn import functional

import expunge
from expunge import SSD, importances, measure_cost
from expunge.data.split import forget_classes, forget_only, forget_samples
from expunge.errors import ConfigError, DataError
from expunge.methods.ssd import dampened
from expunge.store import Store
from expunge.training.per_sample import squared_gradients
from toys import toy_net


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def by_hand(model, split, alpha, dampening):
    """The formulas, one sample and one weight tensor after another."""
    model = copy.deepcopy(model).eval().requires_grad_(True)

    def importance(data):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for k in range(len(data)):
            loss = functional.cross_entropy(model(data.fetch(torch.tensor([k]))), data.labels[k : k + 1])
            for t, g in zip(total, torch.autograd.grad(loss, list(model.parameters())), strict=True):
                t.add_(g.square() / len(data))
        return total

    of_all_data, of_forget_set = importance(split.train), importance(split.forget)
    with torch.no_grad():
        for p, of_all, of_forget in zip(model.parameters(), of_all_data, of_forget_set, strict=True):
            for k in (of_forget > alpha * of_all).flatten().nonzero().flatten().tolist():
                p.view(-1)[k] *= min(float(dampening * of_all.view(-1)[k] / of_forget.view(-1)[k]), 1.0)
    return model


@pytest.mark.parametrize(("alpha", "dampening"), [(6.5, 1.0), (6.0, 0.5), (0.5, 0.9)])
def test_it_is_the_formula(memorised, alpha, dampening):
    model, split, _ = memorised
    expected = by_hand(model, split, alpha, dampening)
    for method in (
        SSD(alpha=alpha, dampening=dampening),
        SSD(alpha=alpha, dampening=dampening, importances=importances(model, split.train)),
    ):
        unlearned = method(model, split)
        for p, q in zip(unlearned.parameters(), expected.parameters(), strict=True):
            # A ratio at the threshold may fall to either side by rounding.
            assert float(torch.isclose(p, q, rtol=1e-4, atol=1e-7).float().mean()) > 0.999
        assert torch.equal(unlearned[1].running_mean, model[1].running_mean)


def test_where_all_of_the_data_is_forgotten_nothing_stands_out(memorised):
    model, split, _ = memorised
    everything = forget_only(split.train)
    known = importances(model, split.train)
    assert same(SSD(alpha=1.0, importances=known)(model, everything), model)
    assert not same(SSD(alpha=0.5, dampening=0.9, importances=known)(model, everything), model)


def test_at_the_largest_possible_ratio_nothing_changes_and_just_below_something_does(memorised):
    # The authors' alpha = 10 is above it wherever a tenth of the data or more is forgotten.
    model, split, _ = memorised
    assert same(SSD(alpha=128 / 16 + 1e-3)(model, split), model)
    assert not same(SSD(alpha=128 / 16 * 0.9)(model, split), model)
    assert SSD()._alpha(split) == 0.8 * 128 / 16
    assert SSD()._alpha(forget_samples(split.train, [3])) == 10
    classes = forget_classes(split.train, [3])
    assert SSD()._alpha(classes) == 0.5 * 128 / len(classes.forget) and SSD(alpha=3.0)._alpha(split) == 3


def test_what_is_dampened_keeps_less_than_lambda_over_alpha_and_a_lambda_above_every_ratio_changes_nothing(memorised):
    model, split, _ = memorised
    assert same(SSD(alpha=6.0, dampening=128 / 16 + 1e-3)(model, split), model)
    shrunk = SSD(alpha=6.0, dampening=1.5)(model, split)
    kept = torch.cat([(q / p).detach().flatten() for p, q in zip(model.parameters(), shrunk.parameters(), strict=True)])
    kept = kept[kept.isfinite() & (kept != 1)]
    assert len(kept) > 100 and float(kept.min()) >= 0 and 1.5 / 8 <= float(kept.max()) < 1.5 / 6


def test_weights_that_matter_for_nothing_are_kept():
    zero = torch.zeros(3)
    assert dampened(zero, zero, 2.0, 1.0).tolist() == [1, 1, 1]
    assert dampened(zero, torch.tensor([0.0, 1.0, 1e-30]), 2.0, 1.0).tolist() == [1, 0, 0]
    assert dampened(torch.ones(3), torch.tensor([2.0, 4.0, 2.1]), 2.0, 1.0).tolist() == [1, 0.25, pytest.approx(1 / 2.1)]


def test_frozen_parameters_and_statistics_stay(memorised):
    model, split, _ = memorised
    model = copy.deepcopy(model)
    model[4].weight.requires_grad_(False), model[1].bias.requires_grad_(False)
    unlearned = SSD(alpha=0.5, dampening=0.3)(model, split)
    kept = {name for name, t in unlearned.state_dict().items() if torch.equal(t, model.state_dict()[name])}
    assert {"4.weight", "1.bias", "1.running_mean", "5.running_var"} <= kept and "0.weight" not in kept


def test_squares_of_batches_depend_on_the_batch_size_and_ours_do_not(memorised):
    # Public code squares the mean gradient of each batch.
    model, split, _ = memorised

    def of_batches(size):
        net, total, batches = copy.deepcopy(model).eval(), 0.0, list(split.train.batches(size))
        for images, labels in batches:
            loss = functional.cross_entropy(net(images), labels)
            total += sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(net.parameters()))) / len(batches)
        return total

    ours = [sum(float(t.sum()) for t in squared_gradients(model, split.train, batch_size=b).values()) for b in (8, 64)]
    assert ours[0] == pytest.approx(ours[1], rel=1e-4) and of_batches(1) == pytest.approx(ours[0], rel=1e-3)
    assert of_batches(8) > 2 * of_batches(64)


def test_stored_importances_serve_every_request_without_retain_data_and_are_computed_once(memorised, tmp_path):
    model, split, _ = memorised
    store = Store(tmp_path)
    known = importances(model, split.train, store=store)
    with measure_cost() as cost:
        again = importances(model, split.train, store=store)
    assert cost.forward.total() == 0 and all(torch.equal(again.tensors[k], known.tensors[k]) for k in known.tensors)
    assert repr(again) == "Importances(6,186 weights, 128 samples)"
    method = SSD(importances=again)
    assert not method.reads_retain and method.cost(0.1) == 0.1 and SSD().cost(0.1) == 1
    for request in (split, forget_samples(split.train, [1, 2, 3])):
        with measure_cost() as cost:
            found = method(model, forget_only(request.forget))
        assert "retain" not in cost.forward
        for p, q in zip(found.parameters(), SSD()(model, request).parameters(), strict=True):
            assert float(torch.isclose(p, q, rtol=1e-4, atol=1e-7).float().mean()) > 0.999
    other = importances(model, split.retain, store=store)
    assert other.n == 112 and len(store.cells("importances")) == 2


def test_importances_of_another_model_or_training_set_are_refused_unless_told(memorised):
    model, split, _ = memorised
    other, known = toy_net(), importances(model, split.train)
    with pytest.raises(DataError, match="are of the model .* Make them again"):
        SSD(importances=known)(other, split)
    with pytest.raises(DataError, match="are of the data"):
        SSD(importances=importances(model, split.retain))(model, split)
    SSD(importances=known, transferred=True)(other, split)
    with pytest.raises(ConfigError, match="transferred=True needs"):
        SSD(transferred=True)
    frozen = copy.deepcopy(model)
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(DataError, match=r"none that fit 1 parameters \(first: 0.weight\)"):
        SSD(importances=importances(frozen, split.train))(model, split)


def test_a_class_leaves_and_the_others_stay(memorised_class):
    model, split, _ = memorised_class
    unlearned = SSD()(model, split)
    answers = expunge.logits_of(unlearned, split.train).argmax(1)
    right = answers == split.train.labels
    assert not right[split.forget_indices].any() and right.float().sum() == len(split.retain)


def test_several_requests_one_after_another_take_the_originals_importances(memorised):
    model, split, _ = memorised
    method = SSD(importances=importances(model, split.train), transferred=True)
    first, second = expunge.unlearn_sequentially(method, model, split.train, [[0, 8], [16]])
    assert not same(first, model) and not same(second, first)
    with pytest.raises(DataError, match="are of the data"):
        expunge.unlearn_sequentially(dataclasses.replace(method, transferred=False), model, split.train, [[0, 8], [16]])
