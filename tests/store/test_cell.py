"""Cells: done means whole. What is damaged is named and computed again."""

import errno
import json
import os
import subprocess
import time
import warnings

import pytest
import torch

from expunge.errors import ConfigError, StoreError
from expunge.store import DamagedFile, Store
from expunge.training.schedules import Cosine

WEIGHTS = {"w": torch.arange(4.0), "n": torch.tensor(3)}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def cell(store):
    return store.cell("shadow", {"seed": 0})


@pytest.fixture
def done(cell):
    cell.finish({"accuracy": 0.5}, WEIGHTS, scores={"logits": torch.eye(2)})
    return cell


def test_a_finished_cell_gives_back_result_and_tensors(done, store):
    again = Store(str(store.root)).cell("shadow", {"seed": 0})
    assert again.done
    assert again.result() == {"accuracy": 0.5}
    assert torch.equal(again.tensors()["w"], WEIGHTS["w"])
    assert again.tensors()["n"].shape == ()
    assert torch.equal(again.tensors("scores")["logits"], torch.eye(2))
    with pytest.raises(StoreError, match=r"no tensors named 'other'; it has \['scores', 'weights'\]"):
        again.tensors("other")


def test_an_unfinished_cell_is_not_done_and_writes_nothing(cell, store):
    assert not cell.done
    assert not store.root.exists()
    with pytest.raises(StoreError, match=r"result\.json does not exist: the cell is not done"):
        cell.result()


def test_the_spec_in_the_folder_is_the_readable_json(done):
    assert json.loads((done.folder / "spec.json").read_text()) == {"seed": 0} == done.spec


def test_tied_and_strided_weights_can_be_stored(cell):
    shared = torch.arange(6.0).view(2, 3)
    cell.finish({}, {"a": shared, "b": shared, "c": shared.t()})
    assert torch.equal(cell.tensors()["c"], shared.t())


def test_a_result_that_json_cannot_hold_is_refused_before_anything_is_written(cell):
    with pytest.raises(StoreError, match=r"result\.auc must be a finite number; got nan"):
        cell.finish({"auc": float("nan")}, WEIGHTS)
    assert not cell.folder.exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_a_digit(path):
    path.write_text(path.read_text().replace("0.5", "0.6"))


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("weights.safetensors", truncate),
        ("weights.safetensors", flip_a_bit),
        ("scores.safetensors", empty),
        ("scores.safetensors", remove),
        ("result.json", truncate),
        ("result.json", change_a_digit),
        ("result.json", empty),
    ],
)
def test_a_damaged_file_is_named_and_the_cell_is_redone(done, file, damage):
    assert done.done
    damage(done.folder / file)
    if file == "result.json" and damage is truncate:  # the lost byte is the last line's end: nothing is damaged
        truncate(done.folder / file)
    assert not done.done
    with pytest.raises(StoreError, match=f"{file} is (damaged|missing)"):
        done.tensors()
    with pytest.warns(DamagedFile, match=file), done.claim() as mine:
        assert mine
        assert not (done.folder / "result.json").exists()
        done.finish({"accuracy": 0.5}, WEIGHTS, scores={"logits": torch.eye(2)})
    assert torch.equal(done.tensors()["w"], WEIGHTS["w"])


def test_a_damaged_spec_is_written_anew(done, store):
    (done.folder / "spec.json").write_text("{")
    assert store.cells("shadow") == []
    done.finish({}, WEIGHTS)
    assert store.cells("shadow") == [done]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "Free some space.*finished results are kept"),
        (errno.EROFS, "folder that you may write to"),
        (errno.EACCES, "folder that you may write to"),
        (errno.EIO, "Check the disk"),
    ],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_refuses_is_named_and_the_old_result_stays(done, monkeypatch, code, message, step):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    before = {path.name: path.read_bytes() for path in done.folder.iterdir()}
    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(StoreError, match=rf"weights\.safetensors; got: .*{message}"):
        done.finish({"accuracy": 0.9}, {"w": torch.zeros(2)})
    assert {path.name: path.read_bytes() for path in done.folder.iterdir()} == before
    assert done.done


def test_a_disk_full_at_any_write_leaves_a_cell_that_is_not_half_believed(store, monkeypatch):
    write, fails_at = os.fsync, 1
    while True:
        cell, calls = store.cell("shadow", {"n": fails_at}), []

        def fsync(handle, calls=calls, fails_at=fails_at):
            calls.append(handle)
            if len(calls) == fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            try:
                cell.finish({}, WEIGHTS)
            except StoreError:
                # Only the very last fsync, of the folder, comes after the result is in place.
                assert cell.done == ((cell.folder / "result.json").exists())
            else:
                break
        cell.finish({}, WEIGHTS)
        assert cell.done
        fails_at += 1
    assert fails_at == 7  # three files, each with its folder, each refused once


