"""Numbers with intervals: accuracy, ROC and AUC, gaps to the retrained model; answers on a forgotten class; and the signals of one labelled image."""

from .accuracy import accuracy, accuracy_difference, accuracy_of, correct
from .answers import (
    TwoSample,
    mean_answer,
    mean_total_variation,
    predicted_shares,
    profile_test,
    total_variation,
    total_variation_floor,
)
from .estimate import Estimate, proportion_interval, unsupported
from .gap import GapInputs, Gaps, average_absolute, average_gap, gaps
from .roc import Roc, RocBand, auc, auc_difference, roc, roc_band, tpr_at_fpr
from .signals import entropy, hinge, jsd, logit_margin, loss, modified_entropy, taylor_softmax, true_log_prob

__all__ = [
    "Estimate",
    "GapInputs",
    "Gaps",
    "Roc",
    "RocBand",
    "TwoSample",
    "accuracy",
    "accuracy_difference",
    "accuracy_of",
    "auc",
    "auc_difference",
    "average_absolute",
    "average_gap",
    "correct",
    "entropy",
    "gaps",
    "hinge",
    "jsd",
    "logit_margin",
    "loss",
    "mean_answer",
    "mean_total_variation",
    "modified_entropy",
    "predicted_shares",
    "profile_test",
    "proportion_interval",
    "roc",
    "roc_band",
    "taylor_softmax",
    "total_variation",
    "total_variation_floor",
    "tpr_at_fpr",
    "true_log_prob",
    "unsupported",
]
