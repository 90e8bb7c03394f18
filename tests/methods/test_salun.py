import dataclasses
import itertools

import pytest
import torch

from expunge.data.split import forget_samples
from expunge.errors import ConfigError, ModelError
from expunge.methods import RandomLabel, SalUn
from expunge.store import canonical
from expunge.training import relabelling
from expunge.training.masks import WeightMask, load_mask, save_mask
from expunge.training.saliency import saliency_mask
from toys import spy_on_sgd, toy_net

QUICK = {"epochs": 2, "batch_size": 16}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def changed(model, unlearned):
    return {n: p != q for (n, p), q in zip(model.named_parameters(), unlearned.parameters(), strict=True)}


@pytest.mark.parametrize("use_retain", [True, False])
def test_with_all_weights_in_the_mask_it_is_random_label_bit_for_bit(memorised, use_retain):
    model, split, _ = memorised
    for draw, mix, exclude in itertools.product(("epoch", "once"), ("shuffled", "in_turn"), (True, False)):
        options = QUICK | {"draw": draw, "mix": mix, "exclude_true": exclude, "use_retain": use_retain, "lr": 0.005}
        theirs = RandomLabel(**options)(model, split, seed=1)
        assert same(SalUn(mask_ratio=1, **options)(model, split, seed=1), theirs)
    everything = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    assert same(SalUn(mask=everything, **options)(model, split, seed=1), theirs)


@pytest.mark.parametrize("settings", [{}, {"saliency": "random"}], ids=["gradient", "random"])
def test_weights_outside_the_mask_stay_exactly_in_spite_of_momentum_and_weight_decay(memorised, settings, monkeypatch):
    # In SalUn's code before 2026 only gradients were masked: weight decay alone moved every weight.
    model, split, _ = memorised
    calls = spy_on_sgd(monkeypatch, relabelling)
    unlearned = SalUn(mask_ratio=0.3, weight_decay=0.1, lr=0.05, **settings, **QUICK)(model, split)
    mask, moved = calls[0][1]["mask"], changed(model, unlearned)
    assert not any((moved[n] & ~mask[n]).any() for n in moved)
    assert sum(int(m.sum()) for m in mask.values()) == round(0.3 * sum(p.numel() for p in model.parameters()))
    assert sum(int(m.sum()) for m in moved.values()) > 0.29 * sum(p.numel() for p in model.parameters())


def test_the_mask_is_of_the_forget_gradient_or_drawn_by_lot(memorised, monkeypatch):
    model, split, _ = memorised
    calls = spy_on_sgd(monkeypatch, relabelling)
    for settings in ({}, {"saliency": "random"}):
        SalUn(**settings, **QUICK)(model, split, seed=1, device="cpu")
    found, drawn = (WeightMask(options["mask"]) for _, options in calls)
    assert found == WeightMask(saliency_mask(model, split.forget, 0.5)) != drawn
    weights = torch.cat([found[n].flatten() == drawn[n].flatten() for n in found])
    assert 0.45 < float(weights.float().mean()) < 0.55


def test_a_mask_of_your_own_is_kept_as_bits_and_may_be_shared(memorised, tmp_path):
    model, split, _ = memorised
    made = saliency_mask(model, split.forget, 0.5)
    save_mask(made, tmp_path / "mask.safetensors")
    shared = SalUn(mask=load_mask(tmp_path / "mask.safetensors"), **QUICK)
    assert same(shared(model, split), SalUn(**QUICK)(model, split))
    given = SalUn(mask=made, **QUICK)
    assert isinstance(given.mask, WeightMask) and given == shared and canonical(given) == canonical(shared) != canonical(SalUn(**QUICK))
    assert "weights>" in repr(given) and "tensor" not in repr(given)
    assert dataclasses.replace(given, epochs=1).mask is given.mask
    assert given.cost(0.1) == 2 and SalUn(**QUICK).cost(0.1) == 2.1


def test_parameters_that_a_mask_does_not_name_stay(memorised):
    model, split, _ = memorised
    unlearned = SalUn(mask={"9.bias": torch.ones(10, dtype=torch.bool)}, **QUICK)(model, split)
    assert {n for n, m in changed(model, unlearned).items() if m.any()} == {"9.bias"}


def test_a_bad_mask_is_refused(memorised):
    model, split, _ = memorised
    with pytest.raises(ModelError, match="unknown names"):
        SalUn(mask={"head.bias": torch.ones(10, dtype=torch.bool)})(model, split)
    with pytest.raises(ModelError, match=r"shape \(10, 128\) for '9.weight' of \(3, 128\)"):
        SalUn(mask=saliency_mask(model, split.forget, 0.5))(toy_net(n_classes=3), forget_samples(three_classes(split), [0]))
    with pytest.raises(ModelError, match="bool tensors"):
        SalUn(mask={"9.bias": torch.ones(10)})
    with pytest.raises(ConfigError, match="mask must be"):
        SalUn(mask="mask.safetensors")


def three_classes(split):
    return dataclasses.replace(split.train, labels=split.train.labels % 3, classes=("a", "b", "c"))


def test_in_turn_forget_batches_come_first_and_each_batch_is_of_one_set(memorised, monkeypatch):
    model, split, _ = memorised
    sources = []

    def spy(model, batch):
        sources.append(batch.source.unique().tolist())
        return cross_entropy(model, batch)

    cross_entropy = relabelling.cross_entropy
    monkeypatch.setattr(relabelling, "cross_entropy", spy)
    SalUn(epochs=2, batch_size=8, mix="in_turn")(model, split)
    assert sources == ([[0]] * 2 + [[1]] * 14) * 2
    sources.clear()
    SalUn(epochs=1, batch_size=16)(model, split)
    assert [0, 1] in sources


def test_the_mask_does_not_hold_batchnorm_statistics_but_a_setting_does(memorised):
    model, split, _ = memorised
    for batchnorm, moves in (("train", True), ("frozen_statistics", False)):
        unlearned = SalUn(batchnorm=batchnorm, **QUICK)(model, split)
        assert torch.equal(unlearned[1].running_mean, model[1].running_mean) != moves
