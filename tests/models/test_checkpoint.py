"""Checkpoints: what is saved comes back bit for bit; damage, strangers and code are refused by name."""

import errno
import hashlib
import json
import os
import pickle
import re

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from expunge.errors import ConfigError, MissingError, ModelError, StoreError
from expunge.models.architecture import Architecture
from expunge.models.checkpoint import load_model, model_hash, read_metadata, save_model, stored_hash
from expunge.models.normalize import with_normalize

SMALL = Architecture("small", 10, (1, 8, 8), (0.5,), (0.25,))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def test_a_model_comes_back_bit_for_bit_from_its_file_alone(tmp_path):
    model = SMALL()
    model(torch.rand(4, 1, 8, 8))  # moves the batch statistics
    save_model(model, tmp_path / "new" / "m.safetensors", architecture=SMALL, metadata={"seed": 3, "note": {"a": [1, None]}})
    loaded = load_model(tmp_path / "new" / "m.safetensors")
    assert model_hash(loaded) == model_hash(model)
    assert not loaded.training
    assert os.listdir(tmp_path / "new") == ["m.safetensors"]
    metadata = read_metadata(tmp_path / "new" / "m.safetensors")
    assert metadata["seed"] == 3 and metadata["note"] == {"a": [1, None]} and metadata["model_hash"] == model_hash(model)
    assert Architecture.from_json(metadata["architecture"]) == SMALL


