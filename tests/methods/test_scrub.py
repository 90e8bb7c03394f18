import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from expunge import measure_cost
from expunge.data.images import Augment, ImageData
from expunge.data.mixture import Batch
from expunge.errors import ConfigError, DataError
from expunge.methods import SCRUB, scrub
from expunge.methods.scrub import error_like
from expunge.rng import derive, draw_seed, fork, permutation
from expunge.training.inference import logits_of
from expunge.training.loop import sgd
from expunge.training.objectives import distillation
from expunge.training.teacher import Teacher
from toys import spy_on_sgd

QUICK = {"epochs": 2, "max_epochs": 1, "batch_size": 16, "forget_batch_size": 4, "lr": 0.005}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("max_epochs", [0, 1, 2])
def test_the_steps_are_those_of_a_plain_loop(memorised, monkeypatch, max_epochs):
    # Oracle: torch's own SGD, written out: up on the forget set, then down on teacher and labels. Without epochs up it is distillation plus cross-entropy.
    model, split, _ = memorised
    monkeypatch.setattr(scrub, "sgd", functools.partial(sgd, precision="float32"))
    options = {"epochs": 2, "batch_size": 28, "forget_batch_size": 8, "lr": 0.01, "alpha": 0.3, "gamma": 0.7, "temperature": 2.0}
    ours = SCRUB(max_epochs=max_epochs, weight_decay=1e-3, **options)(model, split, seed=5, device="cpu")
    with fork(5):
        seed = draw_seed()
    student, teacher = copy.deepcopy(model).train(), copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)

    def step(samples, positions, sign, gamma):
        images, labels = samples.fetch(positions), samples.labels[positions]
        answers, wanted = student(images), teacher(images).detach()
        departure = 2.0**2 * sum(
            (q * (q.log() - p.log())).sum() for p, q in zip((answers / 2).softmax(1), (wanted / 2).softmax(1), strict=True)
        )
        loss = sign * departure / len(positions) + gamma * functional.cross_entropy(answers, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for epoch in range(2):
        if epoch < max_epochs:
            for positions in permutation(16, derive(seed, 0), epoch).split(8):
                step(split.forget, positions, -1, 0)
        for positions in permutation(112, derive(seed, 1), epoch).split(28):
            step(split.retain, positions, 0.3, 0.7)
    for a, b, first in zip(ours.parameters(), student.parameters(), model.parameters(), strict=True):
        assert (a - b).norm() < 1e-3 * (b - first).norm() + 1e-6


def test_the_teacher_is_divided_by_samples_alone_and_multiplied_by_the_temperature_squared():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 10).double(), torch.randn(6, 10).double()
    by_hand = 0.0
    for z, t in zip(student / 3, teacher / 3, strict=True):
        by_hand += float((t.softmax(0) * (t.softmax(0) / z.softmax(0)).log()).sum()) * 9 / 6
    assert float(distillation(student, teacher, 3.0)) == pytest.approx(by_hand)
    mean = functional.kl_div((student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="none").mean() * 9  # over ten classes too
    assert float(distillation(student, teacher, 3.0)) == pytest.approx(10 * float(mean))
    assert float(distillation(teacher, teacher, 3.0)) == 0


def test_the_first_step_up_has_no_gradient_unless_batchnorm_uses_batch_statistics(memorised):
    model, split, _ = memorised
    images = split.forget.fetch(torch.arange(16))
    batch = Batch(images, split.forget.labels, split.forget.ids, torch.zeros(16, dtype=torch.int64))

    def gradient(student):
        loss = SCRUB()._up_or_down(Teacher(model, [split.train]))(student, batch)
        return max(float(g.abs().max()) for g in torch.autograd.grad(loss, list(student.parameters())))

    assert gradient(copy.deepcopy(model).eval()) < 1e-5
    assert gradient(copy.deepcopy(model).train()) > 1e-3


def test_the_student_moves_and_the_teacher_does_not(memorised, monkeypatch):
    # A public SCRUB hands the teacher's parameters to the optimiser, so that the student comes back as it was.
    model, split, _ = memorised
    teachers = []
    monkeypatch.setattr(scrub, "Teacher", lambda *a: teachers.append(Teacher(*a)) or teachers[0])
    unlearned = SCRUB(**QUICK)(model, split)
    assert same(teachers[0].model, model) and not any(m.training for m in teachers[0].model.modules())
    assert all(not torch.equal(a, b) for a, b in zip(unlearned.parameters(), model.parameters(), strict=True))
    assert distillation(logits_of(unlearned, split.forget), logits_of(model, split.forget), 4.0) > 0.05
    assert float((logits_of(unlearned, split.retain).argmax(1) == split.retain.labels).float().mean()) > 0.95


def test_forget_batches_of_their_own_size_come_first_in_the_first_epochs_alone(memorised, monkeypatch):
    # A public version counts epochs from 0 and climbs in one more.
    model, split, _ = memorised
    seen = []

    def spy(model, data, objective, **options):
        def noted(model, batch):
            seen.append((batch.epoch, batch.source.unique().tolist(), len(batch.ids)))
            return objective(model, batch)

        sgd(model, data, noted, **options)

    monkeypatch.setattr(scrub, "sgd", spy)
    with measure_cost() as cost:
        SCRUB(epochs=3, max_epochs=2, batch_size=56, forget_batch_size=5)(model, split)
    up, down = [[0], [0], [0]], [[1], [1]]
    assert [source for _, source, _ in seen] == [*up, *down, *up, *down, *down]
    assert [n for _, _, n in seen] == [5, 5, 6, 56, 56] * 2 + [56, 56]  # 16 = 5 + 5 + 5 + 1: the odd one joins
    assert dict(cost.backward) == {"forget": 32, "retain": 336} and cost.forward["retain"] == 336 + 112  # the teacher answers once


def test_rewinding_returns_the_student_whose_error_is_nearest_to_that_of_the_last_on_unseen_samples(memorised):
    model, split, test = memorised
    options = {"max_epochs": 2, "batch_size": 16, "forget_batch_size": 4, "lr": 0.01}
    rewound = SCRUB(epochs=4, rewind=True, validation=test, **options)(model, split)
    students = [SCRUB(epochs=k, **options | {"max_epochs": min(k, 2)})(model, split) for k in (1, 2, 3, 4)]

    def errors(student, samples):
        return logits_of(student, samples).argmax(1) != samples.labels

    share = split.forget.labels.bincount(minlength=10) / 16
    wrong = errors(students[-1], test)
    reference = sum(float(share[k] * wrong[test.labels == k].float().mean()) for k in range(10) if share[k])
    distances = [abs(float(errors(s, split.forget).float().mean()) - reference) for s in students]
    best = distances.index(min(distances))
    assert best < 3 and min(distances) < distances[-1]
    assert same(rewound, students[best]) and not same(rewound, students[-1])


def test_errors_are_weighted_to_the_classes_of_the_forget_set(memorised):
    model, split, test = memorised
    assert error_like(split.forget, model, split.forget) == 0
    pattern = test.subset((test.labels == 1).nonzero().flatten()[:3])
    ones = test.labels == 1
    assert error_like(pattern, model, test) == pytest.approx(float((logits_of(model, test).argmax(1) != 1)[ones].float().mean()))


def test_without_validation_retain_samples_of_the_same_classes_are_held_out(memorised, monkeypatch):
    model, split, _ = memorised
    calls = spy_on_sgd(monkeypatch, scrub)
    scored = []
    monkeypatch.setattr(scrub, "error_like", lambda pattern, model, samples: scored.append(samples) or 0.5)
    method = SCRUB(rewind=True, held_out=0.2, **QUICK)
    method(model, split)
    (_, retain), _ = calls[0]
    held = scored[-1]
    assert sorted(held.ids.tolist() + retain.ids.tolist()) == split.retain.ids.tolist()
    assert set(held.labels.tolist()) == set(split.forget.labels.tolist()) and 0.1 < len(held) / len(split.retain) < 0.4
    assert all(len(s) == 16 for s in scored[:-1]) and len(scored) == 3


def test_what_rewinding_costs_is_what_it_says(memorised):
    model, split, test = memorised
    split = replace(split, train=replace(split.train, augment=Augment(flip=True)))  # so that the teacher answers in every epoch
    for method in (SCRUB(rewind=True, **QUICK), SCRUB(rewind=True, validation=test, **QUICK)):
        with measure_cost() as cost:
            method(model, split)
        if method.validation is not None:
            known = torch.isin(test.labels, split.forget.labels)
            assert cost.forward.pop("other") == int(known.sum())  # no samples of the training set, although they have ids of such
            assert cost.forward["retain"] == 2 * cost.backward["retain"] == 4 * 112
        assert cost.passes(128) == pytest.approx(method.cost(1 / 8), rel=0.1)


def test_rewinding_needs_unseen_samples_of_every_class(memorised_class, memorised):
    model, split, test = memorised_class
    with pytest.raises(DataError, match=r"none of \['3'\] in the retain set.*validation="):
        SCRUB(rewind=True, **QUICK)(model, split)
    SCRUB(rewind=True, validation=test, **QUICK)(model, split)
    without = test.subset((test.labels != 3).nonzero().flatten())
    named = ImageData(test.images, test.labels, tuple("abcdefghij"))
    for bad in (without, named):
        with pytest.raises(DataError, match="in `validation`"):
            SCRUB(rewind=True, validation=bad, **QUICK)(model, split)


def test_more_epochs_up_than_epochs_are_refused():
    with pytest.raises(ConfigError, match="max_epochs must be at most epochs, 3; got 4"):
        SCRUB(epochs=3, max_epochs=4)
