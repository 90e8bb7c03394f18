"""SISA: what is unlearned was never there, bit for bit, and what never saw it stays."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

import worker_calls
from expunge.data.images import Augment, ImageData
from expunge.data.split import forget_only, forget_samples
from expunge.errors import ConfigError, DataError, ExpungeError
from expunge.progress import listen
from expunge.store import Cell
from expunge.training import sisa
from expunge.training import stages as stages_file
from expunge.training.aggregate import Aggregate
from expunge.training.inference import logits_of
from expunge.training.recipe import Recipe, train_model
from expunge.training.sisa import epochs_of_slices, homes, train_sisa

RECIPE = Recipe(epochs=4, lr=0.05, batch_size=16, precision="float32")
SHARDS, SLICES = 3, 3


def data(n=90, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageData(images, torch.randint(0, 4, (n,), generator=generator), tuple("abcd"), Augment(pad=1))


TRAIN = data()
ALL = torch.arange(len(TRAIN))


def trained(train=TRAIN, **settings):
    return train_sisa(worker_calls.conv, train, RECIPE, **{"shards": SHARDS, "slices": SLICES, "workers": 1} | settings)


@pytest.fixture(scope="module")
def before():
    return trained()


@pytest.fixture
def stages(monkeypatch):
    """(ids, epochs) of every stage that is trained in this process."""
    seen = []

    def spy(build, samples, recipe, **options):
        seen.append((samples.ids.tolist(), recipe.epochs))
        return train_model(build, samples, recipe, **options)

    monkeypatch.setattr(stages_file, "train_model", spy)
    return seen


def weights(ensemble):
    return [[c.tensors() if isinstance(c, Cell) else c for c in shard] for shard in ensemble.checkpoints]


def same(a, b):
    if a is None or b is None:
        return a is b
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def equal(a, b):
    return all(same(x, y) for s, t in zip(weights(a), weights(b), strict=True) for x, y in zip(s, t, strict=True))


def members(shard, slice_=None, ids=ALL):
    shards, slices = homes(ids, SHARDS, SLICES, 0)
    return ids[(shards == shard) & ((slices == slice_) if slice_ is not None else True)]


@pytest.mark.parametrize("forget", [[17], [17, 18, 40, 66], list(range(0, 90, 2))], ids=["one", "some", "half"])
def test_unlearning_gives_bit_for_bit_what_training_without_the_samples_gives(before, forget):
    split = forget_samples(TRAIN, forget)
    after, scratch = before.unlearn(split, workers=1), trained(split.retain)
    assert equal(after, scratch) and not equal(after, before)
    assert torch.equal(logits_of(after.model(), TRAIN), logits_of(scratch.model(), TRAIN))
    assert after.full_passes == scratch.passes and after.train.ids.tolist() == split.retain.ids.tolist()


def test_only_shards_that_saw_a_sample_are_trained_and_only_from_before_they_did(before, stages):
    shard, slice_ = (int(v) for v in homes(torch.tensor([17]), SHARDS, SLICES, 0))
    after = before.unlearn([17], workers=1)
    assert after.trained == tuple((shard, r) for r in range(slice_, SLICES)) and len(stages) == SLICES - slice_
    for s in range(SHARDS):
        for r in range(SLICES):
            assert (after.checkpoints[s][r] is before.checkpoints[s][r]) == ((s, r) not in after.trained)
    assert not any(17 in ids for ids, _ in stages)


def test_the_original_stays_as_it_is(before):
    again = trained()
    before.unlearn([17, 30], workers=1)
    assert equal(before, again) and len(before.train) == 90


def test_every_stage_sees_the_slices_so_far_of_its_shard(stages):
    trained()
    expected = [torch.cat([members(s, j) for j in range(r + 1)]).sort().values.tolist() for s in range(SHARDS) for r in range(SLICES)]
    assert [ids for ids, _ in stages] == expected and [epochs for _, epochs in stages] == [2, 2, 2] * SHARDS
    assert sorted(i for ids in expected[SLICES - 1 :: SLICES] for i in ids) == ALL.tolist()


def test_one_shard_and_one_slice_is_ordinary_training(stages):
    ensemble = trained(shards=1, slices=1)
    assert stages == [(ALL.tolist(), 4)]
    model = train_model(worker_calls.conv, TRAIN, RECIPE, seed=sisa.derive(0, sisa.TRAINING, 0, 0), device="cpu")
    assert same(ensemble.checkpoints[0][0], model.state_dict())
    assert torch.allclose(logits_of(ensemble.model(), TRAIN), functional.log_softmax(logits_of(model, TRAIN), 1), atol=1e-5)


def test_homes_depend_on_seed_and_id_alone():
    shards, slices = homes(ALL, SHARDS, SLICES, 0)
    some = torch.tensor([3, 88, 41])
    assert torch.equal(homes(some, SHARDS, SLICES, 0)[0], shards[some]) and torch.equal(homes(some, SHARDS, SLICES, 0)[1], slices[some])
    many, parts = homes(torch.arange(30_000), 5, 4, 1)
    joint = torch.bincount(many * 4 + parts, minlength=20) / 30_000
    assert ((joint - 0.05).abs() < 6 * (0.05 * 0.95 / 30_000) ** 0.5).all()  # uniform and independent, within 6 standard errors
    assert not torch.equal(homes(ALL, SHARDS, SLICES, 1)[0], shards)


def test_passes_are_the_visits_of_the_stages_trained(before, stages):
    after = before.unlearn([17, 40], workers=1)
    assert after.passes == sum(len(ids) * epochs for ids, epochs in stages) / 88
    stages.clear()
    full = trained(after.train)
    assert full.passes == full.full_passes == after.full_passes == sum(len(ids) * epochs for ids, epochs in stages) / 88
    assert f"{after.passes:.3g} of {after.full_passes:.3g} passes" in repr(after)


@pytest.mark.parametrize(("epochs", "slices"), [(20, 1), (20, 3), (7, 5), (30, 4), (200, 10)])
def test_samples_are_seen_as_often_as_the_recipe_says_on_average(epochs, slices):
    each = epochs_of_slices(epochs, slices)
    visits = sum(e * (r + 1) / slices for r, e in enumerate(each))
    assert visits == pytest.approx(epochs, abs=1) and all(each)


def test_one_after_another_is_all_at_once(before):
    one_by_one = before.unlearn([17], workers=1).unlearn([40, 66], workers=1).unlearn(forget_samples(TRAIN, [5]), workers=1)
    assert equal(one_by_one, before.unlearn([5, 17, 40, 66], workers=1))


def test_an_emptied_shard_has_no_model_and_no_vote(before):
    ids = members(1)
    after = before.unlearn(ids, workers=1)
    assert after.checkpoints[1] == (None,) * SLICES and after.trained == () and after.passes == 0
    assert len(after.model().models) == SHARDS - 1 and equal(after, trained(forget_samples(TRAIN, ids).retain))


def test_an_emptied_slice_is_what_training_without_it_gives(before):
    split = forget_samples(TRAIN, torch.cat([members(0, 0), members(2, 1)]))
    after = before.unlearn(split, workers=1)
    assert equal(after, trained(split.retain)) and after.checkpoints[0][0] is None


def test_workers_change_no_bit(stages):
    settings = {"shards": 2, "slices": 2}
    assert equal(trained(workers=2, **settings), trained(workers=1, **settings)) and len(stages) == 4


def test_a_store_keeps_every_checkpoint(before, tmp_path, stages):
    ensemble = trained(store=tmp_path)
    assert equal(ensemble, before)
    after = ensemble.unlearn([17], workers=1)
    assert equal(after, before.unlearn([17], workers=1))
    n = len(after.trained)
    stages.clear()
    assert equal(trained(store=tmp_path), before) and not stages  # nothing is trained twice
    assert equal(trained(forget_samples(TRAIN, [17]).retain, store=tmp_path), after) and not stages
    assert len(list(tmp_path.glob("sisa/*/result.json"))) == SHARDS * SLICES + n
    trained(dataclasses.replace(TRAIN, augment=Augment()), store=tmp_path)
    assert len(stages) == SHARDS * SLICES


def test_interrupted_it_goes_on_where_it_was(before, tmp_path, stages, monkeypatch):
    real, left = stages_file.train_model, [4]

    def failing(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(stages_file, "train_model", failing)
    with pytest.raises(KeyboardInterrupt):
        trained(store=tmp_path)
    left[0] = 100
    assert equal(trained(store=tmp_path), before) and len(stages) == SHARDS * SLICES


def test_the_model_is_the_log_of_the_mean_of_probabilities(before):
    model = before.model()
    each = torch.stack([logits_of(m, TRAIN).double().softmax(1) for m in model.models])
    assert torch.allclose(logits_of(model, TRAIN).double(), each.mean(0).log(), atol=1e-5)
    assert not model.training and torch.equal(logits_of(model, TRAIN), logits_of(before.model(), TRAIN))


def test_votes_count_first_choices_and_the_mean_breaks_ties(before):
    model = before.model("votes")
    each = torch.stack([logits_of(m, TRAIN).softmax(1) for m in model.models])
    votes = functional.one_hot(each.argmax(2), 4).sum(0)
    answers = logits_of(model, TRAIN)
    assert torch.equal(answers.argmax(1), (votes + 0.999 * each.mean(0)).argmax(1))
    assert answers.isfinite().all() and torch.allclose(answers.exp(), votes + each.mean(0), atol=1e-4)
    assert (votes.amax(1) == 1).any(), "no tie was tested"


def test_answers_that_are_certain_stay_finite():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 5000.0]]).expand(len(x), 2)

    for aggregate in ("mean", "votes"):
        assert Aggregate([Sure(), Sure()], aggregate)(torch.zeros(3, 1, 2, 2)).isfinite().all()


def test_bad_requests_are_refused(before):
    with pytest.raises(DataError, match=r"others \(first: 17\).*unlearned before"):
        before.unlearn([17], workers=1).unlearn([17, 18])
    with pytest.raises(DataError, match=r"must lie in \[0, 90\)"):
        before.unlearn([90])
    with pytest.raises(DataError, match="some samples must stay"):
        before.unlearn(ALL)
    with pytest.raises(DataError, match="split must be of the data"):
        before.unlearn(forget_samples(data(seed=1), [17]))
    assert equal(before.unlearn(forget_only(TRAIN.subset([17])), workers=1), before.unlearn([17], workers=1))
    with pytest.raises(ExpungeError, match="way to aggregate"):
        before.model("median")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shards": 0}, "shards must be"),
        ({"slices": True}, "slices must be"),
        ({"slices": 8}, "at least 5 for 8 slices"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        trained(**settings)


def test_progress_counts_shards():
    seen = []
    with listen(lambda p: seen.append((p.done, p.total)) if p.stage == sisa.STAGE else None):
        trained()
    assert seen == [(1, 3), (2, 3), (3, 3)]
