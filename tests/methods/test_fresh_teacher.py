import copy

import pytest
import torch
from torch import nn

from expunge import measure_cost
from expunge.data.images import ImageData
from expunge.data.split import forget_samples
from expunge.errors import ModelError
from expunge.methods import FreshTeacher, fresh_teacher
from expunge.training.inference import logits_of

QUICK = FreshTeacher(epochs=10, teacher_epochs=10, batch_size=16)


@pytest.fixture
def passed_on(monkeypatch):
    """What went into training and what the teacher answered: (data, options) of each call, and (logits, labels made of them)."""
    calls, answers = [], []
    sgd, relabel = fresh_teacher.sgd, fresh_teacher.relabel

    def watched_sgd(model, data, **options):
        calls.append((data, options))
        sgd(model, data, **options)
        if len(calls) % 2:  # the teacher's training
            calls[-1] = (data, options | {"teacher": model})

    def watched_relabel(data, labels):
        answers.append((data, labels))
        return relabel(data, labels)

    monkeypatch.setattr(fresh_teacher, "sgd", watched_sgd)
    monkeypatch.setattr(fresh_teacher, "relabel", watched_relabel)
    return calls, answers


def relabelled(split, labels):
    """The same request, whose forget samples have other labels."""
    data = split.train
    other = ImageData(data.images, data.labels.clone(), data.classes)
    other.labels[split.forget_indices] = labels
    return forget_samples(other, split.forget_indices)


def accuracy(model, data, labels):
    return float((logits_of(model, data).argmax(1) == labels).double().mean())


def test_labels_that_only_memory_tells_are_gone_and_the_images_are_answered_with_what_they_show(memorised, digits):
    model, split, test = memorised
    wrong, true = split.forget.labels, digits[0].labels[split.forget_indices]
    assert accuracy(model, split.forget, wrong) == 1
    unlearned = QUICK(model, split, device="cpu")
    assert accuracy(unlearned, split.forget, wrong) <= 2 / 16 and accuracy(unlearned, split.forget, true) >= 11 / 16
    assert accuracy(unlearned, split.retain, split.retain.labels) >= 0.97
    assert accuracy(unlearned, test, test.labels) >= accuracy(model, test, test.labels) - 0.02


def test_no_label_of_a_forget_sample_is_read(memorised):
    model, split, _ = memorised
    results = [FreshTeacher(epochs=1, teacher_epochs=1)(model, relabelled(split, k), seed=3, device="cpu").state_dict() for k in (2, 7)]
    assert all(torch.equal(a, b) for a, b in zip(*(result.values() for result in results), strict=True))


def test_the_teacher_sees_the_retain_set_alone_and_nothing_of_the_original_s_weights(memorised, passed_on):
    model, split, _ = memorised
    calls, _ = passed_on
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    for original in (model, other):
        QUICK(original, split, seed=1, device="cpu")
    (first, options), (second, _) = calls[::2]
    assert first.ids.tolist() == second.ids.tolist() == split.retain.ids.tolist() and options["lr"] == QUICK.teacher_lr
    teachers = [options["teacher"].state_dict().values() for _, options in calls[::2]]
    assert all(torch.equal(a, b) for a, b in zip(*teachers, strict=True))


def test_its_answers_are_the_labels_and_the_temperature_makes_them_surer(memorised, passed_on):
    model, split, _ = memorised
    calls, answers = passed_on
    for temperature in (1.0, 0.5):
        FreshTeacher(epochs=1, teacher_epochs=3, temperature=temperature)(model, split, seed=1, device="cpu")
    soft, sure = (labels for _, labels in answers)
    logits = logits_of(calls[0][1]["teacher"], split.forget)
    assert torch.allclose(soft, logits.softmax(1)) and torch.allclose(sure, (2 * logits).softmax(1))
    assert float(sure.max(1).values.mean()) > float(soft.max(1).values.mean())


def test_it_takes_what_it_says(memorised):
    model, split, _ = memorised
    method = FreshTeacher(epochs=2, teacher_epochs=3)
    with measure_cost() as cost:
        method(model, split, device="cpu")
    n, k = len(split.train), len(split.forget)
    assert dict(cost.backward) == {"forget": 2 * k, "retain": (2 + 3) * (n - k)}
    assert cost.passes(n) == pytest.approx(method.cost(k / n), abs=k / n / 3 + 0.01)  # the seam looks at the forget set once


def test_a_model_whose_layers_cannot_be_drawn_anew_gets_its_teacher_from_build(memorised, passed_on):
    class Bare(nn.Module):
        """Has a weight and no way to draw it."""

        def __init__(self):
            super().__init__()
            self.scale, self.linear = nn.Parameter(torch.ones(64)), nn.Linear(64, 10)

        def forward(self, images):
            return self.linear(images.flatten(1) * self.scale)

    _, split, _ = memorised
    with pytest.raises(ModelError, match=r"reset_parameters.*or pass build="):
        FreshTeacher(epochs=1, teacher_epochs=1)(Bare(), split)
    calls, _ = passed_on
    FreshTeacher(epochs=1, teacher_epochs=1, build=Bare)(Bare(), split)
    assert isinstance(calls[0][1]["teacher"], Bare)
