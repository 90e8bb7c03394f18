"""Benchmarks: a plan is a value, its cells are in a store, and its results are tables with intervals."""

from .file import read_plan
from .forget import Forget, ForgetClasses, ForgetRandom, ForgetSamples
from .plan import Plan
from .results import PointResults, Results, Row
from .status import Status

__all__ = ["Forget", "ForgetClasses", "ForgetRandom", "ForgetSamples", "Plan", "PointResults", "Results", "Row", "Status", "read_plan"]
