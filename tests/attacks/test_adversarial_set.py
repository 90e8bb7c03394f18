"""Adversarial sets as data, on disk, and by id."""

import copy
from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import save_file

from expunge.attacks import AdversarialSet
from expunge.data.images import Augment
from expunge.data.split import forget_samples
from expunge.errors import DataError, MissingError, StoreError


def test_load_returns_what_save_wrote(pgd_set, tmp_path):
    changed = replace(pgd_set, augment=Augment(pad=1))
    changed.save(tmp_path / "new" / "set.safetensors")
    loaded = AdversarialSet.load(tmp_path / "new" / "set.safetensors")
    for name in ("images", "labels", "ids", "true_labels", "distances", "epsilons", "forward_passes", "found", "already_wrong"):
        assert torch.equal(getattr(loaded, name), getattr(changed, name)), name
    for name in ("classes", "augment", "model_hash", "data_fingerprint", "attack", "fingerprint"):
        assert getattr(loaded, name) == getattr(changed, name), name
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["set.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_refused(damage, pgd_set, tmp_path):
    path = tmp_path / "set.safetensors"
    pgd_set.save(path)
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes({"cut": content[:-100], "flipped": content, "empty": b""}[damage])
    with pytest.raises(StoreError, match=r"damaged|not a whole"):
        AdversarialSet.load(path)


def test_a_foreign_file_is_refused(tmp_path):
    save_file({"images": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(StoreError, match="must hold a set of adversarial examples"):
        AdversarialSet.load(tmp_path / "other.safetensors")
    with pytest.raises(MissingError, match="no adversarial set file"):
        AdversarialSet.load(tmp_path / "none.safetensors")


def test_a_file_that_cannot_be_written_is_a_store_error(pgd_set, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="must be able to write .*file"):
        pgd_set.save(tmp_path / "file" / "set.safetensors")


def test_an_interrupted_save_leaves_the_old_file(pgd_set, tmp_path, monkeypatch):
    path = tmp_path / "set.safetensors"
    pgd_set.save(path)
    old = path.read_bytes()

    def crash(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        replace(pgd_set, attack="another").save(path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_another_model_is_refused_and_both_hashes_are_named(pgd_set, trained, some, few_digits):
    pgd_set.check(trained, some)
    pgd_set.check(trained)
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other[0].bias[0] += 1e-6
    with pytest.raises(DataError, match=f"model {pgd_set.model_hash[:16]}.*got the model (?!{pgd_set.model_hash[:16]})[0-9a-f]{{16}}"):
        pgd_set.check(other, some)
    with pytest.raises(DataError, match=f"data {some.fingerprint[:16]}.*got the data {few_digits.fingerprint[:16]}"):
        pgd_set.check(trained, few_digits)


def test_a_set_for_all_samples_serves_any_forget_set(pgd_set, some, few_digits):
    split = forget_samples(few_digits, [8, 4, 400])
    part = pgd_set.for_ids(split.forget.ids)
    assert part.ids.tolist() == part.indices.tolist() == [4, 8, 400]
    assert torch.equal(part.true_labels, split.forget.labels)
    assert torch.equal(part.images, pgd_set.images[[1, 2, 100]])
    assert part.model_hash == pgd_set.model_hash
    assert pgd_set.for_ids([400, 4]).ids.tolist() == [400, 4]


def test_ids_that_are_not_there_are_refused(pgd_set):
    with pytest.raises(DataError, match=r"not of 2 of those asked for \(first: id 1\)"):
        pgd_set.for_ids([0, 1, 4999])
    with pytest.raises(DataError, match="unique and at least one"):
        pgd_set.for_ids([0, 0])
    with pytest.raises(DataError, match="unique and at least one"):
        pgd_set.for_ids([])


def test_is_a_data_set_with_the_adversarial_labels(pgd_set):
    image, label = pgd_set[3]
    assert torch.equal(image, pgd_set.images[3]) and label == int(pgd_set.labels[3])
    assert pgd_set.shape == (1, 8, 8) and len(pgd_set) == 125
    assert pgd_set.subset([5]).ids.tolist() == [20]


def test_tensors_of_different_lengths_are_refused(pgd_set):
    with pytest.raises((DataError, TypeCheckError)):
        replace(pgd_set, distances=pgd_set.distances[:3])
