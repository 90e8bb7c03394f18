"""`expunge spectrum`: what it prints is what the library finds, and what it writes is clipped; `--clip` of a recipe."""

import functools
import json
from importlib import import_module

import pytest
import torch

import expunge as library
from expunge.cli.inputs import metadata_of, recipe_of, training_of
from expunge.cli.train import accuracies, make_recipe
from expunge.errors import ConfigError, MissingError
from expunge.models import model_hash, read_metadata
from expunge.settings import configured
from expunge.spectral import CONTROLS
from expunge.spectral.clip import Clip
from expunge.spectral.spectrum import spectrum
from expunge.store import plain

SHAPE = (1, 8, 8)
OWN_MODULES = (
    "import torch\nfrom torch import nn\n"
    "class Net(nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.shared, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(16, 10)\n"
    "        self.unseen = nn.Parameter(torch.ones(2, 2))\n"
    "    def forward(self, x):\n"
    "        x = self.shared(torch.max_pool2d(self.shared(x), 2))\n"
    "        return self.head(x.flatten(1)).softmax(1) * x.mean()\n"
    "def build():\n    return Net()\n"
    "def trained():\n    torch.manual_seed(0)\n    return Net()\n"
)


def table(out: str) -> dict[str, list[str]]:
    """The cells behind each layer's name and input in a printed table."""
    lines = out.split("\n\n", maxsplit=1)[0].splitlines()[1:]
    return {line.split("  ")[0]: line.split("  ", 1)[1].split() for line in lines}


@pytest.fixture(scope="module")
def clipped(work, expunge, tmp_path_factory):
    """The model clipped by the command line at 1.5, what it printed as JSON, and the page."""
    folder = tmp_path_factory.mktemp("clipped")
    out, page = folder / "clipped.safetensors", folder / "page.html"
    printed = expunge(
        "spectrum", work.original, "--clip", "1.5", "-o", out, "--data", work.data, "--html", page, "--k", "2", "--device", "cpu", "--json"
    )
    return out, json.loads(printed.stdout), page


def test_the_table_holds_the_library_s_values(work, expunge):
    printed = expunge("spectrum", work.original, "--k", "2", "--device", "cpu")
    found = spectrum(library.load_model(work.original), SHAPE, 2)
    rows = table(printed.stdout)
    assert list(rows) == list(found) and not printed.stderr
    for name, layer in found.items():
        shape, *values = rows[name]
        assert shape == "×".join(map(str, found.shapes[name]))
        assert values == [f"{v:#.4g}" for v in layer.values.tolist()], "an error estimate belongs to what has not converged"
    assert f"Lipschitz constant of the network: at most {found.bound.value:.3g}\n" in printed.stdout


def test_batchnorm_apart_has_rows_of_its_own(work, expunge):
    rows = table(expunge("spectrum", work.original, "--apart", "--k", "1", "--device", "cpu").stdout)
    found = spectrum(library.load_model(work.original), SHAPE, 1, composed=False)
    assert list(rows) == list(found) and not any("+" in name for name in rows)
    assert [float(row[1]) for row in rows.values()] == pytest.approx(list(found.norms.values()), rel=1e-3)


def test_a_clipped_checkpoint_is_within_the_bound_when_it_is_loaded_again(work, clipped):
    out, printed, _ = clipped
    model = library.load_model(out)
    after = spectrum(model, SHAPE, 2)
    controlled = {layer.name for layer in Clip(max_norm=1.5, batchnorm="composed").layers(model, SHAPE)}
    assert controlled == set(after) - {"0"}, "all but Normalize"
    assert all(after.norms[name] <= 1.5 * 1.02 * (1 + 1e-5) for name in controlled)
    assert max(spectrum(library.load_model(work.original), SHAPE).norms.values()) > 1.6, "there was something to clip"
    assert printed["clip"]["not_clipped"] == ["0"]
    assert [layer["values"] for layer in printed["clip"]["spectrum"]["layers"]] == [v.values.tolist() for v in after.values()]


