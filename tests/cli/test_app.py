"""The program as a whole: help, exit codes, messages, interruption, pipes, and the page that documents it."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import typing
import warnings
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import expunge as library
from expunge.checks import describe
from expunge.cli import app as app_module
from expunge.cli.app import VERBS, app, guarded
from expunge.cli.catalogue import registries
from expunge.cli.docs import PAGE, TABLE, WITH_TABLES, page, with_tables
from expunge.cli.options import RECIPE
from expunge.errors import HealthFlag, NondeterministicModel

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "expunge"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def test_the_page_about_the_command_line_is_current():
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(), "run `python -m expunge.cli.docs`"


@pytest.mark.parametrize("path", WITH_TABLES)
def test_the_tables_of_a_page_are_current(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert TABLE.search(text)
    assert with_tables(text) == text, "run `python -m expunge.cli.docs`"
    assert all(f"| `{method.__name__}` |" in text for method in registries()["methods"].values())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_documented_and_has_help(verb, expunge):
    assert f"## expunge {verb}\n" in page()
    assert "Usage: expunge" in CliRunner().invoke(app, [verb, "--help"], prog_name="expunge").stdout


def test_every_option_has_a_help_text():
    for command in get_command(app).commands.values():
        assert not [p.name for p in command.params if p.name != "help" and not (p.help or "").endswith((".", "…", "]", ")"))]


def test_every_field_of_the_recipe_is_an_option_with_its_default():
    fields = {field.name: field for field in dataclasses.fields(library.Recipe)}
    hints = typing.get_type_hints(library.Recipe)
    assert set(RECIPE) == set(fields)
    for name, (kind, text) in RECIPE.items():
        default = getattr(library.Recipe(), name)
        assert kind is (str if name in ("schedule", "clip") else hints[name])
        shown = (
            {True: name, False: f"no-{name}"}[default]
            if kind is bool
            else "cosine:warmup=0.1"
            if name == "schedule"
            else str(default).lower()
        )
        assert text.endswith(f"[{shown}]"), name


def test_the_command_line_is_imported_without_torch():
    # The package's own __init__ is left out: it is not the command line's.
    program = (
        "import sys, types; package = types.ModuleType('expunge'); "
        f"package.__path__ = [{str(Path(library.__file__).parent)!r}]; sys.modules['expunge'] = package; import expunge.cli; "
        "print(sorted({'torch', 'numpy', 'sklearn', 'matplotlib', 'rich.progress'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("kind", ["methods", "attacks", "audits", "datasets", "architectures", "controls"])
def test_list_shows_everything_in_the_registry(kind, expunge):
    rows = expunge("list", kind).stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == sorted(registries()[kind])
    assert all(len(row.split()) > 3 for row in rows), "something has no docstring"


def test_list_says_which_methods_need_retain_data_and_which_forget_whole_classes_only(expunge):
    rows = {row.split()[0]: tuple(row.split()[1:3]) for row in expunge("list", "methods").stdout.splitlines()}
    assert (rows["amun"], rows["fine_tune"], rows["delete"]) == (("optional", "any"), ("full", "any"), ("none", "any"))
    assert (rows["trw"], rows["boundary_expanding"]) == (("optional", "classes"), ("none", "classes"))


def test_show_has_the_settings_of_published_experiments(expunge):
    out = expunge("show", "amun").stdout
    assert re.search(r"^cifar10_resnet18_random10 +epochs=10, lr=0\.01, .*schedule=Step\(every=1, ", out, re.M)
    published = json.loads(expunge("show", "amun", "--json").stdout)["published"]
    assert published["cifar10_resnet18_random10"]["schedule"]["every"] == 1


@pytest.mark.parametrize("name", [name for registry in registries().values() for name in registry])
def test_show_explains_everything_that_list_shows(name, expunge):
    out = expunge("show", name).stdout
    found = next(registry[name] for registry in registries().values() if name in registry)
    assert out.startswith(f"{name} (") and found.__doc__.split("\n")[0] in out
    for field in dataclasses.fields(found) if dataclasses.is_dataclass(found) else ():
        assert re.search(rf"^{field.name} +{re.escape(describe(typing.get_type_hints(found)[field.name], field.metadata))}", out, re.M), (
            field.name
        )


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ["show", "amnu"],
            "no method, attack, audit, measure, dataset, architecture, control or recipe named 'amnu'; did you mean 'amun'?",
        ),
        (["list", "method"], "no list named 'method'; did you mean 'methods'?"),
        (["list", "runs", "--store", "absent"], "no store 'absent'"),
        (["train", "digit", "small", "-o", "x.pt"], "no dataset named 'digit'; did you mean 'digits'?"),
        (["train", "digits", "smal", "-o", "x.pt"], "no architecture named 'smal'; did you mean 'small'?"),
        (["train", "digits", "small", "-o", "x.pt", "--epochs", "0"], "Recipe: epochs must be an integer ≥ 1; got 0"),
        (["train", "digits", "small", "-o", "x.pt", "--device", "abacus"], "device must be"),
        (["train", "digits", "small", "-o", "x.pt", "--without", "absent.csv"], "no file of indices 'absent.csv'"),
        (["unlearn", "amnu", "--model", "m.pt", "--data", "digits", "--forget-random", "5", "-o", "x.pt"], "no checkpoint file 'm.pt'"),
        (["shadows", "digits", "small", "--n", "3"], "even integer"),
        (["audit", "--original", "m.pt", "--data", "digits", "--forget-random", "5"], "no checkpoint file 'm.pt'"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_1(arguments, sentence, expunge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = expunge(*arguments, code=1)
    assert out.stderr.startswith("error: ") and sentence in out.stderr and out.stderr.count("\n") == 1 and not out.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["trian"], "No such command"),
        (["train", "digits", "small"], "Missing option"),
        (["train", "digits", "small", "-o", "x.pt", "--epochs", "many"], "Invalid value for '--epochs'"),
        (["train", "digits", "small", "-o", "x.pt", "--epoch", "1"], "No such option"),
        (["unlearn", "amun", "--model", "m.pt", "--data", "digits", "-o", "x.pt"], "expected exactly one of --forget-indices"),
        (["audit", "--original", "m.pt", "--data", "d", "--forget-random", "5", "--forget-classes", "1"], "expected exactly one of"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, sentence, expunge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = expunge(*arguments, code=2)
    assert sentence in out.stderr and not out.stdout


def test_version_is_printed(expunge):
    assert re.fullmatch(r"expunge \d+\.\d+.*\n", expunge("--version").stdout)


def test_a_mistake_of_ours_keeps_its_traceback(expunge, monkeypatch):
    monkeypatch.setattr("expunge.checks.choose", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        expunge("show", "amun")


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"store": "runs"}, "kept in runs; the same command continues"),
        ({"store": "runs", "shadows": 0}, "nothing was written"),
        ({"store": "runs", "shadows": 0, "protocol": "standard-1"}, "kept in runs; the same command continues"),
        ({}, "nothing was written"),
    ],
)
def test_an_interrupt_is_one_line_and_exit_code_130(options, sentence, capsys):
    def verb(**_):
        raise KeyboardInterrupt

    with pytest.raises(app_module.typer.Exit) as end:
        guarded(verb)(**options)
    assert end.value.exit_code == 130
    assert re.fullmatch(rf"interrupted: .*{sentence}.*\n", capsys.readouterr().err)


def test_health_flags_are_one_line_each_and_other_warnings_are_python_s(capsys):
    def verb():
        warnings.warn("the model\n answers differently", NondeterministicModel, stacklevel=1)
        warnings.warn("another", RuntimeWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guarded(verb)()
    assert issubclass(NondeterministicModel, HealthFlag)
    assert capsys.readouterr().err == "warning: NondeterministicModel: the model answers differently\n"
    assert [w.category for w in caught] == [RuntimeWarning]


def test_the_program_fails_with_exit_code_1_and_without_a_traceback(tmp_path):
    done = subprocess.run([*COMMAND, "show", "amnu"], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no method") and done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_news(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "list"], stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=ENVIRONMENT, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_interrupted_shadows_exit_with_130_and_the_same_command_continues(work, expunge, tmp_path):
    store = tmp_path / "runs"
    # 40 epochs, so that five models take seconds: that long this process has to notice that the first one is there
    command = ["shadows", work.data, "--like", work.original, "--n", 6, "--epochs", 40, "--store", store, "--workers", 1]
    command = [str(word) for word in command]
    process = subprocess.Popen(
        [*COMMAND, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=ENVIRONMENT
    )
    while not list(store.glob("shadow/*/result.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, ""), err
    assert err.splitlines()[-1].startswith("interrupted: finished models are kept in ") and "Traceback" not in err
    finished = {path: path.stat().st_mtime_ns for path in store.glob("shadow/*/result.json")}
    assert 0 < len(finished) < 6
    assert "6 shadow models are in" in expunge(*command).stdout
    assert finished.items() <= {path: path.stat().st_mtime_ns for path in store.glob("shadow/*/result.json")}.items(), (
        "a finished model was trained again"
    )
