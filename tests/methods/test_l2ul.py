import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge import L2UL, measure_cost
from expunge.data.images import ImageData
from expunge.data.split import forget_classes, forget_only, forget_samples
from expunge.errors import DataError, ModelError
from expunge.methods import l2ul
from expunge.methods.l2ul import from_0_to_1, towards
from expunge.training.inference import logits_of
from expunge.training.loop import sgd
from expunge.training.per_sample import absolute_gradients, answer_length
from toys import toy_net

QUICK = {"n_adversarial": 2, "attack_steps": 8, "eps": 1.0}


@pytest.fixture
def trained_on(monkeypatch):
    """What is handed to the training loop: sources, objective and options."""
    calls = []

    def spy(model, sources, objective, **options):
        calls.append((sources, objective, options))
        sgd(model, sources, objective, **options)

    monkeypatch.setattr(l2ul, "sgd", spy)
    return calls


def right(model, samples):
    return float((logits_of(model, samples).argmax(1) == samples.labels).float().mean())


def test_examples_lie_in_the_ball_and_are_answered_with_their_targets(memorised):
    model, split, _ = memorised
    at, targets = torch.arange(16).repeat_interleave(3), (split.forget.labels.repeat_interleave(3) + torch.arange(1, 4).repeat(16)) % 10
    x = split.forget.fetch(at)
    images = towards(model, split.forget, at, targets, eps=2.0, step=0.1, steps=40)
    far = (images.double() - x.double()).flatten(1).norm(dim=1)
    assert float(far.max()) <= 2.0 and float(images.min()) >= 0 and float(images.max()) <= 1
    assert float((model.eval()(images).argmax(1) == targets).float().mean()) > 0.95
    near = towards(model, split.forget, at, targets, eps=0.05, step=0.1, steps=3)
    assert 0.049 < float((near.double() - x.double()).flatten(1).norm(dim=1).max()) <= 0.05


def test_on_a_linear_model_the_example_is_where_the_ball_ends():
    # Two logits ±w·x: the way to the other class is along w, the same from everywhere.
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    w = torch.tensor([0.3, -0.1, 0.2, 0.4])
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-w, w]))
    data = ImageData(torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), ("a", "b"))
    image = towards(model, data, torch.tensor([0]), torch.tensor([1]), eps=0.25, step=0.1, steps=5)
    torch.testing.assert_close(image.flatten(), 0.5 + 0.25 * w / w.norm(), rtol=0, atol=1e-5)


def test_a_target_is_any_other_remaining_class_and_none_is_preferred(memorised, trained_on, monkeypatch):
    # The authors' code sends a sample that drew its own class to class K // 2, also samples of that class.
    model, split, _ = memorised
    monkeypatch.setattr(l2ul, "towards", lambda model, samples, at, targets, **_: samples.fetch(at))
    labels = split.train.labels
    for request, gone in (
        (forget_samples(split.train, (labels == 5).nonzero().flatten()), {5}),
        (forget_classes(split.train, [5, 6]), {5, 6}),
    ):
        L2UL(n_adversarial=100, epochs=1)(model, request)
        found = trained_on.pop()[0][1]
        counts = torch.bincount(found.labels, minlength=10)
        assert {k for k in range(10) if counts[k] == 0} == gone and float(counts.max()) < 1.4 * float(counts[counts > 0].min())
        assert torch.equal(found.ids, request.forget.ids.repeat_interleave(100))
    with pytest.raises(DataError, match="none of which remains"):
        zeros = ImageData(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), ("only",))
        L2UL(**QUICK)(toy_net(n_classes=1), forget_samples(zeros, [0]))


def test_the_loss_is_the_papers(memorised, trained_on):
    model, split, _ = memorised
    for stop_each in (True, False):
        L2UL(**QUICK, epochs=1, anchor=3.0, stop_each=stop_each)(model, split)
        (forget, adversarial), objective, options = trained_on.pop()
        moved = copy.deepcopy(model).eval()
        with torch.no_grad():
            for k, p in enumerate(moved.parameters()):
                p.add_(0.01 * (k + 1) * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
        visits = options["order"]([len(forget), len(adversarial)], 16, 0, 0)
        assert len(visits) == 1 and int((visits[0].positions < 16).sum()) == 16 == int((visits[0].positions >= 16).sum())
        pick = visits[0].positions[16:] - 16
        logits_f, logits_a = moved(forget.fetch(torch.arange(16))), moved(adversarial.images[pick])
        own = functional.cross_entropy(logits_f, forget.labels, reduction="none")
        if stop_each:
            own = own * (logits_f.argmax(1) == forget.labels)
        expected = -0.5 * own.mean() + 0.5 * functional.cross_entropy(logits_a, adversarial.labels[pick])
        for p, first, i in zip(
            moved.parameters(), model.parameters(), absolute_gradients(model, forget, answer_length).values(), strict=True
        ):
            scaled = (i - i.min()) / (i.max() - i.min() + 1e-12)
            expected = expected + 1.5 * ((1 - scaled) * (p - first).square()).sum()
        batch = next(l2ul_batches(forget, adversarial, pick))
        assert float(objective(moved, batch).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def l2ul_batches(forget, adversarial, pick):
    from expunge.data.mixture import Mixture

    return Mixture([forget, adversarial], torch.device("cpu"), augment=False).epoch([torch.cat([torch.arange(16), 16 + pick])], 0)


def test_importance_is_brought_to_0_and_1_in_each_parameter():
    assert from_0_to_1(torch.tensor([[2.0, 4.0], [3.0, 2.0]])).tolist() == [[0, 1], [0.5, 0]]
    assert from_0_to_1(torch.full((3,), 7.0)).tolist() == [0, 0, 0] == from_0_to_1(torch.zeros(3)).tolist()


def test_an_anchor_holds_the_weights(memorised):
    model, split, _ = memorised

    def moved(anchor):
        unlearned = L2UL(**QUICK, epochs=20, weight_decay=0.0, anchor=anchor)(model, split)
        return float(sum((p - q).square().sum() for p, q in zip(unlearned.parameters(), model.parameters(), strict=True)).detach())

    free, held, fixed = moved(0.0), moved(10.0), moved(300.0)
    assert 0 < fixed < held / 10 and held < free / 1.2


def test_it_ends_when_all_are_misclassified_and_adversarial_examples_hold_the_rest(memorised_class):
    model, split, _ = memorised_class
    few = forget_only(split.forget.subset(range(4)))
    with measure_cost() as cost:
        unlearned = L2UL(n_adversarial=10, attack_steps=20, eps=1.0, lr=5e-3, epochs=200)(model, few)
    assert right(unlearned, few.forget) == 0 and right(unlearned, split.retain) > 0.9
    assert cost.backward["forget"] < 0.5 * 200 * 8
    alone = L2UL(n_adversarial=0, anchor=0.0, stop_each=False, lr=5e-3, epochs=200)(model, few)
    assert right(alone, few.forget) == 0 and right(alone, split.retain) < right(unlearned, split.retain)


def test_where_all_climb_until_the_last_is_wrong_the_loss_may_have_no_end(memorised):
    model, split, _ = memorised
    with pytest.raises(ModelError, match="diverged"):
        L2UL(n_adversarial=0, anchor=0.0, stop_each=False, lr=0.3, epochs=200)(model, forget_only(split.train))
