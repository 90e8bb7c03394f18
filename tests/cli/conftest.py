"""The command line in this process, and a small trained model for its verbs to work on."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from expunge import load_data
from expunge.cli.app import app

QUICK = ["--epochs", "2", "--batch-size", "32", "--lr", "0.05", "--device", "cpu"]


@pytest.fixture(scope="session")
def expunge():
    """Runs `expunge` with these arguments; exit code, stdout and stderr come back, an unexpected error is raised."""

    def run(*arguments, code: int = 0) -> SimpleNamespace:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return SimpleNamespace(stdout=result.stdout, stderr=result.stderr)

    return run


@pytest.fixture(scope="session")
def work(tmp_path_factory, expunge) -> SimpleNamespace:
    """200 digits as a file, ten of them to forget, and a model trained on them by the command line."""
    folder = tmp_path_factory.mktemp("work")
    train, test = load_data("digits")
    data, ids, original = folder / "digits.npz", folder / "ids.csv", folder / "original.safetensors"
    arrays = {
        "images": train.images[:200],
        "labels": train.labels[:200],
        "test_images": test.images[:100],
        "test_labels": test.labels[:100],
    }
    np.savez(data, classes=list(train.classes), **arrays)
    ids.write_text("id,who\n" + "".join(f"{i},somebody\n" for i in range(0, 200, 20)))
    printed = json.loads(expunge("train", data, "small", "-o", original, "--seed", "1", "--json", *QUICK).stdout)
    return SimpleNamespace(
        folder=folder, data=data, ids=ids, original=original, printed=printed, forget=["--forget-indices", ids], quick=QUICK
    )


@pytest.fixture
def own_package(tmp_path, monkeypatch) -> Path:
    """A user's module in the current folder: `mynets:build`, `mynets:load` and `mynets:trained`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mynets.py").write_text(
        "import torch, expunge\n"
        "from toys import toy_net\n"
        "def build():\n    return toy_net()\n"
        "def trained():\n    torch.manual_seed(3)\n    return toy_net()\n"
        "def load():\n"
        "    train, test = expunge.load_data('digits')\n"
        "    return train.subset(range(60)), test.subset(range(40))\n"
        "def one():\n    return expunge.load_data('digits')[0]\n"
    )
    yield tmp_path
    import sys

    sys.modules.pop("mynets", None)