def test_loading_leaves_the_global_generator_alone(tmp_path):
    save_model(SMALL(), tmp_path / "m.safetensors", architecture=SMALL)
    before = torch.get_rng_state()
    load_model(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_shared_and_strided_weights_survive(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    model = Tied()
    model.a.weight.data = torch.arange(9.0).reshape(3, 3).T
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", Tied)
    assert loaded.a.weight is loaded.b.weight
    assert torch.equal(loaded.a.weight, model.a.weight)


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path, model = tmp_path / "m.safetensors", net()
    save_model(model, path)

    def die(handle):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(StoreError, match="no space left. Free some space"):
        save_model(net(), path)
    assert model_hash(load_model(path, net)) == model_hash(model)
    assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "m.safetensors"
    save_model(net(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match=r"m\.safetensors is not a whole"):
        load_model(path, net)


def test_one_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(net(), path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"m\.safetensors is damaged"):
        load_model(path, net)


def test_weights_of_another_architecture_are_listed(tmp_path):
    save_model(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(2), nn.Linear(2, 2)), tmp_path / "m.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path / "m.safetensors", net)
    message = str(caught.value)
    assert "missing: 3.weight, 3.bias" in message
    assert "unexpected: 2.bias, 2.weight" in message
    assert "0.weight (expected (2, 1, 3, 3), got (4, 1, 3, 3))" in message
    assert "pass its architecture as build=" in message


def test_a_bare_networks_weights_are_told_from_a_normalised_models(tmp_path):
    save_model(SMALL()[1], tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="without Normalize: load them with build= of the bare network, then with_normalize"):
        load_model(tmp_path / "m.safetensors", SMALL)


def test_a_model_is_not_saved_under_another_architectures_name(tmp_path):
    with pytest.raises(ModelError, match="'small'"):
        save_model(net(), tmp_path / "m.safetensors", architecture=SMALL)
    assert not list(tmp_path.iterdir())


def test_a_file_without_architecture_asks_for_build(tmp_path):
    save_model(net(), tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=r"does not name its architecture\. Pass build="):
        load_model(tmp_path / "m.safetensors")


def test_an_architecture_that_no_longer_exists_asks_for_build(tmp_path):
    header = {"architecture": '{"name": "alexnet", "n_classes": 2, "shape": [1, 8, 8], "mean": [0], "std": [1]}'}
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", header)
    with pytest.raises(ModelError, match=r"cannot be built.*Pass build="):
        load_model(tmp_path / "m.safetensors")


def test_files_of_other_tools_load_with_build(tmp_path):
    model = net()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "m.safetensors", {"author": "me, in plain text"})
    assert model_hash(load_model(tmp_path / "m.safetensors", net)) == model_hash(model)
    assert read_metadata(tmp_path / "m.safetensors") == {"author": "me, in plain text"}


def test_our_files_load_in_plain_safetensors(tmp_path):
    model = net()
    save_model(model, tmp_path / "m.safetensors", metadata={"note": {"a": [1]}})
    state = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert state.keys() == model.state_dict().keys() and all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    with safetensors.safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"  # without it other libraries refuse the file


def test_plain_text_of_another_tool_under_our_names_still_loads(tmp_path):
    model, path = net(), tmp_path / "m.safetensors"
    told = {
        "architecture": "resnet-50",
        "model_hash": "sha1 of the training run",
        "data": "cifar",
        "lr": "0.1",
        "note": "[" * 100_000,
        "n": "9" * 5000,
    }
    safetensors.torch.save_file(model.state_dict(), path, told)
    assert model_hash(load_model(path, net)) == model_hash(model) == stored_hash(path)
    assert read_metadata(path) == told | {"lr": 0.1}
    with pytest.raises(ModelError, match="names an architecture that cannot be built: 'resnet-50'"):
        load_model(path)


@pytest.mark.parametrize("n_classes", [10**9, 10**30])
def test_a_header_that_lies_about_sizes_does_not_ask_for_memory(n_classes, tmp_path):
    header = {"name": "small", "n_classes": n_classes, "shape": [1, 8, 8], "mean": [0.5], "std": [0.25]}
    safetensors.torch.save_file(SMALL().state_dict(), tmp_path / "m.safetensors", {"architecture": json.dumps(header)})
    with pytest.raises(ModelError, match=r"cannot be built|of another shape.*\(expected \(1000000000,"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_pickled_state_dicts_load(tmp_path, wrap, zipped):
    model = net()
    torch.save(wrap(model.state_dict()), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    assert model_hash(load_model(tmp_path / "m.pt", net)) == model_hash(model)
    assert read_metadata(tmp_path / "m.pt") == {}


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path, zipped):
    torch.save({"weight": torch.zeros(1), "x": Bomb(tmp_path / "ran")}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"m\.pt is a pickle that wants to run code \((posix|nt)\.mkdir\)"):
        load_model(tmp_path / "m.pt", net)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_pickled_model_is_refused_with_the_way_out(tmp_path, zipped):
    torch.save(net(), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"m\.pt is a whole pickled model.*save_model"):
        load_model(tmp_path / "m.pt", net)


def test_a_plain_pickle_bomb_is_refused_and_does_not_run(tmp_path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises((ModelError, StoreError), match=r"m\.pkl"):
        load_model(tmp_path / "m.pkl", net)
    assert not (tmp_path / "ran").exists()


def test_a_truncated_pickle_is_named(tmp_path):
    torch.save(net().state_dict(), tmp_path / "m.pt")
    (tmp_path / "m.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:600])
    with pytest.raises(StoreError, match=r"m\.pt is not a whole checkpoint"):
        load_model(tmp_path / "m.pt", net)


def test_a_pickle_of_something_else_says_what_it_holds(tmp_path):
    torch.save({"optimizer": [1, 2]}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match=re.escape("must hold a state dict of tensors; got a dict with 'optimizer'")):
        load_model(tmp_path / "m.pt", net)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"no checkpoint file .*absent\.safetensors"):
        load_model(tmp_path / "absent.safetensors")


def test_metadata_must_be_json_and_not_reserved(tmp_path):
    with pytest.raises(ConfigError, match="what JSON can hold; got Tensor under 'x'"):
        save_model(net(), tmp_path / "m.safetensors", metadata={"x": torch.zeros(1)})
    loop = []
    loop.append(loop)
    with pytest.raises(ConfigError, match="got list under 'x'"):
        save_model(net(), tmp_path / "m.safetensors", metadata={"x": loop})
    with pytest.raises(ConfigError, match="must not use the names"):
        save_model(net(), tmp_path / "m.safetensors", metadata={"architecture": 1})


def test_state_that_is_not_tensors_is_refused():
    class Extra(nn.Module):
        def get_extra_state(self):
            return {"step": 1}

    with pytest.raises(ModelError, match="must be tensors; got dict under '_extra_state'"):
        model_hash(Extra())


def test_model_hash_is_over_names_types_shapes_and_bytes():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0]])
    expected = hashlib.sha256(repr(("weight", "torch.float32", (1, 2))).encode() + b"\x00\x00\x80\x3f\x00\x00\x00\x40").hexdigest()
    assert model_hash(model) == expected
    model.weight.data = model.weight.data.reshape(2, 1)
    assert model_hash(model) != expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_has_the_hash_of_the_model_that_is_loaded_from_it(dtype, tmp_path):
    path = tmp_path / "half.safetensors"
    save_model(net().to(dtype), path)
    loaded = load_model(path, net)
    assert next(loaded.parameters()).dtype == torch.float32
    assert stored_hash(path) == model_hash(loaded) == read_metadata(path)["model_hash"] != model_hash(net())


def test_model_hash_sees_buffers_and_every_type():
    model = with_normalize(net(), [0.5], [0.25]).to(torch.bfloat16)
    before = model_hash(model)
    model[1][1].num_batches_tracked += 1
    assert model_hash(model) != before
