"""Unlearning methods. One file per paper; a new one is its file and one line in METHODS."""

from .amun import AMUN
from .base import Method
from .boundary_expanding import BoundaryExpanding
from .boundary_shrink import BoundaryShrink
from .delete import DELETE
from .fine_tune import FineTune
from .gradient_ascent import GradientAscent
from .random_label import RandomLabel
from .retrain import Retrain
from .sequential import unlearn_sequentially
from .trw import TRW, trw_target
from .trw_calibration import Calibration, calibrate_trw

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        AMUN,
        BoundaryExpanding,
        BoundaryShrink,
        DELETE,
        FineTune,
        GradientAscent,
        RandomLabel,
        Retrain,
        TRW,
    )
}

__all__ = [
    "AMUN",
    "DELETE",
    "METHODS",
    "TRW",
    "BoundaryExpanding",
    "BoundaryShrink",
    "Calibration",
    "FineTune",
    "GradientAscent",
    "Method",
    "RandomLabel",
    "Retrain",
    "calibrate_trw",
    "trw_target",
    "unlearn_sequentially",
]
