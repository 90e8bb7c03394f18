import copy
import dataclasses

import pytest
import torch

from expunge.attacks import NearestL2PGD
from expunge.data.images import Augment, ImageData
from expunge.data.split import forget_only, forget_samples
from expunge.errors import ConfigError, DataError
from expunge.methods import AMUN, amun
from expunge.methods.sequential import unlearn_sequentially
from expunge.training.inference import logits_of
from expunge.training.schedules import Constant
from toys import Watched, spy_on_sgd

ATTACK = NearestL2PGD(eps_init=0.1, steps=20)
QUICK = {"epochs": 2, "batch_size": 16, "attack": ATTACK}


@pytest.fixture
def trained_on(monkeypatch):
    """What AMUN hands to the training loop: filled in while it runs."""
    return spy_on_sgd(monkeypatch, amun)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("settings", "n_retain", "n_forget"),
    [
        ({}, 112, 16),
        ({"use_forget": False}, 112, 0),
        ({"use_retain": False}, 0, 16),
        ({"use_retain": False, "use_forget": False}, 0, 0),
    ],
    ids=["retain+forget+adversarial", "retain+adversarial", "forget+adversarial", "adversarial"],
)
def test_the_four_data_settings_of_the_paper(memorised, trained_on, settings, n_retain, n_forget):
    model, split, _ = memorised
    AMUN(**QUICK, **settings)(model, split)
    ((sources, _),) = trained_on
    *known, adversarial = sources
    ids = torch.cat([s.ids for s in known]).tolist() if known else []
    assert sorted(ids) == sorted((split.retain.ids.tolist() if n_retain else []) + (split.forget.ids.tolist() if n_forget else []))
    assert all(torch.equal(s.labels, split.train.labels[s.ids]) for s in known), "known samples keep their true labels"
    assert torch.equal(adversarial.ids, split.forget.ids)


def test_adversarial_labels_are_the_models_own_wrong_answers(memorised, trained_on):
    # The authors' first public code stored the last correct answer: true labels, and no unlearning.
    model, split, _ = memorised
    AMUN(**QUICK)(model, split)
    adversarial = trained_on[0][0][-1]
    assert (adversarial.labels != split.forget.labels).all()
    assert torch.equal(logits_of(model, adversarial).argmax(1), adversarial.labels)


def test_amun_without_retain_never_reads_a_retain_sample(memorised):
    model, split, _ = memorised
    watched = Watched(split.train, forbidden=tuple(split.retain.ids.tolist()))
    AMUN(**QUICK, use_retain=False)(model, forget_samples(watched, split.forget_indices))


def test_confidence_on_the_forget_set_falls_further_than_by_training_on_true_labels_alone(memorised):
    model, split, _ = memorised

    def confidence(m):
        return float(logits_of(m, split.forget).softmax(1).gather(1, split.forget.labels[:, None]).mean())

    control = copy.deepcopy(model)
    amun.sgd(control, split.train, epochs=4, lr=0.02, batch_size=16, seed=0)
    unlearned = AMUN(epochs=4, lr=0.02, batch_size=16, schedule=Constant(), attack=ATTACK)(model, split)
    assert confidence(unlearned) < confidence(control) - 0.05


def test_a_set_made_before_gives_the_same_bits_as_one_made_now(memorised):
    model, split, _ = memorised
    whole = ATTACK(model, split.train)
    assert same(AMUN(**QUICK, adversarial=whole)(model, split), AMUN(**QUICK)(model, split))


def test_a_set_of_another_model_is_refused_unless_the_transfer_is_meant(memorised):
    model, split, _ = memorised
    other = AMUN(**QUICK)(model, split)
    foreign = ATTACK(other, split.train)
    with pytest.raises(DataError, match="made with the model"):
        AMUN(**QUICK, adversarial=foreign)(model, split)
    AMUN(**QUICK, adversarial=foreign, transferred=True)(model, split)
    with pytest.raises(ConfigError, match="transferred=True needs"):
        AMUN(transferred=True)


def test_a_set_that_lacks_a_forget_sample_is_refused(memorised):
    model, split, _ = memorised
    with pytest.raises(DataError, match="not of 15 of those asked for"):
        AMUN(**QUICK, adversarial=ATTACK(model, split.forget.subset([0])))(model, split)


def test_with_a_mask_only_that_share_of_the_weights_changes(memorised):
    model, split, _ = memorised
    masked = AMUN(**QUICK, mask_ratio=0.3)(model, split)
    changed = sum(int((a != b).sum()) for a, b in zip(model.parameters(), masked.parameters(), strict=True))
    total = sum(p.numel() for p in model.parameters())
    assert 0.2 * total < changed <= round(0.3 * total)


