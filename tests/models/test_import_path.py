"""Import paths: found from the current folder, and mistakes told apart."""

import sys

import pytest

from expunge.errors import ConfigError, MissingError
from expunge.models.import_path import import_object


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_module_in_the_current_folder_is_found(here):
    (here / "my_nets_a.py").write_text("class Nets:\n    @staticmethod\n    def build():\n        return 7\n")
    assert import_object("my_nets_a:Nets.build")() == 7


@pytest.mark.parametrize("path", ["my.nets", "my nets:build", ":build", "nets:", "a..b:c", "./nets.py:build"])
def test_other_forms_are_refused_with_an_example(path):
    with pytest.raises(ConfigError, match=r"'mypkg\.nets:build'"):
        import_object(path)


def test_a_missing_name_gets_the_nearest_one(here):
    (here / "my_nets_b.py").write_text("def build(): ...\n")
    with pytest.raises(MissingError, match="no object in 'my_nets_b' named 'biuld'; did you mean 'build'"):
        import_object("my_nets_b:biuld")


def test_a_missing_module_says_where_was_looked(here):
    with pytest.raises(MissingError, match=r"no module named 'absent_pkg'; looked in .* and the installed packages"):
        import_object("absent_pkg.nets:build")


def test_a_module_whose_own_import_fails_is_not_called_missing(here):
    (here / "my_nets_c.py").write_text("import absent_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="absent_dependency"):
        import_object("my_nets_c:build")
