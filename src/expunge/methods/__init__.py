"""Unlearning methods. One file per paper; a new one is its file and one line in METHODS."""

from .amun import AMUN
from .base import Method
from .fine_tune import FineTune
from .retrain import Retrain
from .sequential import unlearn_sequentially

METHODS: dict[str, type[Method]] = {method.name: method for method in (AMUN, FineTune, Retrain)}

__all__ = ["AMUN", "METHODS", "FineTune", "Method", "Retrain", "unlearn_sequentially"]
