import pytest
import torch

from expunge.data.images import ImageData
from expunge.data.split import forget_classes, forget_samples
from expunge.errors import DataError
from expunge.methods import RandomLabel
from expunge.store import canonical
from expunge.training import relabelling
from expunge.training.inference import logits_of
from toys import toy_net


@pytest.fixture
def seen(monkeypatch):
    """For each step of training: ids, labels, and which samples are of the forget set."""
    steps = []

    def spy(model, batch):
        steps.append((batch.ids, batch.labels, batch.source))
        return cross_entropy(model, batch)

    cross_entropy = relabelling.cross_entropy
    monkeypatch.setattr(relabelling, "cross_entropy", spy)
    return steps


def labels_by_visit(steps, ids):
    """(visits, samples): the label of each sample at each visit."""
    visits = {i: [int(labels[batch == i]) for batch, labels, _ in steps if (batch == i).any()] for i in ids.tolist()}
    return torch.tensor(list(visits.values())).T


def test_labels_are_drawn_anew_in_every_epoch_and_retain_samples_keep_theirs(memorised, seen):
    model, split, _ = memorised
    RandomLabel(epochs=3, batch_size=16)(model, split)
    labels = labels_by_visit(seen, split.forget.ids)
    assert labels.shape == (3, 16) and not torch.equal(labels[0], labels[1]) and not torch.equal(labels[1], labels[2])
    assert torch.equal(labels_by_visit(seen, split.retain.ids), split.retain.labels.expand(3, -1))


def test_in_turn_the_forget_set_comes_before_the_retain_set_in_every_epoch_and_results_of_before_are_still_found(memorised, seen):
    model, split, _ = memorised
    RandomLabel(epochs=2, batch_size=16, mix="in_turn")(model, split)
    assert [source.unique().tolist() for _, _, source in seen] == ([[0]] + [[1]] * 7) * 2
    assert "mix" not in canonical(RandomLabel()) and "mix" in canonical(RandomLabel(mix="in_turn"))


def test_drawn_once_the_labels_stay(memorised, seen):
    model, split, _ = memorised
    RandomLabel(epochs=3, batch_size=16, draw="once", use_retain=False)(model, split)
    labels = labels_by_visit(seen, split.forget.ids)
    assert (labels == labels[0]).all() and len(labels[0].unique()) > 3


@pytest.mark.parametrize("draw", ["once", "epoch"])
def test_the_true_label_is_drawn_as_often_as_others_or_never(memorised, seen, draw):
    model, split, _ = memorised
    for exclude, low, high in ((True, 0, 0), (False, 0.05, 0.15)):
        seen.clear()
        method = RandomLabel(epochs=1, batch_size=256, exclude_true=exclude, draw=draw)
        hits = [relabelling.labels_at_random(torch.arange(1000) % 10, split, exclude) == torch.arange(1000) % 10]
        method(model, split)
        assert low <= float(torch.cat(hits).float().mean()) <= high
        if exclude:
            assert not (labels_by_visit(seen, split.forget.ids) == split.forget.labels).any()


def test_excluding_the_true_label_excludes_every_forgotten_class(memorised_class):
    _, split, _ = memorised_class
    split = forget_classes(split.train, [3, 5])
    drawn = relabelling.labels_at_random(split.forget.labels.repeat(50), split, True)
    assert set(drawn.tolist()) == set(range(10)) - {3, 5}


def test_a_class_must_be_left_to_draw():
    data = ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("only",))
    with pytest.raises(DataError, match="none of which remains"):
        RandomLabel(exclude_true=True)(toy_net(n_classes=1), forget_samples(data, [0]))


def test_redrawn_labels_without_retain_data_make_the_answers_uniform_and_labels_drawn_once_are_learnt(memorised):
    model, split, _ = memorised
    options = {"epochs": 60, "batch_size": 16, "lr": 0.02, "use_retain": False}
    redrawn, once = (
        logits_of(RandomLabel(draw=d, **options)(model, split), split.forget).softmax(1).amax(1).mean() for d in ("epoch", "once")
    )
    assert redrawn < 0.6 and once > 0.9