def test_apart_clips_each_convolution_by_itself(work, expunge, tmp_path):
    out = tmp_path / "apart.safetensors"
    printed = expunge("spectrum", work.original, "--apart", "--clip", "0.5", "-o", out, "--device", "cpu", "--k", "1").stdout
    model = library.load_model(out)
    after = spectrum(model, SHAPE, composed=False)
    controlled = {layer.name for layer in Clip(max_norm=0.5).layers(model, SHAPE)}
    assert controlled and all(after.norms[name] <= 0.51 * (1 + 1e-5) for name in controlled)
    kept = [name for name, norm in after.norms.items() if name not in controlled and norm > 0.51]
    assert f"not clipped, for they have no weights that could be: {', '.join(kept)}\n" in printed and f"wrote {out}\n" in printed
    assert "σ1 before  σ1 after" in printed and "accuracy" not in printed and "accuracy" not in read_metadata(out)["clipped"][0]


def test_what_clipping_cost_are_the_accuracies_of_the_two_models(work, clipped, expunge, tmp_path):
    out, printed, _ = clipped
    train, test = library.load_data(work.data)
    groups = {"train": train, "test": test}
    before, after = (accuracies(library.load_model(path), groups, "cpu") for path in (work.original, out))
    assert printed["clip"]["accuracy"] == {"before": before, "after": after} and before == work.printed["accuracy"]
    text = expunge(
        "spectrum", work.original, "--clip", "1.5", "-o", tmp_path / "c.safetensors", "--data", work.data, "--device", "cpu"
    ).stdout
    for group in groups:
        assert [line.split()[1::2] for line in text.splitlines() if line.split()[:1] == [group]] == [
            [f"{100 * before[group]:.1f}", f"{100 * after[group]:.1f}"]
        ]
    assert "at most" in text and " before, at most " in text


def test_a_clipped_checkpoint_knows_where_it_comes_from_and_how_it_was_clipped(work, clipped):
    out, printed, _ = clipped
    known, made = read_metadata(work.original), read_metadata(out)
    for name in set(known) - {"model_hash"}:
        assert made[name] == known[name], name
    assert made["model_hash"] == model_hash(library.load_model(out)) != known["model_hash"]
    assert len(made["clipped"]) == 1
    (clip,) = made["clipped"]
    assert clip["original"] == known["model_hash"] and "torch" in clip.pop("provenance")
    assert clip.pop("accuracy") == printed["clip"]["accuracy"]["after"] and made["accuracy"] == known["accuracy"]
    assert clip | {"original": ""} == {
        "max_norm": 1.5, "tolerance": 0.02, "batchnorm": "composed", "input_shape": [1, 8, 8], "original": "",
    }  # fmt: skip


def test_a_second_clip_keeps_the_record_of_the_first(clipped, expunge, tmp_path):
    out, _, _ = clipped
    expunge("spectrum", out, "--clip", "1.0", "-o", tmp_path / "again.safetensors", "--k", "1", "--device", "cpu")
    first, second = read_metadata(tmp_path / "again.safetensors")["clipped"]
    assert [first] == read_metadata(out)["clipped"] and (second["original"], second["max_norm"]) == (read_metadata(out)["model_hash"], 1.0)


def test_json_is_complete_and_alone_on_stdout(work, clipped, expunge):
    out, printed, _ = clipped
    plain_only = json.loads(expunge("spectrum", work.original, "--k", "2", "--json", "--device", "cpu").stdout)
    assert plain_only["spectrum"] == spectrum(library.load_model(work.original), SHAPE, 2).to_dict() == printed["spectrum"]
    assert plain_only["clip"] is None and set(plain_only) == set(printed) == {"model", "input_shape", "batchnorm", "spectrum", "clip"}
    assert (plain_only["input_shape"], plain_only["batchnorm"], plain_only["model"]) == ([1, 8, 8], "composed", str(work.original))
    assert set(printed["clip"]) == {
        *("max_norm", "tolerance", "batchnorm", "spectrum", "not_clipped", "accuracy", "seconds", "output"),
    }  # fmt: skip
    assert printed["clip"]["output"] == str(out)


