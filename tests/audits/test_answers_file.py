"""Files of answers: the audit of a file is the audit of the models, whatever the file's format; files that do not fit are refused with a reason."""

import csv
import re

import numpy as np
import pytest
import torch

import expunge
from expunge.audits import RMIA, LiRA, LossThreshold, read_answers, save_answers
from expunge.errors import DataError, MissingError, StoreError
from expunge.metrics import auc

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
GROUPS = np.array(["forget"] * 20 + ["retain"] * 20 + ["test"] * 20)
LOGITS = {
    name: RNG.normal(size=(60, 3)).astype(np.float32) + 2 * np.eye(3, dtype=np.float32)[LABELS]
    for name in ("original", "unlearned", "retrained")
}


def columns(**changes):
    parts = {"labels": LABELS, "groups": GROUPS} | {f"logits:{name}": z for name, z in LOGITS.items()} | changes
    return {name: part for name, part in parts.items() if part is not None}


def written(folder, **changes):
    path = folder / "answers.npz"
    np.savez(path, **columns(**changes))
    return path


def audit_of(path):
    found = read_answers(path)
    return expunge.audit_answers(found.logits, found.audited, flags=found.flags)


def test_the_audit_of_a_file_is_that_of_its_numbers(tmp_path):
    result = audit_of(written(tmp_path))
    right = (LOGITS["unlearned"].argmax(1) == LABELS)[GROUPS == "retain"].mean()
    assert result.model("unlearned").retain.value == pytest.approx(right)
    margins = expunge.logit_margin(torch.from_numpy(LOGITS["original"]), torch.from_numpy(LABELS))
    assert result["LossThreshold", "original"].auc == pytest.approx(auc(margins[:20], margins[40:]).value)
    assert result.reference == "retrained" and [v.model for v in result.verdicts] == ["original", "unlearned"]


def test_saved_answers_of_models_give_the_models_audit_again(memorised, tmp_path):
    from expunge.training.shadow import train_shadow_models
    from toys import toy_net

    model, split, test = memorised
    shadows = train_shadow_models(
        toy_net, split.train, test, n=6, recipe=expunge.Recipe(epochs=2), store=tmp_path / "runs", workers=1, device="cpu"
    )
    attacks = [LossThreshold(), LiRA(), RMIA()]
    models = {"original": model, "retrained": toy_net()}
    direct = expunge.audit(models, split, test, shadows=shadows, attacks=attacks)
    found = expunge.answers_of(models, split, test, shadows=shadows)
    save_answers(tmp_path / "a.npz", found.audited, found.logits)
    again = audit_of(tmp_path / "a.npz")
    assert again["RMIA", "original"].auc == direct["RMIA", "original"].auc and again.sizes == direct.sizes
    assert again["LiRA", "original"].auc == direct["LiRA", "original"].auc
    assert {f.name for f in again.flags} == {f.name for f in direct.flags}
    assert again.most_exposed() == direct.most_exposed() and set(again.most_exposed()) <= set(split.forget.ids.tolist())


def test_saved_answers_on_forgotten_classes_give_the_models_audit_again(memorised_class, tmp_path):
    model, split, test = memorised_class
    direct = expunge.audit({"original": model}, split, test)
    found = expunge.answers_of({"original": model}, split, test)
    save_answers(tmp_path / "a.npz", found.audited, found.logits)
    again = audit_of(tmp_path / "a.npz")
    assert again.model("original").forget_test == direct.model("original").forget_test
    assert again.classes[0].name == direct.classes[0].name and again.sizes == direct.sizes


