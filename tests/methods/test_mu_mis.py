import pytest
import torch
from torch import nn

from expunge import measure_cost
from expunge.data.images import ImageData
from expunge.data.mixture import Batch
from expunge.data.split import forget_classes, forget_only, forget_samples
from expunge.methods import MUMis, mu_mis
from expunge.methods.mu_mis import _Watch, sensitivities
from expunge.rng import fork
from expunge.training.inference import logits_of
from toys import Attending, spy_on_sgd, toy_net


def batch(images, labels):
    return Batch(images, labels, torch.arange(len(images)), torch.zeros(len(images), dtype=torch.int64))


def drawn(monkeypatch, others):
    monkeypatch.setattr(mu_mis, "random_labels", lambda allowed: others)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    data = ImageData(torch.randint(256, (12, 1, 8, 8), dtype=torch.uint8), torch.arange(12) % 3, tuple("abc"))
    return toy_net(n_classes=3).eval(), forget_samples(data, range(8))


def test_sensitivities_are_slopes_by_finite_differences(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    images, labels, others = torch.rand(3, 1, 3, 3).double(), torch.tensor([0, 1, 2]), torch.tensor([3, 0, 1])
    drawn(monkeypatch, others)
    own, other = sensitivities(net, batch(images, labels), ())
    with torch.no_grad():
        for i in range(3):
            steps = 1e-6 * torch.eye(9).double().view(9, 1, 3, 3)
            slopes = (net(images[i] + steps) - net(images[i] - steps)) / 2e-6
            for found, c in ((own, labels[i]), (other, others[i])):
                assert found[i].item() == pytest.approx(slopes[:, c].square().sum().item(), rel=1e-5)


def test_the_gradient_of_the_loss_is_right_by_finite_differences_in_every_weight(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    samples = batch(torch.rand(4, 1, 3, 3).double(), torch.tensor([0, 1, 2, 0]))
    drawn(monkeypatch, torch.tensor([1, 2, 0, 2]))

    def loss():
        own, other = sensitivities(net, samples, ())
        return (own - other).mean()

    loss().backward()
    for p in net.parameters():
        for i in range(p.numel()):
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    p.view(-1)[i] += step
                values.append(loss().item())
                with torch.no_grad():
                    p.view(-1)[i] -= step
            slope = 0.0 if p.grad is None else p.grad.view(-1)[i].item()  # the last bias has none
            assert slope == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-5)


def test_one_step_on_a_linear_model_is_the_closed_form(monkeypatch):
    # ∇_x z_c = w_c: the loss is the mean of ‖w_y‖² − ‖w_{y'}‖², and a step shrinks w_y and lets w_{y'} grow.
    torch.manual_seed(0)
    data = ImageData(torch.randint(256, (6, 1, 4, 4), dtype=torch.uint8), torch.tensor([0, 0, 1, 2, 1, 2]), tuple("abc"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    drawn(monkeypatch, torch.tensor([1, 1]))
    unlearned = MUMis(epochs=1, lr=0.1)(model, forget_samples(data, [0, 1]))
    expected = torch.tensor([1 - 0.2, 1 + 0.2, 1.0])[:, None] * model[1].weight
    assert torch.allclose(unlearned[1].weight, expected, atol=1e-6) and torch.equal(unlearned[1].bias, model[1].bias)


def test_slopes_do_not_depend_on_batch_mates_and_on_the_layout(problem, monkeypatch):
    model, split = problem
    images, labels = split.forget.fetch(torch.arange(8)), split.forget.labels
    drawn(monkeypatch, (labels + 1) % 3)
    own, other = sensitivities(model, batch(images, labels), ())
    drawn(monkeypatch, (labels[:1] + 1) % 3)
    alone = sensitivities(
        model.to(memory_format=torch.channels_last), batch(images[:1].contiguous(memory_format=torch.channels_last), labels[:1]), ()
    )
    assert torch.allclose(torch.cat(alone), torch.stack([own[0], other[0]]), rtol=1e-4)


def test_training_is_in_float32_without_moving_statistics(problem, monkeypatch):
    # In bfloat16 the slopes of two classes differ by less than their rounding.
    model, split = problem
    calls = spy_on_sgd(monkeypatch, mu_mis)
    unlearned = MUMis(epochs=2, batch_size=4)(model, split)
    assert calls[0][1]["precision"] == "float32" and calls[0][1]["momentum"] == 0
    assert torch.equal(unlearned[1].running_mean, model[1].running_mean)


def test_the_other_class_is_never_the_own_nor_a_forgotten_one(memorised_class):
    _, split, _ = memorised_class
    split = forget_classes(split.train, [3, 5])
    allowed = []
    with pytest.MonkeyPatch.context() as patch, fork(0):
        drawer = mu_mis.random_labels
        patch.setattr(mu_mis, "random_labels", lambda a: allowed.append(drawer(a)) or allowed[-1])
        MUMis(epochs=20, delta=None)(toy_net(), split)
    assert set(torch.cat(allowed).tolist()) == set(range(10)) - {3, 5}


def test_it_stops_once_the_sensitivity_of_others_has_passed_its_minimum_and_risen_above_delta():
    def stops(delta, history):
        watch = _Watch(delta)
        for epoch, value in enumerate(history):
            watch.note(torch.tensor([value**2]))
            if watch(epoch + 1) is True:
                return epoch + 1
        return None

    assert stops(1.2, [1.0, 0.8, 0.9, 1.1, 1.3, 1.5]) == 5
    assert stops(0.9, [1.0, 0.95, 0.8, 0.85, 0.95]) == 5  # above 0.9 at first too, but the minimum had not been passed
    assert stops(1.2, [1.0, 1.3]) == 2 and stops(0.5, [1.0, 0.9, 0.8, 0.7]) is None and stops(None, [1.0, 5.0]) is None


def test_stopping_ends_the_training(memorised_class):
    model, split, _ = memorised_class
    with measure_cost() as early:
        MUMis(delta=1e-6, lr=1e-3)(model, split)
    with measure_cost() as late:
        MUMis(delta=None, lr=1e-5)(model, split)
    assert early.backward["forget"] < late.backward["forget"] == 40 * 3 * len(split.forget)


def test_the_own_classs_sensitivity_falls_and_a_class_leaves_while_the_others_stay(memorised_class):
    model, split, _ = memorised_class
    unlearned = MUMis(lr=3e-4, batch_size=4, delta=None, epochs=9)(model, forget_only(split.forget, [3]))
    answers = logits_of(unlearned, split.forget).argmax(1), logits_of(unlearned, split.retain).argmax(1)
    assert (answers[0] == 3).float().mean() < 0.3 and (answers[1] == split.retain.labels).float().mean() > 0.9
    samples = batch(split.forget.fetch(torch.arange(len(split.forget))), split.forget.labels)
    assert sensitivities(unlearned.eval(), samples, (3,))[0].mean() < sensitivities(model.eval(), samples, (3,))[0].mean()


def test_attention_is_differentiated_twice(problem):
    _, split = problem
    model = Attending().eval()
    unlearned = MUMis(epochs=1, batch_size=4)(model, split)
    assert not torch.equal(unlearned.attention.in_proj_weight, model.attention.in_proj_weight)
