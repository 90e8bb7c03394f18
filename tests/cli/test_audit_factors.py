"""`expunge audit --factors`, and what is said of models that were clipped after they were trained."""

import json

import pytest

import expunge as library

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def made(work, expunge, tmp_path_factory):
    """An unlearned and two retrained models, as options of `expunge audit`; their folder."""
    folder = tmp_path_factory.mktemp("made")
    common = ["--model", work.original, "--data", work.data, *work.forget, "--device", "cpu"]
    expunge("unlearn", "fine_tune", *common, "--set", "epochs=1", "-o", folder / "u")
    for seed in (1, 2):
        expunge("unlearn", "retrain", *common, "--seed", seed, "-o", folder / f"r{seed}")
    audited = ["--original", work.original, "--data", work.data, *work.forget, "--device", "cpu"]
    return ["audit", *audited, "--unlearned", f"mine={folder / 'u'}", "--retrained", folder / "r1", "--retrained", folder / "r2"], folder


@pytest.fixture(scope="module")
def split(work):
    return library.forget_samples(library.load_data(work.data).train, range(0, 200, 20))


def test_factors_and_spectra_are_the_library_s(work, made, split, expunge, tmp_path):
    options, folder = made
    page = tmp_path / "page.html"
    out = json.loads(expunge(*options, "--factors", "--html", page, "--json").stdout)
    models = {name: library.load_model(path) for name, path in (("original", work.original), ("mine", folder / "u"))}
    retrained = [library.load_model(folder / f"r{seed}") for seed in (1, 2)]
    found = library.factors(models["original"], split, unlearned=models["mine"], retrained=retrained)
    assert out["factors"] == {"mine": found.to_dict()} and out["factors"]["mine"]["n_retrained"] == 2
    every = models | {"retrained": retrained[0], "retrained 2": retrained[1]}
    assert out["spectra"] == {name: library.spectrum(model, SHAPE).to_dict() for name, model in every.items()}
    text = page.read_text()
    assert "Why did it go well or badly?" in text and "How far can each layer stretch" in text


def test_without_other_models_and_retain_data_there_are_fewer_factors(work, expunge):
    alone = ["audit", "--original", work.original, "--data", work.data, *work.forget, "--no-retain", "--factors", "--device", "cpu"]
    printed = expunge(*alone).stdout
    assert "Factors of original: " in printed and "; no retrained model." in printed and "Spectral norms" in printed
    (c,) = (line for line in printed.splitlines() if line.startswith("C "))
    (distance,) = (line for line in printed.splitlines() if line.startswith("mean distance"))
    assert c.endswith("n/a (needs an unlearned and a retrained model)") and "n/a" not in distance


def test_they_are_measured_only_if_they_are_asked_for(made, expunge):
    out = json.loads(expunge(*made[0], "--json").stdout)
    assert out["factors"] == out["spectra"] == {}


def test_a_model_that_was_clipped_later_gives_a_warning_where_others_follow_its_recipe(work, expunge, tmp_path):
    clipped = tmp_path / "clipped.safetensors"
    expunge("spectrum", work.original, "--clip", "1.5", "-o", clipped, "--device", "cpu")
    warning = "was clipped after it was trained"
    common = ["--data", work.data, *work.forget, "--device", "cpu"]
    assert warning in expunge("unlearn", "retrain", "--model", clipped, *common, "-o", tmp_path / "r").stderr
    assert warning not in expunge("unlearn", "fine_tune", "--model", clipped, *common, "--set", "epochs=1", "-o", tmp_path / "u").stderr
    audited = ["audit", "--original", clipped, *common]
    assert warning not in expunge(*audited).stderr
    shadows = expunge(*audited, "--shadows", "3", "--store", tmp_path / "runs", code=1).stderr  # an odd number, so that none is trained
    assert shadows.startswith("warning: ") and shadows.count(warning) == 1
