import pytest
import torch
from torch import nn

from expunge.data.split import forget_samples
from expunge.errors import DataError, ModelError
from expunge.methods import BoundaryExpanding, boundary_expanding
from expunge.models import with_normalize
from expunge.rng import fork
from expunge.training import until
from expunge.training.head import features_and_logits, features_of, last_linear
from expunge.training.inference import logits_of

FORGETS = BoundaryExpanding(epochs=5, lr=1e-2, batch_size=8)


def shapes(model):
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def test_after_pruning_the_model_has_its_own_outputs_shapes_and_modules(memorised_class):
    model, split, _ = memorised_class
    unlearned = FORGETS(model, split)
    assert shapes(unlearned) == shapes(model) and [type(m) for m in unlearned.modules()] == [type(m) for m in model.modules()]
    assert logits_of(unlearned, split.forget).shape[1] == 10
    assert not unlearned[-1]._forward_pre_hooks
    assert float((logits_of(unlearned, split.forget).argmax(1) == 3).float().mean()) < 0.5


def test_the_expanded_model_answers_as_the_original_and_with_one_class_more(memorised_class):
    model, split, _ = memorised_class
    expanded = boundary_expanding._Expanded(model, model[-1])
    answers = logits_of(expanded, split.forget)
    assert answers.shape[1] == 11 and torch.equal(answers[:, :10], logits_of(model, split.forget))
    assert (expanded.shadow.bias == 0).all() and expanded.shadow.weight.abs().sum() > 0


def test_the_shadow_is_trained_and_takes_the_forget_samples_in(memorised_class, monkeypatch):
    model, split, _ = memorised_class
    kept = []

    def spy(expanded, data, objective, **options):
        before = expanded.shadow.weight.clone()
        sgd(expanded, data, objective, **options)
        kept.append((before, expanded.shadow.weight.clone(), logits_of(expanded, split.forget)))

    sgd = until.sgd
    monkeypatch.setattr(until, "sgd", spy)
    FORGETS(model, split)
    before, after, answers = kept[-1]
    assert not torch.equal(before, after) and (answers.argmax(1) == 10).float().mean() > 0.9


def test_one_step_is_that_of_a_larger_last_layer(memorised_class):
    # The row beside the model computes what the paper's Linear(d, K + 1) does.
    model, split, _ = memorised_class
    with fork(0):
        expanded = boundary_expanding._Expanded(model, model[-1])
    images = split.forget.fetch(torch.arange(4))
    larger = nn.Linear(128, 11)
    with torch.no_grad():
        larger.weight.copy_(torch.cat([model[-1].weight, expanded.shadow.weight]))
        larger.bias.copy_(torch.cat([model[-1].bias, expanded.shadow.bias]))
    features, _ = features_and_logits(model, model[-1], images)
    target = torch.full((4,), 10)
    ours = torch.autograd.grad(
        nn.functional.cross_entropy(expanded(images), target), [model[-1].weight, expanded.shadow.weight, model[0].weight]
    )
    theirs = torch.autograd.grad(nn.functional.cross_entropy(larger(features), target), [larger.weight, model[0].weight])
    assert torch.allclose(torch.cat(ours[:2]), theirs[0], atol=1e-6) and torch.allclose(ours[2], theirs[1], atol=1e-6)


def test_as_the_step_vanishes_every_row_of_the_original_stays(memorised_class):
    model, split, _ = memorised_class
    still = BoundaryExpanding(lr=1e-12, until=None)(model, split)
    assert torch.allclose(still[-1].weight, model[-1].weight, atol=1e-8) and torch.allclose(still[-1].bias, model[-1].bias, atol=1e-8)


def test_the_step_grows_until_the_answers_without_the_shadow_leave_the_class_and_the_shadow_starts_anew(memorised_class, monkeypatch):
    model, split, _ = memorised_class
    starts = []

    def spy(expanded, data, objective, **options):
        starts.append((options["lr"], expanded.shadow.weight.clone()))
        sgd(expanded, data, objective, **options)

    sgd = until.sgd
    monkeypatch.setattr(until, "sgd", spy)
    unlearned = BoundaryExpanding(until=0.05)(model, split)
    assert not (logits_of(unlearned, split.forget).argmax(1) == 3).any()
    assert len(starts) > 1 and [lr for lr, _ in starts] == [1e-5 * 2**k for k in range(len(starts))]
    assert all(torch.equal(w, starts[0][1]) for _, w in starts)
    alone = BoundaryExpanding(lr=starts[-1][0], until=None)(model, split)
    assert all(torch.equal(a, b) for a, b in zip(unlearned.state_dict().values(), alone.state_dict().values(), strict=True))


def test_batchnorm_keeps_its_statistics_unless_told_otherwise(memorised_class):
    model, split, _ = memorised_class
    ours, paper = (BoundaryExpanding(until=None, **options)(model, split) for options in ({}, {"batchnorm": "train"}))
    assert torch.equal(ours[1].running_mean, model[1].running_mean)
    assert not torch.equal(paper[1].running_mean, model[1].running_mean)


def test_a_part_of_a_class_is_refused(memorised_class):
    model, split, _ = memorised_class
    with pytest.raises(DataError, match="boundary_expanding forgets whole classes"):
        BoundaryExpanding()(model, forget_samples(split.train, split.forget_indices[:2]))


# The last linear layer, which TRW asks for too.


class Named(nn.Module):
    """Its last layer is neither the last module nor the only one of its shape."""

    def __init__(self, body):
        super().__init__()
        self.classifier, self.body = nn.Linear(12, 10), body
        self.unused = nn.Linear(12, 10)

    def forward(self, x):
        return self.classifier(self.body(x))


def test_the_last_layer_is_found_by_what_it_does(digits):
    net = Named(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 12)))
    assert last_linear(net, digits[0]) is net.classifier
    assert last_linear(with_normalize(net, [0.5], [0.5]), digits[0]) is net.classifier
    few = digits[0].subset(range(5))
    features = features_of(net, net.classifier, few)
    assert torch.allclose(net.classifier(features), logits_of(net, few), atol=1e-6)
    assert not net.classifier._forward_hooks and not net.classifier._forward_pre_hooks


def test_an_output_that_is_changed_behind_the_last_layer_is_refused(digits):
    class Halved(Named):
        def forward(self, x):
            return super().forward(x) / 2

    with pytest.raises(ModelError, match=r"last layer called is Linear\(.*, and its output is changed"):
        last_linear(Halved(nn.Sequential(nn.Flatten(), nn.Linear(64, 12))), digits[0])


@pytest.mark.parametrize(
    ("tail", "named"),
    [
        ([nn.Linear(64, 10), nn.ReLU(inplace=True)], "ReLU"),
        ([nn.Unflatten(1, (64, 1, 1)), nn.Conv2d(64, 10, 1), nn.Flatten()], "Flatten"),
        ([nn.Linear(64, 10), nn.BatchNorm1d(10)], "BatchNorm1d"),
    ],
    ids=["relu", "conv", "batchnorm"],
)
def test_a_last_layer_that_is_not_linear_is_refused_by_name_with_the_remedy(memorised_class, tail, named):
    _, split, _ = memorised_class
    with pytest.raises(ModelError, match=rf"nn.Linear layer puts out; the last layer called is {named}.*Put the nn.Linear last"):
        BoundaryExpanding(epochs=1)(nn.Sequential(nn.Flatten(), *tail), split)
