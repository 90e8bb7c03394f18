"""Specs: one JSON for one meaning, whatever the order, the process or the version of Python."""

import functools
import json
import math
import operator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import StoreError
from expunge.store import canonical, key, plain, rebuild


@dataclass(frozen=True)
class Leaf:
    rate: float
    name: str = "leaf"
    unsaved: int = field(default=3, init=False)


@dataclass(frozen=True, kw_only=True)
class Branch:
    revision: ClassVar[int] = 2
    left: Any = None
    right: Any = None


def function() -> None:
    """Stands for a user's `build`."""


CLASSES = {"Leaf": Leaf, "Branch": Branch, f"{__name__}:function": function, "_operator:add": operator.add}
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
scalars = st.none() | st.booleans() | numbers | st.text()
names = st.text().filter(lambda name: name not in ("class", "callable", "sha256"))
specs = st.recursive(
    scalars | st.builds(Leaf, numbers, st.text()) | st.just(function),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3) | st.builds(Branch, left=inner, right=inner)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(specs)
def test_any_spec_comes_back_from_its_json(spec):
    text = canonical(spec)
    again = rebuild(json.loads(text), CLASSES)
    assert again == spec
    assert canonical(again) == text


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, specs, min_size=2, max_size=5), st.randoms())
def test_key_does_not_depend_on_the_order_of_a_dict(spec, random):
    shuffled = list(spec.items())
    random.shuffle(shuffled)
    assert key(dict(shuffled)) == key(spec)


@settings(max_examples=60, deadline=None)
@given(specs, specs)
def test_specs_with_other_json_have_other_keys(first, second):
    assert (key(first) == key(second)) == (canonical(first) == canonical(second))


def test_key_is_the_same_in_every_version():
    # Pinned: a change here would orphan every store that users have. Origin: printf '{"lr":0.1}' | sha256sum | cut -c1-24.
    assert canonical({"b": Leaf(0.1), "a": (1, 2.0, None, True, "é")}) == (
        '{"a":[1,2.0,null,true,"\\u00e9"],"b":{"class":"Leaf","name":"leaf","rate":0.1}}'
    )
    assert key({"lr": 0.1}) == "9c9ba942d8bb6213cd855c3e"


def test_dataclasses_of_equal_fields_but_other_class_have_other_keys():
    @dataclass(frozen=True)
    class Twin:
        rate: float
        name: str = "leaf"

    assert key(Leaf(0.5)) != key(Twin(0.5))


def test_a_raised_revision_changes_the_key_and_refuses_the_old_json(monkeypatch):
    old_key, old = key(Branch()), plain(Branch())
    monkeypatch.setattr(Branch, "revision", 3)
    assert key(Branch()) != old_key
    with pytest.raises(StoreError, match="stored at revision 2; this version has revision 3"):
        rebuild(old, CLASSES)


def test_partial_functions_come_back_with_their_arguments():
    again = rebuild(plain(functools.partial(operator.add, 2)), CLASSES)
    assert again(3) == 5


def test_tensors_are_told_apart_by_values_shape_and_type():
    tensor = torch.arange(6)
    variants = [tensor, tensor.view(2, 3), tensor.int(), tensor + 1]
    assert len({key({"x": x}) for x in variants}) == len(variants)
    assert key({"x": tensor[::2]}) == key({"x": torch.tensor([0, 2, 4])}) == key({"x": np.array([0, 2, 4])})


def test_numpy_scalars_count_as_numbers():
    assert canonical([np.int64(3), np.float64(0.5), np.bool_(True)]) == "[3,0.5,true]"


def local_function():
    def inner() -> None: ...

    return inner


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"lr": math.nan}, r"spec\.lr must be a finite number; got nan"),
        ([1, math.inf], r"spec\[1\] must be a finite number"),
        ({"build": lambda: None}, "another process can import"),
        ({"build": local_function()}, "another process can import"),
        ({"build": [].append}, "another process can import"),
        ({3: "x"}, "must be strings"),
        ({"class": "x"}, "must be strings other than class"),
        ({"x": object()}, r"spec\.x must be made of dataclasses.*got object"),
        ({"x": {1, 2}}, "got set"),
    ],
)
def test_what_has_no_lasting_meaning_is_refused(spec, message):
    with pytest.raises(StoreError, match=message):
        canonical(spec)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"class": "os.system", "command": "true"}, "names 'os.system', which is not among"),
        ({"callable": "os:system"}, "names 'os:system', which is not among"),
        ({"class": "Leaf", "speed": 1}, "stored fields of Leaf do not fit"),
        (plain(torch.zeros(1)), "only the digest"),
    ],
)
def test_rebuild_runs_nothing_that_the_caller_did_not_name(stored, message):
    with pytest.raises(StoreError, match=message):
        rebuild(stored, CLASSES)
