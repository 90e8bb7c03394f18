import copy

import pytest
import torch
from torch import nn

from expunge.attacks.fgsm import logits_after_fgsm
from expunge.data.images import ImageData
from expunge.data.split import forget_classes, forget_samples
from expunge.methods import BoundaryShrink
from expunge.training import until
from expunge.training.inference import logits_of
from toys import spy_on_sgd


@pytest.fixture
def taught(monkeypatch):
    """The forget samples with the labels that they are trained on, once for each call of the training loop."""
    return spy_on_sgd(monkeypatch, until)


def test_labels_are_the_frozen_originals_answers_on_fgsm_images_where_those_left_the_class(memorised_class, taught):
    model, split, _ = memorised_class
    model = copy.deepcopy(model).train()  # the attack must not depend on the mode
    BoundaryShrink(eps=0.25, epochs=1, until=None)(model, split)
    model.eval()
    x = split.forget.fetch(torch.arange(len(split.forget))).requires_grad_()
    nn.functional.cross_entropy(model(x), split.forget.labels, reduction="sum").backward()
    answers = model((x + 0.25 * x.grad.sign()).clamp(0, 1)).argmax(1)
    left = answers != 3
    ((data, _),) = taught
    assert left.float().mean() > 0.8 and torch.equal(data.labels[left], answers[left])
    assert not (data.labels == 3).any(), "the authors' code teaches the true class again where the attack fails"


def test_no_label_is_a_forgotten_class_where_several_are(memorised_class, taught):
    model, split, _ = memorised_class
    BoundaryShrink()(model, forget_classes(split.train, [3, 5, 8, 9]))
    assert not torch.isin(taught[-1][0].labels, torch.tensor([3, 5, 8, 9])).any()


def test_where_the_attack_fails_the_label_is_the_second_best_answer(memorised, taught):
    model, split, _ = memorised
    BoundaryShrink(eps=1e-6, epochs=1)(model, split)
    ((data, _),) = taught
    second = logits_of(model, split.forget).argsort(1, descending=True)[:, 1]
    assert torch.equal(data.labels, second)


def test_fgsm_does_not_depend_on_batch_mates_and_stays_in_the_unit_box(memorised):
    model, split, _ = memorised
    together = logits_after_fgsm(model, split.forget, 0.1)
    alone = torch.cat([logits_after_fgsm(model, split.forget.subset([i]), 0.1) for i in range(16)])
    assert torch.allclose(together, alone, atol=1e-4)
    inputs = []
    watched = nn.Sequential(Recorder(inputs), model)
    logits_after_fgsm(watched, split.forget, 0.5, batch_size=7)
    clean, attacked = torch.cat(inputs[::2]), torch.cat(inputs[1::2])
    assert float(attacked.min()) >= 0 and float(attacked.max()) <= 1 and float((attacked - clean).abs().max()) <= 0.5 + 1e-6


class Recorder(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen.append(x.detach())
        return x


def test_fgsm_finds_its_way_where_the_cross_entropy_has_no_gradient(memorised):
    model, split, _ = memorised
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure[-1].weight.mul_(1000), sure[-1].bias.mul_(1000)
    assert (logits_of(sure, split.forget).softmax(1).amax(1) == 1).all()
    left = logits_after_fgsm(sure, split.forget, 0.25).argmax(1) != split.forget.labels
    assert left.float().mean() > 0.9


def test_batchnorm_drifts_to_the_forget_class_only_if_it_may(memorised_class):
    model, split, _ = memorised_class
    paper, ours = (BoundaryShrink(**options)(model, split) for options in ({"batchnorm": "train"}, {}))
    assert not torch.equal(paper[1].running_mean, model[1].running_mean)
    assert torch.equal(ours[1].running_mean, model[1].running_mean)


def test_the_step_grows_until_the_class_is_gone_and_where_single_samples_leave_it_is_as_given(memorised_class, memorised, taught):
    model, split, _ = memorised_class
    unlearned = BoundaryShrink()(model, split)
    assert not (logits_of(unlearned, split.forget).argmax(1) == 3).any()
    assert len(taught) > 1 and [options["lr"] for _, options in taught] == [1e-5 * 2**k for k in range(len(taught))]
    taught.clear()
    model, split, _ = memorised
    BoundaryShrink()(model, split)
    assert [options["lr"] for _, options in taught] == [1e-5]


def test_a_class_of_one_image_and_a_single_sample_can_leave(memorised_class):
    model, split, _ = memorised_class
    labels = split.train.labels.where(split.train.labels != 3, 4)
    labels[0] = 3
    train = ImageData(split.train.images, labels, split.train.classes)
    for one in (forget_classes(train, [3]), forget_samples(train, [5])):
        assert all(t.isfinite().all() for t in BoundaryShrink()(model, one).state_dict().values())