def test_adversarial_examples_share_the_crop_of_their_sample_only_if_asked(memorised, trained_on):
    model, split, _ = memorised
    data = dataclasses.replace(split.train, augment=Augment(pad=1))
    for asked in (False, True):
        AMUN(**QUICK, augment_adversarial=asked)(model, forget_samples(data, split.forget_indices))
        assert trained_on[-1][0][-1].augment == (Augment(pad=1) if asked else Augment())


def test_as_the_step_vanishes_the_weights_stay(memorised):
    model, split, _ = memorised
    still = AMUN(**QUICK, lr=1e-12)(model, split)
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(model.parameters(), still.parameters(), strict=True))


def test_sequential_requests_forget_on_the_current_model_and_never_see_what_is_gone(memorised, trained_on):
    model, split, _ = memorised
    requests = [split.forget_indices[:4], split.forget_indices[4:6]]
    first, second = unlearn_sequentially(AMUN(**QUICK), model, split.train, requests, seed=1)
    _, (second_sources, _) = trained_on
    assert torch.equal(second_sources[-1].ids, requests[1])
    seen = torch.cat([s.ids for s in second_sources])
    assert not torch.isin(requests[0], seen).any() and len(seen) == 128 - 4 + 2
    second_sources[-1].check(first)  # AMUN-A: the adversarial set of request 2 is of the model that request 1 left
    assert not same(first, second)


def test_sequential_requests_may_use_one_set_for_all(memorised, trained_on):
    model, split, _ = memorised
    requests = [split.forget_indices[:4], split.forget_indices[4:6]]
    once = ATTACK(model, split.train.subset(torch.cat(requests)))
    unlearn_sequentially(AMUN(**QUICK, adversarial=once, transferred=True), model, split.train, requests)
    trained_on[1][0][-1].check(model)


def test_a_sample_cannot_be_forgotten_twice(memorised):
    model, split, _ = memorised
    with pytest.raises(DataError, match="request 1 names sample 3, which an earlier request has removed"):
        unlearn_sequentially(AMUN(**QUICK), model, split.train, [[3], [3, 4]])


def test_forget_samples_without_an_adversarial_example_are_not_trained_on(memorised, trained_on):
    model, split, _ = memorised
    found = ATTACK(model, split.forget)
    found = dataclasses.replace(found, found=found.found & (torch.arange(16) > 2))
    AMUN(**QUICK, adversarial=found)(model, split)
    *_, forget, adversarial = trained_on[0][0]
    assert torch.equal(forget.ids, split.forget.ids[3:]) and torch.equal(adversarial.ids, forget.ids)


def test_misclassified_samples_enter_with_the_wrong_answer_that_they_have(memorised, trained_on):
    model, split, _ = memorised
    labels = split.train.labels.clone()
    labels[0] = (labels[0] + 5) % 10
    AMUN(**QUICK)(model, forget_samples(ImageData(split.train.images, labels, split.train.classes), [0, 1]))
    adversarial = trained_on[0][0][-1]
    assert adversarial.already_wrong.tolist() == [True, False] and adversarial.distances[0] == 0
    assert torch.equal(adversarial.images[0], split.train[0][0])


def test_a_set_of_other_samples_under_the_same_ids_is_refused(memorised):
    # Forget images that were saved apart count from 0 again; rows 0, 1, … of the set are of other samples.
    model, split, _ = memorised
    whole = ATTACK(model, split.train)
    apart = ImageData(split.train.images[split.forget_indices], split.forget.labels, split.train.classes)
    for transferred in (False, True):
        with pytest.raises(DataError, match="made from another image or label"):
            AMUN(**QUICK, use_retain=False, adversarial=whole, transferred=transferred)(model, forget_only(apart))
    relabelled = ImageData(split.train.images, (split.train.labels + 1) % 10, split.train.classes)
    with pytest.raises(DataError, match="got 16 of 16 made from another image or label"):
        whole.for_samples(relabelled.subset(split.forget_indices))


def test_a_bad_request_is_refused_before_any_work(memorised, trained_on):
    model, split, _ = memorised
    for bad in ([[3], [3, 4]], [[3], []], [[3], [i for i in range(128) if i != 3]]):
        with pytest.raises(DataError):
            unlearn_sequentially(AMUN(**QUICK), model, split.train, bad)
    assert not trained_on