def test_the_page_shows_both_spectra(clipped):
    _, printed, page = clipped
    text = page.read_text()
    numbers = json.loads(text.split('id="result">')[1].split("</script>")[0])
    assert numbers["spectra"] == {"before": printed["spectrum"], "after": printed["clip"]["spectrum"]}
    assert numbers["max_norm"] == 1.5 and numbers["accuracy"] == printed["clip"]["accuracy"] and "What did clipping cost?" in text


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--clip", "1"], "expected --output with --clip; got none"),
        (["-o", "x.safetensors"], "expected --clip with --output; got none"),
        (["--input-shape", "8x8"], "expected C,H,W, such as 3,32,32; got '8x8'"),
        (["--input-shape", "1,0,8"], "expected C,H,W, such as 3,32,32; got '1,0,8'"),
        (["--clip", "much", "-o", "x"], "Invalid value for '--clip'"),
    ],
)
def test_wrong_usage_is_exit_code_2(options, sentence, work, expunge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = expunge("spectrum", work.original, *options, code=2)
    assert sentence in " ".join(out.stderr.split()) and not out.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--clip", "-1", "-o", "x.safetensors"], "Clip: max_norm must be a number > 0; got -1.0"),
        (["--clip", "nan", "-o", "x.safetensors"], "Clip: max_norm must be a number > 0; got nan"),
        (["--k", "0"], "must be integers ≥ 1"),
        (["--input-shape", "3,8,8"], "got (3, 8, 8)"),
        (["--data", "digit"], "no dataset named 'digit'"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_1(options, sentence, work, expunge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = expunge("spectrum", work.original, *options, code=1)
    assert out.stderr.startswith("error: ") and sentence in out.stderr and out.stderr.count("\n") == 1
    assert not out.stdout and not list(tmp_path.iterdir())


def test_files_that_exist_are_replaced_with_force_only(work, expunge, tmp_path):
    file = tmp_path / "there"
    for options in (["--clip", "1", "-o", file], ["--html", file]):
        file.write_text("mine")
        out = expunge("spectrum", work.original, *options, "--k", "1", code=1)
        assert f"{file} exists. Pass --force" in out.stderr and file.read_text() == "mine"
        expunge("spectrum", work.original, *options, "--k", "1", "--force")
        assert file.read_bytes() != b"mine"


def test_a_model_of_one_s_own_needs_a_shape_and_gets_it_from_an_option_or_from_data(own_package, expunge):
    out = expunge("spectrum", "mynets:trained", code=2)
    assert "Pass --input-shape C,H,W, such as 3,32,32, or --data." in " ".join(out.stderr.split())
    one, other = (
        expunge("spectrum", "mynets:trained", *options, "--device", "cpu").stdout
        for options in (["--input-shape", "1,8,8"], ["--data", "mynets:load"])
    )
    assert one == other and "0 + 1" in one


def test_what_has_no_bound_and_what_is_not_seen_is_said(own_package, expunge):
    (own_package / "mynets.py").write_text(OWN_MODULES)
    page, out = own_package / "page.html", own_package / "out.safetensors"
    options = [
        "--input-shape",
        "1,8,8",
        "--k",
        "1",
        "--device",
        "cpu",
        "--clip",
        "0.1",
        "-o",
        out,
        "--html",
        page,
        "--build",
        "mynets:build",
    ]
    printed = expunge("spectrum", "mynets:trained", *options).stdout
    assert "Lipschitz constant of the network: unknown, for " in printed and printed.count("unknown, for") == 1
    assert "not seen, for no layer above holds them: unseen\n" in printed
    rows = table(printed)
    assert len(rows) == 3 and "shared at 1×4×4" in rows and "not clipped" not in printed
    assert all(float(row[-1]) <= 0.10201 for row in rows.values()), "a layer that is called at two sizes is within the bound at both"
    assert read_metadata(out)["build"] == "mynets:build"
    again = json.loads(expunge("spectrum", out, "--build", "mynets:build", "--input-shape", "1,8,8", "--json").stdout)
    assert max(layer["values"][0] for layer in again["spectrum"]["layers"]) <= 0.10201


def test_errors_are_printed_where_the_iteration_stopped_early(work, expunge, monkeypatch):
    early_only = functools.partial(spectrum, max_iterations=1)
    monkeypatch.setattr("expunge.spectral.spectrum.spectrum", early_only)
    found = early_only(library.load_model(work.original), SHAPE, 1)
    rows = table(expunge("spectrum", work.original, "--k", "1", "--device", "cpu").stdout)
    early = [name for name, layer in found.items() if not layer.converged]
    assert early
    for name, layer in found.items():
        error = ["±", f"{layer.error_estimate[0].item():.1g}"] if name in early else []
        assert rows[name][1:] == [f"{layer.values[0].item():#.4g}", *error]


@pytest.mark.parametrize(
    "text, clip",
    [
        ("clip:max_norm=0.7,batchnorm=composed", Clip(max_norm=0.7, batchnorm="composed")),
        ("clip", Clip()),
        ("0.5", Clip(max_norm=0.5)),
        ("2", Clip(max_norm=2.0)),
        ("none", None),
    ],
)
def test_a_recipe_takes_a_control_as_text_and_comes_back_from_metadata(text, clip):
    recipe = make_recipe({"clip": text, "epochs": 3}, library.Recipe(clip=Clip(max_norm=9.0)))
    assert recipe == library.Recipe(epochs=3, clip=clip) == configured(library.Recipe, ["epochs=3", f"clip={text}"])
    assert recipe_of(json.loads(json.dumps(plain(recipe)))) == recipe
    assert ("clip" in plain(recipe)) == (clip is not None)


@pytest.mark.parametrize("control", CONTROLS.values())
def test_every_control_in_a_recipe_comes_back_from_metadata(control):
    recipe = library.Recipe(clip=control())
    assert recipe_of(json.loads(json.dumps(plain(recipe)))) == recipe


@pytest.mark.parametrize(
    "text, error, sentence",
    [
        ("clpi:max_norm=1", MissingError, "no control named 'clpi'; did you mean 'clip'"),
        ("clip:max_norm=0", ConfigError, "Clip: max_norm must be a number > 0; got 0.0"),
        ("-1", ConfigError, "Clip: max_norm must be a number > 0; got -1.0"),
        ("clip:norm=1", MissingError, "no setting of .* named 'norm'"),
    ],
)
def test_a_bad_control_gives_the_library_s_sentence(text, error, sentence):
    with pytest.raises(error, match=sentence):
        make_recipe({"clip": text})


def test_a_model_trained_with_a_control_and_its_shadow_models_have_the_same_recipe(work, expunge, tmp_path):
    out, store = tmp_path / "m.safetensors", tmp_path / "runs"
    quick = ["--epochs", "1", "--batch-size", "32", "--lr", "0.05", "--device", "cpu"]
    expunge("train", work.data, "small", "-o", out, "--clip", "clip:max_norm=0.8,every=2", *quick)
    clip = Clip(max_norm=0.8, every=2)
    recipe = library.Recipe(epochs=1, batch_size=32, lr=0.05, clip=clip)
    model = library.load_model(out)
    found = spectrum(model, SHAPE, composed=False).norms
    assert all(found[layer.name] <= clip.limit * (1 + 1e-5) for layer in clip.layers(model, SHAPE))
    assert training_of(metadata_of(str(out)))["recipe"] == recipe
    printed = expunge("shadows", work.data, "--like", out, "--n", "2", "--store", store, "--workers", "1", "--device", "cpu")
    assert not printed.stderr
    specs = [json.loads(path.read_text()) for path in store.glob("shadow/*/spec.json")]
    assert len(specs) == 2 and all(recipe_of(spec["recipe"]) == recipe for spec in specs)


def test_shadow_models_of_a_model_that_was_clipped_later_give_a_warning(clipped, work, expunge, tmp_path):
    out, *_ = clipped
    quick = ["--n", "2", "--epochs", "1", "--store", tmp_path, "--workers", "1", "--device", "cpu"]
    printed = expunge("shadows", work.data, "--like", out, *quick)
    assert printed.stderr.startswith("warning: ") and "was clipped after it was trained" in printed.stderr


def test_the_model_that_was_given_stays_as_it_is(own_package, expunge):
    (own_package / "mynets.py").write_text(OWN_MODULES + "model = trained()\n")
    kept = import_module("mynets").model
    before = {name: value.clone() for name, value in kept.state_dict().items()}
    expunge("spectrum", "mynets:model", "--input-shape", "1,8,8", "--clip", "0.1", "-o", own_package / "x", "--device", "cpu")
    assert all(torch.equal(value, before[name]) for name, value in kept.state_dict().items())
