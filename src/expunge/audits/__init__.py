"""Membership-inference audits. To add one: a file with a `MembershipAudit`, and its class in the tuple below."""

from .base import MembershipAudit
from .lira import LiRA, lira, lira_leave_one_out
from .loss_threshold import LossThreshold
from .rmia import RMIA, choose_offline_a, rmia, rmia_leave_one_out, rmia_log_ratio, rmia_ratio, rmia_share

AUDITS: dict[str, type[MembershipAudit]] = {audit.name: audit for audit in (LossThreshold, LiRA, RMIA)}

__all__ = [
    "AUDITS",
    "RMIA",
    "LiRA",
    "LossThreshold",
    "MembershipAudit",
    "choose_offline_a",
    "lira",
    "lira_leave_one_out",
    "rmia",
    "rmia_leave_one_out",
    "rmia_log_ratio",
    "rmia_ratio",
    "rmia_share",
]
