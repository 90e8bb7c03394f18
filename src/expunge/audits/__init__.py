"""Membership-inference audits, and audits of whole classes and methods. To add an attack: a file with a `MembershipAudit`, and its class in the tuple below."""

from .answers_file import Answers, read_answers, save_answers
from .audited import Audited
from .base import MembershipAudit
from .decisions import Decisions, MIANNResult, compare, mia_nn_floor, neighbour_of, two_sample_test
from .lira import LiRA, lira, lira_leave_one_out
from .loss_threshold import LossThreshold
from .mia_nn import MIANN
from .risk import Exposure, Risk, benjamini_hochberg, exposure, membership_risk
from .rmia import RMIA, choose_offline_a, rmia, rmia_leave_one_out, rmia_log_ratio, rmia_ratio, rmia_share
from .told_apart import ULiRAResult
from .u_lira import u_lira, u_lira_class, u_lira_floor
from .u_lira_pool import u_lira_pool
from .verdict import Contrast, Verdict, area_contrast, class_contrasts, judge, share_contrast

AUDITS: dict[str, type[MembershipAudit]] = {audit.name: audit for audit in (LossThreshold, LiRA, RMIA)}

__all__ = [
    "AUDITS",
    "MIANN",
    "RMIA",
    "Answers",
    "Audited",
    "Contrast",
    "Decisions",
    "Exposure",
    "LiRA",
    "LossThreshold",
    "MIANNResult",
    "MembershipAudit",
    "Risk",
    "ULiRAResult",
    "Verdict",
    "area_contrast",
    "benjamini_hochberg",
    "choose_offline_a",
    "class_contrasts",
    "compare",
    "exposure",
    "judge",
    "lira",
    "lira_leave_one_out",
    "membership_risk",
    "mia_nn_floor",
    "neighbour_of",
    "read_answers",
    "rmia",
    "rmia_leave_one_out",
    "rmia_log_ratio",
    "rmia_ratio",
    "rmia_share",
    "save_answers",
    "share_contrast",
    "two_sample_test",
    "u_lira",
    "u_lira_class",
    "u_lira_floor",
    "u_lira_pool",
]
