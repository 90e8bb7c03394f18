"""How a model came about: steps and forget sets as records tell them; whatever has another form is left out."""

import hashlib
import json

import pytest
from torch import nn

from expunge import FineTune, forget_only, forget_samples
from expunge.models.lineage import (
    breaks,
    changes,
    describe_data,
    describe_ids,
    describe_split,
    forgotten,
    forgotten_or_none,
    unlearning_record,
    which,
)

HASHES = [hashlib.sha256(bytes([k])).hexdigest() for k in range(4)]


def record(ids, n=None, **more):
    return {
        "method": "m",
        "original": HASHES[0],
        "model_hash": HASHES[1],
        "forget": describe_ids(ids) | {"of": n, "classes": [], "data": HASHES[3]} | more,
    }


def test_ids_are_described_alike_in_any_order_and_the_digest_is_what_anybody_can_compute():
    assert describe_ids([5, 3, 4]) == describe_ids(range(3, 6))
    assert describe_ids([3, 14])["digest"] == hashlib.sha256(json.dumps([3, 14]).encode()).hexdigest()
    assert describe_ids([3])["digest"] != describe_ids([4])["digest"] and describe_ids([3])["union"] != describe_ids([4])["union"]


def test_a_split_and_its_forget_samples_alone_are_described_alike(digits):
    split = forget_samples(digits[0], [8, 2])
    whole, alone = describe_split(split), describe_split(forget_only(split.forget))
    assert (whole["of"], alone["of"]) == (1000, 2)
    assert whole | {"of": 2} == alone
    assert describe_data(*digits, name="digits")["n_test"] == 797


def test_an_audited_set_is_a_request_or_all_of_them_together():
    first, second, both, part, other = (forgotten_or_none(record(ids)["forget"]) for ids in ([1, 2], [3], [1, 2, 3], [2, 3], [1, 2, 4]))
    assert which(first, [first, second]) == (0,) and which(second, [first, second]) == (1,) and which(both, [first, second]) == (0, 1)
    assert which(part, [first, second]) is which(other, [first, second]) is which(first, []) is None
    elsewhere = forgotten_or_none(record([1, 2], data=HASHES[0])["forget"])
    assert which(elsewhere, [first, second]) is None


def test_records_of_older_versions_are_read(digits):
    old = {"n": 2, "digest": describe_ids([1, 2])["digest"][:16], "classes": []}
    assert which(forgotten_or_none(record([1, 2])["forget"]), [forgotten_or_none(old)]) == (0,)
    assert forgotten({"method": "amun", "forget": old, "seed": 0})[0].n == 2
    made = unlearning_record(
        FineTune(), forget_samples(digits[0], [1]), nn.Linear(2, 2), history={"method": "amun", "forget": old, "seed": 0}
    )
    assert [f.n for f in forgotten(made)] == [2, 1]


def test_history_grows_by_one_record_a_step_and_what_holds_for_all_stands_once(digits):
    metadata = {
        "recipe": {"epochs": 1},
        "data": {"name": "x"},
        "build": "a:b",
        "seed": 3,
        "model_hash": HASHES[0],
        "architecture": {"name": "small"},
    }
    for k in range(3):
        metadata = unlearning_record(FineTune(), forget_samples(digits[0], [k]), nn.Linear(2, 2), history=metadata)
        assert (metadata["recipe"], metadata["data"], metadata["build"]) == (
            {"epochs": 1},
            {"name": "x"},
            "a:b",
        ) and "architecture" not in metadata
        assert len(metadata["history"]) == k + 1 and not any(
            {"recipe", "history", "data", "architecture"} & set(old) for old in metadata["history"]
        )
    assert [step.kind for step in changes(metadata)] == ["trained"] + ["unlearned"] * 3


def test_clipping_is_a_step_of_its_own_between_the_models_that_it_names():
    clipped = record([1]) | {"clipped": [{"original": HASHES[2], "max_norm": 1.0}]}
    unlearned, clip = changes(clipped)
    assert (unlearned.kind, unlearned.result) == ("unlearned", HASHES[2]) and (clip.kind, clip.original, clip.result) == (
        "clipped",
        HASHES[2],
        HASHES[1],
    )
    assert breaks([unlearned, clip]) == [] and breaks([clip, unlearned]) == [1]


def test_a_second_clip_leaves_the_first_in_the_record():
    twice = record([1]) | {"clipped": [{"original": HASHES[2], "max_norm": 2.0}, {"original": HASHES[3], "max_norm": 1.0}]}
    made = changes(twice)
    assert [change.kind for change in made] == ["unlearned", "clipped", "clipped"]
    assert [change.result for change in made] == [HASHES[2], HASHES[3], HASHES[1]] and breaks(made) == []
    assert [change.settings for change in made[1:]] == ["singular values at most 2", "singular values at most 1"]


@pytest.mark.parametrize(
    "strange",
    ["text", 3, None, [], [[]], {"a": 1}, {"n": -1, "digest": "x"}, {"n": True, "digest": "0" * 64}, {"n": 1, "digest": "0" * 65}],
)
def test_records_of_another_form_say_nothing(strange):
    names = (
        "history",
        "forget",
        "without",
        "clipped",
        "cost",
        "accuracy",
        "provenance",
        "arguments",
        "seconds",
        "seed",
        "original",
        "settings",
        "data",
    )
    assert (
        changes(dict.fromkeys(names, strange)) in ([], changes({"seed": strange}))
        or changes(dict.fromkeys(names, strange))[0].forgotten is None
    )
    assert forgotten({"method": "m"} | dict.fromkeys(names, strange)) == []
    assert forgotten_or_none(strange) is None
    assert [s.kind for s in changes(record([1]) | {"history": [strange, record([2]), strange]})].count("unlearned") == 2


def test_numbers_that_nobody_can_have_measured_are_left_out():
    (step,) = changes(
        {
            "method": "m",
            "seed": 2**70,
            "seconds": float("inf"),
            "accuracy": {"a": float("nan"), "b": 0.5, "c": 10**400},
            "cost": {"passes": True},
        }
    )
    assert (step.seed, step.seconds, step.passes, step.accuracy) == (None, None, None, (("b", 0.5),))
