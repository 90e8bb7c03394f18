"""Unlearning methods. One file per paper; a new one is its file and one line in METHODS."""

from .amun import AMUN
from .bad_teacher import BadTeacher
from .base import Method
from .boundary_expanding import BoundaryExpanding
from .boundary_shrink import BoundaryShrink
from .cf_k import CFk
from .delete import DELETE
from .esc import ESC
from .eu_k import EUk
from .fine_tune import FineTune
from .fisher_forgetting import FisherForgetting
from .fresh_teacher import FreshTeacher
from .gradient_ascent import GradientAscent
from .influence_unlearning import InfluenceUnlearning
from .jit import JiT
from .l1_sparse import L1Sparse
from .l2ul import L2UL
from .mu_mis import MUMis
from .neg_grad_plus import NegGradPlus
from .random_label import RandomLabel
from .retrain import Retrain
from .salun import SalUn
from .scar import SCAR
from .scrub import SCRUB
from .sequential import unlearn_sequentially
from .ssd import SSD
from .svd_unlearn import SVDUnlearn
from .trw import TRW, trw_target
from .trw_calibration import Calibration, calibrate_trw
from .unsir import UNSIR

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        AMUN,
        BadTeacher,
        BoundaryExpanding,
        BoundaryShrink,
        CFk,
        DELETE,
        ESC,
        EUk,
        FineTune,
        FisherForgetting,
        FreshTeacher,
        GradientAscent,
        InfluenceUnlearning,
        JiT,
        L1Sparse,
        L2UL,
        MUMis,
        NegGradPlus,
        RandomLabel,
        Retrain,
        SCAR,
        SCRUB,
        SalUn,
        SSD,
        SVDUnlearn,
        TRW,
        UNSIR,
    )
}

__all__ = [
    "AMUN",
    "DELETE",
    "ESC",
    "L2UL",
    "METHODS",
    "SCAR",
    "SCRUB",
    "SSD",
    "TRW",
    "UNSIR",
    "BadTeacher",
    "BoundaryExpanding",
    "BoundaryShrink",
    "CFk",
    "Calibration",
    "EUk",
    "FineTune",
    "FisherForgetting",
    "FreshTeacher",
    "GradientAscent",
    "InfluenceUnlearning",
    "JiT",
    "L1Sparse",
    "MUMis",
    "Method",
    "NegGradPlus",
    "RandomLabel",
    "Retrain",
    "SVDUnlearn",
    "SalUn",
    "calibrate_trw",
    "trw_target",
    "unlearn_sequentially",
]