def test_a_csv_file_says_the_same_as_an_npz_file(tmp_path):
    with open(tmp_path / "answers.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "group", "label", "model", "logit_0", "logit_1", "logit_2"])
        for name, logits in LOGITS.items():
            for k in RNG.permutation(60):  # in any order
                writer.writerow([f"sample {k}", GROUPS[k], LABELS[k], name, *map(repr, map(float, logits[k]))])
    one, other = audit_of(tmp_path / "answers.csv"), audit_of(written(tmp_path))
    assert one.model("unlearned").forget == other.model("unlearned").forget
    assert one.to_json() and "Membership" in str(one)  # logits of a text file are of other precision
    assert one["LossThreshold", "unlearned"].auc == pytest.approx(other["LossThreshold", "unlearned"].auc)


def test_predictions_alone_give_accuracies_and_the_gap_attack(tmp_path):
    predictions = {f"predictions:{name}": z.argmax(1) for name, z in LOGITS.items()}
    path = written(tmp_path, **dict.fromkeys(columns().keys() - {"labels", "groups"}), **predictions)
    assert read_answers(path).audited.labels_only
    result = audit_of(path)
    assert "LabelsOnly" in {f.name for f in result.flags} and "LabelsOnly" not in {f.name for f in audit_of(written(tmp_path)).flags}
    right = LOGITS["original"].argmax(1) == LABELS
    assert result.model("original").forget.value == pytest.approx(right[:20].mean())
    by_hand = 0.5 + (right[:20].mean() - right[40:].mean()) / 2  # an attack that says "member" where the answer is right
    assert result["LossThreshold", "original"].auc == pytest.approx(by_hand)


def test_saved_predictions_stay_predictions(tmp_path):
    predictions = {f"predictions:{name}": z.argmax(1) for name, z in LOGITS.items()}
    found = read_answers(written(tmp_path, **dict.fromkeys(columns().keys() - {"labels", "groups"}), **predictions))
    save_answers(tmp_path / "again.npz", found.audited, found.logits)
    again = read_answers(tmp_path / "again.npz")
    assert again.audited.labels_only and again.flags == found.flags
    assert all(torch.equal(again.logits[name][g], z) for name, by_group in found.logits.items() for g, z in by_group.items())
    with np.load(tmp_path / "again.npz") as file:
        assert {f"predictions:{name}" for name in LOGITS} == {name for name in file.files if ":" in name}


def test_an_answers_file_that_cannot_be_written_is_left_as_it_was(tmp_path, monkeypatch):
    found = read_answers(written(tmp_path))
    before = (tmp_path / "answers.npz").read_bytes()
    monkeypatch.setattr(np, "savez_compressed", lambda file, **columns: file.write(b"half") / 0)
    with pytest.raises(ZeroDivisionError):
        save_answers(tmp_path / "answers.npz", found.audited, found.logits)
    assert (tmp_path / "answers.npz").read_bytes() == before
    monkeypatch.undo()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="must be able to write .*folder"):
        save_answers(tmp_path / "folder", found.audited, found.logits)