def test_a_file_in_place_of_the_store_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    cell = Store(tmp_path / "runs").cell("shadow", {})
    assert not cell.done
    with pytest.raises(StoreError, match="pass another path"):
        cell.finish({})
    with pytest.raises(StoreError, match="pass another path"), cell.claim():
        pass


def test_cells_lists_what_is_there_by_kind(store):
    cells = [store.cell(kind, {"seed": seed, "build": print, "schedule": Cosine()}) for kind in ("original", "shadow") for seed in range(2)]
    for cell in cells[:3]:
        cell.finish({})
    with cells[3].claim():
        pass
    assert sorted(map(str, store.cells())) == sorted(map(str, cells))
    assert [cell.done for cell in store.cells("original")] == [True, True]
    assert {cell.done for cell in store.cells("shadow")} == {True, False}
    assert store.cells("unlearned") == []


@pytest.mark.parametrize("kind", ["", "../shadow", "Shadow", "a b"])
def test_a_kind_that_is_no_folder_name_is_refused(store, kind):
    with pytest.raises(StoreError, match="lower-case name"):
        store.cell(kind, {})


def test_stale_after_must_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="stale_after must be a number > 0; got 0"):
        Store(tmp_path, stale_after=0)


# Claims


def test_a_claimed_cell_is_nobody_elses_until_it_is_released(cell, store):
    twin = store.cell("shadow", {"seed": 0})
    with cell.claim() as mine:
        assert mine
        with twin.claim() as theirs:
            assert not theirs
    with twin.claim() as theirs:
        assert theirs
    assert not list(cell.folder.glob("claim.*"))


def test_a_claim_is_released_after_an_error(cell):
    with pytest.raises(RuntimeError), cell.claim():
        raise RuntimeError
    with cell.claim() as mine:
        assert mine


def test_a_done_cell_is_not_to_be_computed(done):
    before = sorted(done.folder.iterdir())
    with done.claim() as mine:
        assert not mine
    assert sorted(done.folder.iterdir()) == before


def claim_file(cell, number=0, **holder):
    cell.folder.mkdir(parents=True, exist_ok=True)
    path = cell.folder / f"claim.{number}"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "birth": "1"} | holder))
    return path


def test_a_claim_from_elsewhere_holds_while_its_heart_beats(cell):
    path = claim_file(cell)
    with cell.claim() as mine:
        assert not mine
    os.utime(path, (time.time() - 59,) * 2)
    with cell.claim() as mine:
        assert not mine
    os.utime(path, (time.time() - 61,) * 2)
    with cell.claim() as mine:
        assert mine
    assert not list(cell.folder.glob("claim.*"))


def test_a_claim_that_was_never_written_out_ages_too(cell):
    path = claim_file(cell)
    path.write_text("")
    with cell.claim() as mine:
        assert not mine
    os.utime(path, (0, 0))
    with cell.claim() as mine:
        assert mine


def test_the_claim_of_a_dead_process_on_this_machine_is_taken_over_at_once(cell, store):
    with cell.claim():
        holder = json.loads((cell.folder / "claim.0").read_text())
    process = subprocess.Popen(["true"])
    process.wait()
    claim_file(cell, **holder | {"pid": process.pid})
    with cell.claim() as mine:
        assert mine
        assert (cell.folder / "claim.1").exists()  # the dead claim is not removed by those who race for it
        with store.cell("shadow", {"seed": 0}).claim() as theirs:
            assert not theirs
    assert not list(cell.folder.glob("claim.*"))


def test_a_process_that_got_a_dead_ones_number_is_not_mistaken_for_it(cell):
    with cell.claim():
        holder = json.loads((cell.folder / "claim.0").read_text())
    assert holder["pid"] == os.getpid()
    claim_file(cell, **holder | {"birth": "1"})
    with cell.claim() as mine:
        assert mine


def test_the_heart_beats_while_the_cell_is_claimed(tmp_path):
    cell = Store(tmp_path, stale_after=0.3).cell("shadow", {})
    with cell.claim():
        os.utime(cell.folder / "claim.0", (0, 0))
        deadline = time.monotonic() + 60
        while (cell.folder / "claim.0").stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_leftovers_of_a_killed_writer_are_removed(cell):
    cell.folder.mkdir(parents=True)
    (cell.folder / ".weights.safetensors.abc.tmp").write_bytes(b"half")
    with cell.claim(), warnings.catch_warnings():
        assert not list(cell.folder.glob(".*"))
