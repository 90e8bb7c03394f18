"""Membership-inference audits, and audits of whole classes and methods. To add an attack: a file with a `MembershipAudit`, and its class in the tuple below."""

from .base import MembershipAudit
from .decisions import Decisions, MIANNResult, compare, mia_nn_floor, neighbour_of, two_sample_test
from .lira import LiRA, lira, lira_leave_one_out
from .loss_threshold import LossThreshold
from .mia_nn import MIANN
from .rmia import RMIA, choose_offline_a, rmia, rmia_leave_one_out, rmia_log_ratio, rmia_ratio, rmia_share
from .told_apart import ULiRAResult
from .u_lira import u_lira, u_lira_class, u_lira_floor
from .u_lira_pool import u_lira_pool

AUDITS: dict[str, type[MembershipAudit]] = {audit.name: audit for audit in (LossThreshold, LiRA, RMIA)}

__all__ = [
    "AUDITS",
    "MIANN",
    "RMIA",
    "Decisions",
    "LiRA",
    "LossThreshold",
    "MIANNResult",
    "MembershipAudit",
    "ULiRAResult",
    "choose_offline_a",
    "compare",
    "lira",
    "lira_leave_one_out",
    "mia_nn_floor",
    "neighbour_of",
    "rmia",
    "rmia_leave_one_out",
    "rmia_log_ratio",
    "rmia_ratio",
    "rmia_share",
    "two_sample_test",
    "u_lira",
    "u_lira_class",
    "u_lira_floor",
    "u_lira_pool",
]
