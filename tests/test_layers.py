"""Imports go downwards, names go outwards: the structure of the package, read from its own source."""

import ast
import pathlib
import runpy
import subprocess
import sys

import expunge

SOURCE = pathlib.Path(expunge.__file__).parent
DOCS = pathlib.Path(__file__).parents[1] / "docs"
LAYERS = [
    {"errors", "checks", "types", "rng", "progress", "provenance", "modes", "device", "costs", "ranks"},
    {"store", "data", "models"},
    {"spectral"},
    {"training"},
    {"attacks", "metrics"},
    {"methods", "audits", "report"},
    {"auditing", "diagnosis", "leakage", "settings", "stored", "tuning"},
    {"bench", "demo", "demo_classes", "protocol"},
    {"cli", "__main__", "__init__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part_of(path: pathlib.Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: pathlib.Path) -> set[str]:
    """The parts of expunge that a file imports, also inside functions."""
    found, package = set(), ("expunge", *path.relative_to(SOURCE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("expunge.") and name != "expunge."}
    return found


def test_every_part_has_a_layer():
    assert {part_of(path) for path in SOURCE.rglob("*.py")} == set(LEVEL)


def test_the_page_on_architecture_and_its_picture_show_these_layers():
    draw = runpy.run_path(str(DOCS / "images" / "draw_layers.py"))
    on_page = draw["layers_on"]((DOCS / "architecture.md").read_text(encoding="utf-8"))
    assert {level: set(parts) for level, _, parts in on_page} == dict(enumerate(LAYERS))
    assert draw["PICTURE"].read_text(encoding="utf-8") == draw["drawn"](on_page), "python docs/images/draw_layers.py draws it anew"


def test_no_layer_reaches_up():
    upward = [
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in SOURCE.rglob("*.py")
        for name in imports_of(path)
        if name in LEVEL and LEVEL[name] > LEVEL[part_of(path)]
    ]
    assert not upward or part_of(SOURCE / upward[0]) == "__init__", upward


def test_methods_do_not_see_their_exam_nor_one_another():
    for path in (SOURCE / "methods").glob("*.py"):
        assert "audits" not in imports_of(path)
        if path.stem not in ("__init__", "base", "sequential", "trw_calibration"):
            siblings = {n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level == 1}
            assert siblings <= {"base"}, path


def test_public_names_exist_once_and_are_documented():  # the linter keeps them sorted
    assert len(set(expunge.__all__)) == len(expunge.__all__)
    for name in expunge.__all__:
        assert getattr(expunge, name).__doc__, name


def test_type_checkers_see_the_same_public_names():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = [alias.name for node in block.body for alias in node.names]
    assert sorted(seen) == sorted(expunge.__all__)


def test_importing_expunge_is_light():
    code = "import sys, expunge; heavy = {'torch', 'sklearn', 'matplotlib', 'typer', 'jinja2'} & set(sys.modules); assert not heavy, heavy; expunge.AMUN, expunge.audit; heavy = {'sklearn', 'matplotlib', 'torchvision', 'typer', 'jinja2'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_and_functions_stay_short():
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 330, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                assert not body or body[-1].end_lineno - body[0].lineno < 60, f"{path}: {node.name}"
