"""The method and the attack on docs/adding_a_method.md and docs/adding_an_audit.md are complete files, and pass the exam of registered ones."""

import ast
import doctest
import pathlib
import sys
import types

import pytest

from audits import test_audit_base
from conformance import test_methods
from expunge.audits import LiRA
from expunge.methods import METHODS, FineTune
from toys import configured

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def class_on(page: str, package: str) -> type:
    """The last class of the file that the page shows, run as a module of the package."""
    source = (DOCS / page).read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    module = types.ModuleType(f"{package}.on_page")
    module.__package__, module.source = package, source
    sys.modules[module.__name__] = module  # where dataclasses and type hints look for it
    exec(compile(source, page, "exec"), vars(module))
    return vars(module)[ast.parse(source).body[-1].name]


METHOD = class_on("adding_a_method.md", "expunge.methods")
ATTACK = class_on("adding_an_audit.md", "expunge.audits")


def examined(exam: types.ModuleType, argument: str, like: type, value: object):
    """The tests of the exam that `like` takes, as tests of this value."""
    for name, test in list(vars(exam).items()):
        marks = {mark.args[0]: mark for mark in getattr(test, "pytestmark", [])} if name.startswith("test_") else {}
        if argument in marks and any(like in (taken, type(taken)) for taken in values_of(marks.pop(argument))):
            again = types.FunctionType(test.__code__, vars(exam), name, test.__defaults__, test.__closure__)
            again.pytestmark = [*marks.values(), pytest.mark.parametrize(argument, [value], ids=["the one on the page"]).mark]
            yield f"{name}_{argument}", again


def values_of(mark: pytest.Mark) -> list:
    return [getattr(value, "values", [value])[0] for value in mark.args[1]]


EXAM = {
    **dict(examined(test_methods, "method", FineTune, configured(METHOD))),
    **dict(examined(test_methods, "cls", FineTune, METHOD)),
    **dict(examined(test_audit_base, "audit", LiRA, ATTACK())),
}
globals().update(EXAM)
learnt, inputs = test_methods.learnt, test_audit_base.inputs


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(METHODS, METHOD.name, METHOD)


def test_the_whole_exam_is_taken():
    assert {"test_corner_cases_method", "test_a_hyperparameter_outside_its_range_is_refused_by_name_range_and_value_cls"} < set(EXAM)
    assert sum(name.endswith("_audit") for name in EXAM) >= 8 and sum(name.endswith("_method") for name in EXAM) >= 12
    test_methods.test_every_class_is_abstract_or_final_and_described()


@pytest.mark.parametrize("cls", [METHOD, ATTACK], ids=["method", "attack"])
def test_the_page_needs_twenty_lines_beside_documentation_and_its_example_prints_what_it_says(cls):
    module = sys.modules[cls.__module__]
    node = ast.parse(module.source).body[-1]
    node.body = node.body[1:]  # without the docstring
    written = module.source.splitlines()[node.body[0].lineno - 1 :]
    assert len(node.decorator_list) + 1 + sum(bool(line.strip()) for line in written) <= 20
    (example,) = doctest.DocTestFinder(recurse=False).find(cls, cls.__name__, module, globs=vars(module))
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0
