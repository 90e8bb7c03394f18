import copy

import pytest
import safetensors.torch
import torch

from expunge.errors import ConfigError, MissingError, ModelError, StoreError
from expunge.rng import fork
from expunge.store import canonical
from expunge.training.masks import WeightMask, check_mask, load_mask, packed, save_mask, unpacked
from expunge.training.saliency import _largest, random_mask
from toys import toy_net


@pytest.fixture
def mask():
    torch.manual_seed(0)
    return {name: torch.rand(p.shape) < 0.3 for name, p in toy_net().named_parameters()}


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (9,), (3, 5, 2), (0,), (4, 16)])
def test_bits_come_back_as_they_were(shape):
    torch.manual_seed(0)
    mask = torch.rand(shape) < 0.5
    bits = packed(mask)
    assert bits.dtype == torch.uint8 and len(bits) == (mask.numel() + 7) // 8
    again = unpacked(bits, tuple(shape))
    assert again.dtype == torch.bool and torch.equal(again, mask)
    by_hand = [sum(int(b) << k for k, b in enumerate(mask.flatten()[i : i + 8])) for i in range(0, mask.numel(), 8)]
    assert bits.tolist() == by_hand


def test_a_mask_is_the_mapping_that_it_was_made_of(mask):
    kept = WeightMask(mask)
    assert list(kept) == list(mask) and len(kept) == len(mask) and all(torch.equal(kept[n], mask[n]) for n in mask)
    assert kept == WeightMask(kept) and hash(kept) == hash(WeightMask(mask))
    other = copy.deepcopy(mask)
    other["9.bias"][0] ^= True
    assert kept != WeightMask(other) and canonical(kept) == canonical(mask) != canonical(WeightMask(other))
    total, chosen = sum(p.numel() for p in mask.values()), sum(int(p.sum()) for p in mask.values())
    assert repr(kept) == f"<WeightMask: {chosen:,} of {total:,} weights>"
    with pytest.raises(ModelError, match=r"bool tensors.*got torch.float32 under 'a'"):
        WeightMask({"a": torch.ones(2)})
    with pytest.raises(ModelError, match="got list under 'a'"):
        WeightMask({"a": [True]})


def test_a_saved_mask_is_loaded_as_it_was_in_an_eighth_of_the_bytes(mask, tmp_path):
    save_mask(mask, tmp_path / "new" / "mask.safetensors")
    assert load_mask(tmp_path / "new" / "mask.safetensors") == WeightMask(mask)
    n = sum(p.numel() for p in mask.values())
    assert n / 8 <= (tmp_path / "new" / "mask.safetensors").stat().st_size < n / 8 + 2000


def test_other_files_are_refused(mask, tmp_path):
    with pytest.raises(MissingError, match="no mask file .*none"):
        load_mask(tmp_path / "none")
    (tmp_path / "text").write_text("x" * 100)
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "weights")
    save_mask(mask, tmp_path / "mask")
    whole = (tmp_path / "mask").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "shapes").write_bytes(whole.replace(b"[32]", b"[99]"))
    for name in ("text", "weights", "half", "shapes"):
        with pytest.raises(StoreError, match="save_mask wrote"):
            load_mask(tmp_path / name)


def test_a_mask_of_another_model_is_refused(mask):
    model = toy_net()
    check_mask(mask, model)
    check_mask({"9.bias": mask["9.bias"]}, model)
    for wrong, message in [
        (mask | {"10.weight": torch.ones(1) > 0}, "1 unknown names .first: '10.weight'"),
        (mask | {"9.bias": torch.ones(3) > 0}, r"shape \(3,\) for '9.bias' of \(10,\)"),
        ({}, "an empty mask"),
    ]:
        with pytest.raises(ModelError, match=message):
            check_mask(wrong, model)


@pytest.mark.parametrize("ratio", [1e-9, 0.1, 0.5, 0.501, 0.999, 1.0])
def test_the_largest_are_those_that_sorting_puts_first(ratio):
    torch.manual_seed(0)
    values = {"a": torch.randint(-5, 6, (40, 3)).float(), "b": torch.randn(77), "c": torch.zeros(50)}  # many are equal
    flat = torch.cat([v.abs().flatten() for v in values.values()])
    by_sorting = torch.zeros_like(flat, dtype=torch.bool)
    by_sorting[flat.argsort(descending=True, stable=True)[: max(1, round(ratio * len(flat)))]] = True
    mask = _largest(values, ratio)
    assert torch.equal(torch.cat([m.flatten() for m in mask.values()]), by_sorting)
    assert {n: m.shape for n, m in mask.items()} == {n: v.shape for n, v in values.items()}


def test_a_random_mask_has_its_share_and_leaves_frozen_parameters_out():
    model = toy_net()
    model[0].requires_grad_(False)
    with fork(1):
        mask = random_mask(model, 0.3)
        assert not all(torch.equal(a, b) for a, b in zip(mask.values(), random_mask(model, 0.3).values(), strict=True))
    n = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(int(m.sum()) for m in mask.values()) == round(0.3 * n) and "0.weight" not in mask
    assert all(0.2 < float(mask[f"{k}.weight"].float().mean()) < 0.4 for k in (4, 9))
    with pytest.raises(ConfigError, match="mask ratio"):
        random_mask(model, 0)
