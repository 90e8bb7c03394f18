"""Teachers: who does not learn, and does not answer twice."""

import dataclasses

import pytest
import torch

from expunge import measure_cost
from expunge.data.images import Augment
from expunge.data.mixture import Mixture
from expunge.training.teacher import Teacher

CPU = torch.device("cpu")


def batches(sets, epoch=0):
    mixture = Mixture(sets, CPU, seed=1)
    return list(mixture.epoch(torch.randperm(len(mixture), generator=torch.Generator().manual_seed(epoch)).split(7), epoch))


@pytest.mark.parametrize("augment", [Augment(), Augment(pad=1)])
def test_it_answers_for_the_images_that_the_student_sees_and_once_where_these_stay_the_same(memorised, augment):
    model, split, _ = memorised
    train = dataclasses.replace(split.train, augment=augment)
    sets = [train.subset(split.forget_indices), train.subset(range(0, 40, 2))]
    sets[1] = sets[1].subset([k for k, i in enumerate(sets[1].ids.tolist()) if i not in split.forget_indices.tolist()])
    n = sum(map(len, sets))
    teacher = Teacher(model, sets)
    with measure_cost() as cost:
        for epoch in range(3):
            for batch in batches(sets, epoch):
                torch.testing.assert_close(teacher(batch), model.eval()(batch.images).detach(), rtol=1e-4, atol=1e-4)
                assert not teacher(batch).requires_grad
    # Batches differ between epochs: one is asked again if it holds a sample that is new, and here the first epoch has seen all.
    assert cost.forward.total() == (n if augment == Augment() else 6 * n)
    assert not teacher.model.training and all(not p.requires_grad for p in teacher.model.parameters())


def test_an_unknown_sample_among_known_ones_is_asked_for(memorised):
    model, split, _ = memorised
    teacher = Teacher(model, [split.train])
    first, second = (next(Mixture([split.train], CPU).epoch([torch.tensor(k)], 0)) for k in ([0, 1, 2], [2, 3]))
    teacher(first)
    torch.testing.assert_close(teacher(second), model.eval()(second.images).detach(), rtol=1e-4, atol=1e-4)
