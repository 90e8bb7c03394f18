"""Two processes that train one model together: the result is that of one process, and where one fails, none waits for it."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import rank_work
from expunge.errors import ConfigError
from expunge.ranks import Ranks, alone, current, distributed
from expunge.training.sharding import _units

SCRIPT = Path(rank_work.__file__)
PATIENCE = 900  # seconds of wall time on a busy machine; alone it takes a few


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> tuple[list[dict], str, list[str], str]:
    """What two ranks found; what they printed; the errors of each, the second of which dies when all is done; and what torchrun says of it."""
    folder = tmp_path_factory.mktemp("ranks")
    options = ["--nproc-per-node", "2", "--standalone", "--log-dir", str(folder), "--redirects", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(SCRIPT), str(folder)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment(), check=False)
    errors = [file.read_text() for file in sorted(folder.glob("*/attempt_0/*/stderr.log"))]
    found = [folder / f"rank{rank}.pt" for rank in range(2)]
    assert all(file.exists() for file in found), (errors, out.stderr[-3000:])
    return [torch.load(file) for file in found], out.stdout, errors, out.stderr


@pytest.fixture(scope="module")
def by_one(tmp_path_factory) -> dict[str, dict]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            patch.setattr(torch.cpu, name, lambda: False)
        return {"whole": rank_work.trained(shard=False), "more": rank_work.replicated(str(tmp_path_factory.mktemp("one")))}


@pytest.mark.parametrize(
    ("weights", "name"),
    [*itertools.product(["whole", "shards"], ["trained", *rank_work.METHODS]), *itertools.product(["whole"], rank_work.WHOLE)],
)
def test_two_ranks_give_the_result_of_one_process(name, weights, by_one, by_two):
    # Sums of parts are rounded otherwise than sums of the whole, and a few dozen steps of float32 make more of it.
    torch.testing.assert_close(by_two[0][0][weights][name], by_one["whole"][name], atol=2e-5, rtol=0)


@pytest.mark.parametrize("weights", ["whole", "shards"])
def test_all_ranks_have_the_same_bits(weights, by_two):
    first, second = (found[weights] for found in by_two[0])
    assert first["digest"] == second["digest"]
    for name, answer in first.items():
        assert torch.equal(answer, second[name]) if isinstance(answer, torch.Tensor) else answer == second[name]


def test_an_objective_that_remembers_its_model_is_refused_where_weights_are_shared_out(by_two):
    assert by_two[0][0]["shards"]["remembers its model"].startswith("ModelError: an objective must use the model that it is called with")


def test_only_one_rank_prints(by_two):
    assert by_two[1].count("said once") == 2  # with whole weights, and with shards


def test_images_that_stream_are_read_once_by_some_rank(by_one, by_two):
    torch.testing.assert_close(by_two[0][0]["more"]["streamed"], by_one["more"]["streamed"], atol=2e-5, rtol=0)
    tried = 80  # images that every rank reads, to try the model and to read labels
    read = [found["more"]["read"] for found in by_two[0]]
    assert sum(read) < by_one["more"]["read"] + tried and max(read) < 0.75 * by_one["more"]["read"] + tried


def test_layers_that_draw_numbers_leave_the_ranks_alike(by_two):
    first, second = (found["more"] for found in by_two[0])
    assert first["dropped"] == second["dropped"] and first["drawn afterwards"] == second["drawn afterwards"]


def test_models_of_a_store_are_trained_by_one_rank_each_and_are_those_of_one_process(by_one, by_two):
    for found in by_two[0]:
        assert torch.equal(found["more"]["shadows"], by_one["more"]["shadows"])


def test_costs_are_those_of_all_ranks_together(by_one, by_two):
    assert by_two[0][0]["more"]["cost"] == by_one["more"]["cost"]


def test_ranks_that_differ_are_told_and_one_that_dies_ends_the_others(by_two):
    _, _, (first, second), end = by_two
    for told in (first, second):
        assert "RankLost: all ranks must have the same model and settings before training; rank 1 has another one than rank 0" in told
        assert "rank 0 is at 'answers to 75 images' and rank 1 at 'answers to 8 images'" in told
    assert "RankLost: rank 1: not finite" in first and "RankLost: not finite" in second
    assert re.search(r"rank +: 1 .*\n *exitcode +: -9 ", end)
    assert "RankLost: a process that works with this one is gone" in first.splitlines()[-1]


def test_without_torchrun_a_block_changes_nothing():
    with distributed(shard=True):
        assert current() is None
        with alone():
            assert current() is None


def test_a_timeout_must_be_positive():
    with pytest.raises(ConfigError, match="timeout must be > 0 seconds; got 0"), distributed(timeout=0):
        pass


@pytest.mark.parametrize(("n", "sizes"), [(7, [3, 2, 2]), (6, [2, 2, 2]), (2, [1, 1, 0])])
def test_shares_are_of_equal_size_as_far_as_possible_and_cover_all_rows(n, sizes):
    ranks = [Ranks(rank, 3, False, "cpu") for rank in range(3)]
    assert ranks[0].sizes(n) == sizes
    assert torch.equal(torch.cat([rank.share(torch.arange(n)) for rank in ranks]), torch.arange(n))


def test_units_that_are_put_together_one_at_a_time_hold_every_weight_once():
    net = nn.Sequential(
        nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 64), nn.Linear(2, 2)), nn.ModuleList([nn.MultiheadAttention(64, 2)]), nn.Linear(2, 2)
    )
    units = _units(net)
    assert units[-1] is net and units.count(net) == 1
    assert net[0] in units and net[1][0] in units and net[2][0] in units
    assert not any(isinstance(unit, nn.ModuleList) for unit in units) and net[2][0].out_proj not in units and net[3] not in units
