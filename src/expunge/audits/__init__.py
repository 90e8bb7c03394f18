"""Membership-inference audits, and audits of whole classes and methods. To add an attack: a file with a `MembershipAudit`, and its class in the tuple below."""

from .answers_file import Answers, read_answers, save_answers
from .audited import Audited
from .base import MembershipAudit
from .cka import LayerSimilarity, cka, cka_to_retrained
from .decisions import Decisions, MIANNResult, compare, mia_nn_floor, neighbour_of, two_sample_test
from .ensemble import Ensemble, cauchy_combination, empirical_p_values, min_p
from .exposure import Exposure, benjamini_hochberg, exposure
from .forgetting_score import ForgettingScore, Utility, forgetting_epsilon, forgetting_points, forgetting_score
from .idi import IDI, IDIResult
from .information import information_difference_index
from .klom import KLoM, gaussian_kl, histogram_kl, klom, wasserstein
from .label_only import LabelOnly, gap_accuracy, gap_attack, label_only_lira
from .lira import LiRA, lira, lira_leave_one_out
from .loss_threshold import LossThreshold
from .measures import MEASURES, Measured, measure
from .mia_nn import MIANN
from .over_unlearning import OverUnlearning, OverUnlearningResult
from .probes import Probes, ProbesResult, probe_index
from .prototypes import PrototypesResult, PrototypicalRelearning
from .quantile_mia import QuantileResult, quantile_mia
from .relearn import RelearnResult, RelearnTime, ain_of
from .risk import Risk, RiskModel, calibrate_risk, membership_risk
from .rmia import RMIA, choose_offline_a, rmia, rmia_leave_one_out, rmia_log_ratio, rmia_ratio, rmia_share
from .ruli import RULIGame, ruli_efficacy, ruli_privacy, ruli_scores, vulnerability, vulnerable
from .simple_mia import SimpleMIAResult, simple_mia
from .svc_mia import SVCMIA, SVCMIAResult, efficacy_difference, efficacy_floor
from .told_apart import ULiRAResult
from .u_lira import u_lira, u_lira_class, u_lira_floor
from .u_lira_pool import u_lira_pool
from .verdict import Contrast, Verdict, area_contrast, class_contrasts, judge, share_contrast
from .views import QueryView, predictions_over_views, query_views

AUDITS: dict[str, type[MembershipAudit]] = {audit.name: audit for audit in (LossThreshold, LiRA, RMIA, Ensemble)}

__all__ = [
    "AUDITS",
    "IDI",
    "MEASURES",
    "MIANN",
    "RMIA",
    "SVCMIA",
    "Answers",
    "Audited",
    "Contrast",
    "Decisions",
    "Ensemble",
    "Exposure",
    "ForgettingScore",
    "IDIResult",
    "KLoM",
    "LabelOnly",
    "LayerSimilarity",
    "LiRA",
    "LossThreshold",
    "MIANNResult",
    "Measured",
    "MembershipAudit",
    "OverUnlearning",
    "OverUnlearningResult",
    "Probes",
    "ProbesResult",
    "PrototypesResult",
    "PrototypicalRelearning",
    "QuantileResult",
    "QueryView",
    "RULIGame",
    "RelearnResult",
    "RelearnTime",
    "Risk",
    "RiskModel",
    "SVCMIAResult",
    "SimpleMIAResult",
    "ULiRAResult",
    "Utility",
    "Verdict",
    "ain_of",
    "area_contrast",
    "benjamini_hochberg",
    "calibrate_risk",
    "cauchy_combination",
    "choose_offline_a",
    "cka",
    "cka_to_retrained",
    "class_contrasts",
    "compare",
    "efficacy_difference",
    "efficacy_floor",
    "empirical_p_values",
    "exposure",
    "forgetting_epsilon",
    "forgetting_points",
    "forgetting_score",
    "gap_accuracy",
    "gap_attack",
    "gaussian_kl",
    "histogram_kl",
    "information_difference_index",
    "judge",
    "klom",
    "label_only_lira",
    "lira",
    "lira_leave_one_out",
    "measure",
    "membership_risk",
    "mia_nn_floor",
    "min_p",
    "neighbour_of",
    "predictions_over_views",
    "probe_index",
    "quantile_mia",
    "query_views",
    "read_answers",
    "rmia",
    "rmia_leave_one_out",
    "rmia_log_ratio",
    "rmia_ratio",
    "rmia_share",
    "ruli_efficacy",
    "ruli_privacy",
    "ruli_scores",
    "save_answers",
    "share_contrast",
    "simple_mia",
    "two_sample_test",
    "u_lira",
    "u_lira_class",
    "u_lira_floor",
    "u_lira_pool",
    "vulnerability",
    "vulnerable",
    "wasserstein",
]
