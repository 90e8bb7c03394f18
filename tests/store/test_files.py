"""Whatever is written is there whole or not at all, may be read by whom the folder allows, and a failure says what to do."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from expunge.errors import StoreError
from expunge.store.files import write_file, write_json, write_tensors


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "result"
    path.write_bytes(b"old")
    return path


WAYS = {
    "bytes": lambda path: write_file(path, b"new"),
    "tensors": lambda path: write_tensors(path, {"w": torch.ones(3)}, {"format": "pt"}),
    "json": lambda path: write_json({"auc": 0.5}, path),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_has_the_permissions_of_any_other(old, way):
    umask = os.umask(0o022)
    try:
        WAYS[way](old)
    finally:
        os.umask(umask)
    assert old.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("way", WAYS)
def test_folders_are_made_and_what_stands_in_the_way_is_named(old, way):
    WAYS[way](old.parent / "new" / "folder" / "file")
    assert (old.parent / "new" / "folder" / "file").is_file()
    for path, obstacle in ((old / "below", old), (old.parent / "new", old.parent / "new")):
        with pytest.raises(StoreError, match=f"must be able to write {obstacle};.*pass another path"):
            WAYS[way](path)
    assert sorted(os.listdir(old.parent)) == ["new", "result"] and old.read_bytes() == b"old"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(old, way, step, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, stop)
    with pytest.raises(KeyboardInterrupt):
        WAYS[way](old)
    assert old.read_bytes() == b"old" and os.listdir(old.parent) == ["result"]


@pytest.mark.parametrize("way", WAYS)
def test_the_file_and_its_folder_are_synced(old, way, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino) or fsync(handle))
    WAYS[way](old)
    assert synced == [old.stat().st_ino, old.parent.stat().st_ino]


def test_tensors_that_share_memory_or_are_not_contiguous_come_back(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "w", {"a": weight, "b": weight, "turned": weight.T})
    found = load_file(tmp_path / "w")
    assert torch.equal(found["a"], weight) and torch.equal(found["b"], weight) and torch.equal(found["turned"], weight.T)


def test_json_without_a_path_writes_nothing_and_is_the_text_of_the_file(tmp_path):
    text = write_json({"auc": 0.5, "é": None})
    assert write_json({"auc": 0.5, "é": None}, tmp_path / "a.json") == text
    assert json.loads((tmp_path / "a.json").read_text()) == {"auc": 0.5, "é": None} and (tmp_path / "a.json").read_text() == text + "\n"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"auc": float("nan")}, tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == text + "\n"
