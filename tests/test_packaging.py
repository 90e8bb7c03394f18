"""What is installed: the files in a wheel and a source archive, their metadata, the extras, and the pages that a packager or a citing author reads."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import expunge
from expunge.errors import MissingError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
BESIDE = ("pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff")
BUILD = "import setuptools.build_meta as build; build.build_sdist('dist'); build.build_wheel('dist')"
CITED = {"arXiv:2503.00917", "arXiv:2506.20893", "arXiv:2303.11570", "arXiv:2402.16017"}


def package_files() -> set[str]:
    """What of `src/` belongs to the package."""
    parts = (path.relative_to(ROOT / "src") for path in (ROOT / "src" / "expunge").rglob("*") if path.is_file())
    return {path.as_posix() for path in parts if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with both archives, built from a copy of the checkout that has things lying around which must stay there."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in BESIDE:
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src" / "expunge", copy / "src" / "expunge", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "tests/test_it.py",
        "benchmarks/speed.py",
        "docs/index.md",
        "runs/shadow/0/result.json",
        "src/expunge/__pycache__/x.cpython-311.pyc",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("{}")
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(built) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_whole_package_with_its_types_pages_and_licence_and_nothing_else(wheel):
    info = f"expunge-{PROJECT['version']}.dist-info"
    about = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE")}
    assert set(wheel.namelist()) == package_files() | about
    assert {"expunge/py.typed", "expunge/report/template.html", "expunge/report/style.css"} <= set(wheel.namelist())
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_source_archive_holds_what_a_wheel_is_built_of_and_nothing_else(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    assert {name for name in names if not name.startswith("src/expunge.egg-info/")} == {
        *BESIDE, "PKG-INFO", "setup.cfg", *(f"src/{name}" for name in package_files()),
    }  # fmt: skip


def test_the_metadata_say_what_the_package_is_needs_and_offers(wheel):
    found = email.message_from_bytes(wheel.read(f"expunge-{PROJECT['version']}.dist-info/METADATA"))
    assert (found["Name"], found["Version"], found["License-Expression"]) == ("expunge", PROJECT["version"], "MIT")
    assert found["Requires-Python"] == ">=3.11" and "Typing :: Typed" in found.get_all("Classifier")
    assert set(found.get_all("Provides-Extra")) == {"autoattack", "ray", "slurm", "timm", "huggingface", "docs", "test"}
    assert found.get_payload(decode=True) == (ROOT / "README.md").read_bytes()


def test_every_library_that_the_package_imports_is_declared():
    called = {
        "sklearn": "scikit-learn",
        "PIL": "pillow",
        "cloudpickle": "submitit",
    }  # submitit depends on cloudpickle, and so Slurm may use it
    line = re.compile(r"^ *(?:import (\w+)|from (\w+)[\w.]* import )", re.M)  # a dot before the name: one of ours
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    imported = {first or second for text in sources for first, second in line.findall(text)}
    libraries = {called.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"expunge"}}
    declared = {re.split(r"[<>=\[]", text)[0] for text in PROJECT["dependencies"]}
    optional = {re.split(r"[<>=\[]", text)[0] for name in ("autoattack", "ray", "slurm") for text in EXTRAS[name]}
    assert declared <= libraries, "something is declared that nothing imports"
    assert libraries <= declared | optional


def test_the_tests_need_every_extra_that_users_may_install():
    text = next(text for text in EXTRAS["test"] if text.startswith("expunge["))
    assert set(text.removeprefix("expunge[").removesuffix("]").split(",")) == set(EXTRAS) - {"test", "docs"}


@pytest.mark.parametrize(
    "extra, use",
    [
        ("autoattack", lambda tmp_path: expunge.robust_accuracy(FirstClass(), images(), expunge.AutoAttack(norm="linf", eps=0.1))),
        ("ray", lambda tmp_path: expunge.Ray().launch((), tasks=[1], store=tmp_path)),
        ("slurm", lambda tmp_path: expunge.Slurm().launch((), tasks=[1], store=tmp_path)),
    ],
)
def test_an_extra_that_is_missing_is_named_with_what_installs_it(extra, use, tmp_path, monkeypatch):
    for text in EXTRAS[extra]:
        monkeypatch.setitem(sys.modules, re.split("[<>=]", text)[0], None)  # as if it were not installed
    with pytest.raises(MissingError, match=rf"pip install [\"']expunge\[{extra}\][\"']"):
        use(tmp_path)


class FirstClass(torch.nn.Module):
    """Answers every image with class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([5.0, 0.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits + 0 * images.flatten(1)[:, :2]


def images() -> expunge.ImageData:
    return expunge.ImageData(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), ("a", "b"))


def test_the_version_is_the_same_wherever_it_is_said():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == PROJECT["version"]
    assert f"## [{PROJECT['version']}] - {citation['date-released']}\n" in changes


def test_the_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (.*)$", text, re.M)
    assert releases[0] == "[Unreleased]" and all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases[1:])
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_file_has_what_its_format_requires_and_cites_the_papers_that_this_is_built_on():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(found)
    assert (
        found["type"] == "software" and found["license"] == PROJECT["license"] and found["authors"] == [{"name": "The expunge developers"}]
    )
    for paper in found["references"]:
        assert paper["type"] == "conference-paper" and isinstance(paper["year"], int) and paper["title"]
        assert all({"family-names", "given-names"} == set(author) for author in paper["authors"]) and paper["authors"]
    assert {number["value"] for paper in found["references"] for number in paper["identifiers"]} == CITED
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(number in readme for number in CITED)


@pytest.mark.parametrize("page", ["CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_of_pages_beside_the_readme_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links and [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
