"""Numbers with intervals: accuracy, ROC and AUC, gaps to the retrained model; answers on a forgotten class; and the signals of one labelled image."""

from .accuracy import accuracy, accuracy_difference, accuracy_of, correct
from .agreement import Agreement, agreement
from .answers import (
    TwoSample,
    mean_answer,
    mean_total_variation,
    predicted_shares,
    profile_test,
    total_variation,
    total_variation_floor,
)
from .balanced import balanced_accuracy
from .epsilon import EpsilonBounds, epsilon_bounds, epsilon_ceiling, epsilon_from_errors
from .estimate import Estimate, mean_estimate, proportion_interval, unsupported
from .gap import GapInputs, Gaps, average_absolute, average_gap, gaps
from .median import median
from .precision import AuditPlan, Need, auc_reach, plan_audit
from .ranking import Pair, Ranking, holm, rank_methods, ties_with_best
from .roc import Roc, RocBand, auc, auc_difference, roc, roc_band, tpr_at_fpr
from .signals import entropy, hinge, jsd, logit_margin, loss, modified_entropy, taylor_softmax, true_log_prob
from .tug_of_war import tug_of_war, tug_of_war_floor
from .two_level import TwoLevel, two_level, two_level_difference
from .zrf import rf_jsd, zrf

__all__ = [
    "Agreement",
    "AuditPlan",
    "EpsilonBounds",
    "Estimate",
    "GapInputs",
    "Gaps",
    "Need",
    "Pair",
    "Ranking",
    "Roc",
    "RocBand",
    "TwoLevel",
    "TwoSample",
    "accuracy",
    "accuracy_difference",
    "accuracy_of",
    "agreement",
    "auc",
    "auc_difference",
    "auc_reach",
    "average_absolute",
    "average_gap",
    "balanced_accuracy",
    "correct",
    "entropy",
    "epsilon_bounds",
    "epsilon_ceiling",
    "epsilon_from_errors",
    "gaps",
    "hinge",
    "holm",
    "jsd",
    "logit_margin",
    "loss",
    "mean_answer",
    "mean_estimate",
    "mean_total_variation",
    "median",
    "modified_entropy",
    "plan_audit",
    "predicted_shares",
    "profile_test",
    "proportion_interval",
    "rank_methods",
    "rf_jsd",
    "roc",
    "roc_band",
    "taylor_softmax",
    "ties_with_best",
    "total_variation",
    "total_variation_floor",
    "tpr_at_fpr",
    "true_log_prob",
    "tug_of_war",
    "tug_of_war_floor",
    "two_level",
    "two_level_difference",
    "unsupported",
    "zrf",
]
