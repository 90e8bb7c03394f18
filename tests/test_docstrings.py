"""Every public name shows how it is used; test_examples.py runs what they show."""

import doctest
from collections.abc import Mapping

import pytest

import expunge


@pytest.mark.parametrize("name", [name for names in expunge._HOMES.values() for name in names])
def test_every_public_name_has_an_example(name):
    named = getattr(expunge, name)
    assert isinstance(named, Mapping) or doctest.DocTestParser().get_examples(named.__doc__), f"{name}: show it in two or three lines"
