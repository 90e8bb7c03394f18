"""Files of indices, forget options, import paths."""

import pytest
import typer

from expunge.cli import inputs
from expunge.cli.inputs import check_writable, is_import_path, load_pair, make_split, read_classes, read_indices
from expunge.errors import DataError, MissingError, StoreError


@pytest.mark.parametrize(
    "text, indices",
    [
        ("1\n2\n", [1, 2]),
        ("id\n7\n5", [7, 5]),
        ("index,label\r\n3,cat\r\n\r\n4,dog\r\n", [3, 4]),
        ('"id";"x"\n"8";1\n', [8]),
        ("\ufeff9\n10\t1\n", [9, 10]),
    ],
)
def test_indices_are_the_first_column_with_or_without_a_header(text, indices, tmp_path):
    path = tmp_path / "ids.csv"
    path.write_bytes(text.encode())
    assert read_indices(path) == indices


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("1\ntwo\n", r"line 2: expected an integer in the first column; got 'two'"),
        ("id\n\n1.0\n", r"line 3: expected an integer in the first column; got '1.0'"),
        ("id\n,5\n", r"line 2: expected an integer in the first column; got ''"),
        ("1\n2\n1\n", r"line 3: 1 is already in line 1"),
        ("id\n", "must name at least one sample"),
        ("", "must name at least one sample"),
    ],
)
def test_a_line_that_is_no_index_is_named(text, sentence, tmp_path):
    path = tmp_path / "ids.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_indices(path)


def test_a_missing_file_of_indices_says_where_was_looked(tmp_path):
    with pytest.raises(MissingError, match=r"no file of indices .*absent\.csv.*; looked in "):
        read_indices(tmp_path / "absent.csv")


def test_classes_may_be_names_or_numbers(digits):
    assert make_split(digits[0], None, "3, 4", None).forget_classes == (3, 4)
    with pytest.raises(MissingError, match="no class named 'three'"):
        make_split(digits[0], None, "three", None)


def test_a_class_whose_name_has_a_comma_is_written_alone():
    known = ("Lee, Ann", "Lee, Bo", "3")
    assert read_classes("Lee, Bo", known) == ["Lee, Bo"]
    assert read_classes("3, 1", known) == ["3", 1]
    for text in ("", "3,", ","):
        with pytest.raises(typer.BadParameter, match="commas between them"):
            read_classes(text, known)


@pytest.mark.parametrize("text", ["", "x", "5:", "-5", "5:x", "1.5"])
def test_a_malformed_random_choice_is_a_usage_error(text, digits):
    with pytest.raises(typer.BadParameter, match="N or N:SEED"):
        make_split(digits[0], None, None, text)


def test_a_file_is_no_import_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_import_path("pkg.nets:build")
    assert not any(map(is_import_path, ["digits", "data/x.npz", "./pkg:x/y", "C:\\data\\x.npz", "model.safetensors"]))
    (tmp_path / "odd:name").write_text("")
    assert not is_import_path("odd:name")


def test_own_data_are_a_pair_of_sets(own_package):
    train, test = load_pair("mynets:load", root=own_package)
    assert (len(train), len(test)) == (60, 40)
    with pytest.raises(DataError, match="must return a pair"):
        load_pair("mynets:one", root=own_package)


def test_a_folder_that_may_not_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    def refused(dir):
        raise PermissionError(13, "Permission denied")

    check_writable(tmp_path / "new" / "model.safetensors", force=False)
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setattr(inputs.tempfile, "TemporaryFile", refused)
    with pytest.raises(StoreError, match=r"cannot write to the folder .*: Permission denied"):
        check_writable(tmp_path / "new" / "model.safetensors", force=False)
