import pytest
import torch
from torch.nn import functional

from expunge.data.split import forget_classes
from expunge.methods import DELETE, delete
from expunge.training import until
from expunge.training.inference import logits_of
from toys import spy_on_sgd


@pytest.fixture
def target_of(monkeypatch):
    def target(method, model, split):
        taught = []
        monkeypatch.setattr(delete, "sgd_until_gone", lambda model, data, *_, **__: taught.append(data.labels))
        method(model, split)
        return taught[0]

    return target


def test_the_target_lacks_the_true_class_and_keeps_the_order_of_the_others(memorised, target_of):
    model, split, _ = memorised
    target, own, answers = target_of(DELETE(), model, split), split.forget.labels[:, None], logits_of(model, split.forget)
    assert (target.gather(1, own) == 0).all() and torch.allclose(target.sum(1), torch.ones(len(target)))
    assert torch.equal(target.argsort(1), answers.scatter(1, own, -torch.inf).argsort(1))


def test_at_the_original_the_loss_is_minus_log_of_the_probability_of_the_other_classes(memorised, target_of):
    model, split, _ = memorised
    answers = logits_of(model, split.forget).double()
    target = target_of(DELETE(), model, split).double()
    loss = functional.kl_div(answers.log_softmax(1), target, reduction="none").sum(1)
    others = answers.scatter(1, split.forget.labels[:, None], -torch.inf).logsumexp(1) - answers.logsumexp(1)
    assert torch.allclose(loss, -others, atol=1e-5)


def test_where_several_classes_are_forgotten_the_target_lacks_all_of_them(memorised_class, target_of):
    model, split, _ = memorised_class
    assert (target_of(DELETE(), model, forget_classes(split.train, [3, 5]))[:, [3, 5]] == 0).all()


def test_a_higher_temperature_spreads_the_target(memorised, target_of):
    model, split, _ = memorised
    sharp, soft = (torch.special.entr(target_of(DELETE(temperature=t), model, split)).sum(1) for t in (1.0, 5.0))
    assert (soft > sharp).all()


def test_batchnorm_keeps_its_statistics_unless_told_otherwise(memorised):
    model, split, _ = memorised
    frozen, moving = (DELETE(epochs=1, **options)(model, split) for options in ({}, {"batchnorm": "train"}))
    assert torch.equal(frozen[1].running_mean, model[1].running_mean)
    assert not torch.equal(moving[1].running_mean, model[1].running_mean)


def test_the_step_grows_until_the_class_is_gone_and_where_single_samples_leave_it_is_as_given(memorised_class, memorised, monkeypatch):
    calls = spy_on_sgd(monkeypatch, until)
    model, split, _ = memorised_class
    unlearned = DELETE()(model, split)
    assert not (logits_of(unlearned, split.forget).argmax(1) == 3).any()
    assert len(calls) > 1 and [options["lr"] for _, options in calls] == [1e-5 * 2**k for k in range(len(calls))]
    calls.clear()
    model, split, _ = memorised
    DELETE()(model, split)
    assert [options["lr"] for _, options in calls] == [1e-5]