def test_probabilities_are_taken_and_flagged(tmp_path):
    p = torch.from_numpy(LOGITS["original"]).softmax(1).numpy()
    named = audit_of(written(tmp_path, **{"logits:original": None, "probabilities:original": p}))
    assert "ProbabilitiesNotLogits" in {f.name for f in named.flags}
    same = audit_of(written(tmp_path))
    assert named["LossThreshold", "original"].auc == pytest.approx(same["LossThreshold", "original"].auc)
    assert "ProbabilitiesNotLogits" not in {f.name for f in same.flags}
    assert "ProbabilitiesNotLogits" in {f.name for f in audit_of(written(tmp_path, **{"logits:original": p})).flags}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "answers need labels"),
        ({"groups": np.array(["forgotten"] * 60)}, "groups must be forget, retain, test; got forgotten"),
        ({"groups": np.array(["retain"] * 30 + ["test"] * 30)}, "got none of 'forget'"),
        ({"groups": np.array(["forget"] * 60)}, "got none of 'test'"),
        ({"labels": np.arange(60) / 2}, "labels must be whole numbers"),
        ({"labels": LABELS[:50]}, "groups a text for each"),
        ({"logits:unlearned": LOGITS["unlearned"][:50]}, "a row for each of 60 samples"),
        ({"logits:unlearned": LOGITS["unlearned"][:, :2]}, "the same 3 classes; got 2 from unlearned"),
        ({"predictions:x": LABELS}, "labels alone .* or all with confidence; got logits:original"),
        ({"probabilities:unlearned": LOGITS["unlearned"]}, "told apart by their names"),
        ({f"logits:{name}": None for name in LOGITS} | {"predictions:x": np.full(60, -1)}, "whole numbers from 0 on"),
        ({"classes": np.array(["cat", "dog"])}, "classes must name all 3"),
        ({"ids": np.zeros(60, np.int64)}, "differ on the forget set"),
        ({"probabilities:x": LOGITS["original"]}, "non-negative and sum to 1"),
        ({"shadow_logits": np.zeros((4, 50, 3)), "included": np.zeros((4, 50), bool)}, r"shadow_logits must be \(M, 60, K\)"),
        ({"forget_classes": np.array([7])}, r"forget_classes must lie in \[0, 3\)"),
        ({"labels": np.array([{"a": 1}] * 60, dtype=object)}, "Object arrays cannot be loaded|allow_pickle"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_a_remedy(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as refusal:
        read_answers(written(tmp_path, **changes))
    assert re.search(r"got.*[^ ]\. [A-Z`][^.]+", str(refusal.value))


def test_answers_that_are_not_finite_are_named(tmp_path):
    broken = LOGITS["unlearned"].copy()
    broken[3] = np.nan
    with pytest.raises(expunge.ExpungeError, match="logits of unlearned on forget must be finite"):
        audit_of(written(tmp_path, **{"logits:unlearned": broken}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,group,label\n1,forget,0\n", "no column model"),
        ("id,group,label,model\n1,forget,0,m\n", "neither a column prediction"),
        ("id,group,label,model,prediction\n1,forget,0,m,0\n1,forget,0,m,0\n", "two answers of m on sample 1"),
        ("id,group,label,model,prediction\n1,forget,0,m,0\n1,test,0,n,0\n", "sample 1 has two groups"),
        ("id,group,label,model,prediction\n1,forget,0,m,0\n2,test,0,m,0\n1,forget,0,n,0\n", "n answered 1 of 2 samples"),
        ("id,group,label,model,prediction\n1,forget,cat,m,0\n", "invalid literal"),
        ("id,group,label,model,prediction\n1,forget,0\n", "line 2 has not 5 cells"),
        ("id,group,label,model,logit_1,logit_2\n1,forget,0,m,1,1\n", "must be logit_0, logit_1; got logit_1, logit_2"),
    ],
)
def test_csv_files_that_do_not_fit_are_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / "a.csv")


def test_classes_that_are_forgotten_can_be_named_beside_the_file(tmp_path):
    path = written(tmp_path, classes=np.array(["cat", "dog", "fox"]))
    by_name, by_number = (read_answers(path, [k]).audited for k in ("dog", 1))
    assert by_name.forget_classes == by_number.forget_classes == (1,) and len(by_name.labels["forget_test"]) == 7
    with pytest.raises(expunge.ExpungeError, match="no class named 'dgo'; did you mean 'dog'"):
        read_answers(path, ["dgo"])


def test_one_retrained_model_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="got retrained and retrained 2, which answer everything alike"):
        audit_of(written(tmp_path, **{"logits:retrained 2": LOGITS["retrained"]}))


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"not a zip file")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", LABELS)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name, message in (
        ("a.pkl", "ends in .npz or .csv"), ("a.npz", "must be readable"), ("empty.npz", "must be readable"),
        ("array.npz", "must be readable"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            read_answers(tmp_path / name)
    with pytest.raises(MissingError, match="no file of answers .*none.npz"):
        read_answers(tmp_path / "none.npz")
