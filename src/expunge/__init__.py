"""Make trained image classifiers forget chosen training images, and show with honest statistics that they did.

    train, test = expunge.load_data("cifar10")
    split = expunge.forget_samples(train, [17, 42, 4711])
    unlearned = expunge.AMUN()(model, split)
    print(expunge.audit({"original": model, "unlearned": unlearned, "retrained": retrained}, split, test))

Everything public is named here; `docs/architecture.md` is the map.
"""

from . import attacks, audits, errors, methods, metrics
from .attacks import AdversarialSet, NearestAttack, NearestDDN, NearestFGSM, NearestL2PGD
from .audit import audit
from .audits import RMIA, LiRA, LossThreshold, MembershipAudit
from .audits.result import Audit
from .data.from_dataset import from_dataset, normalization_of
from .data.images import Augment, ImageData, Samples, relabel, without_augment
from .data.load import load_data
from .data.split import Split, forget_classes, forget_only, forget_random, forget_samples
from .data.stream import StreamedData
from .errors import ExpungeError, HealthFlag
from .methods import AMUN, FineTune, Method, Retrain, unlearn_sequentially
from .metrics import Estimate
from .metrics.signals import logit_margin
from .models import Architecture, architecture, load_model, save_model, with_normalize
from .progress import Progress, listen
from .training.fleet import TrainTask, train_fleet
from .training.inference import logits_of
from .training.loop import sgd
from .training.recipe import Recipe, train_model
from .training.schedules import Constant, Cosine, Step
from .training.shadow import ShadowModels, train_shadow_models

__all__ = [
    "AMUN",
    "RMIA",
    "AdversarialSet",
    "Architecture",
    "Audit",
    "Augment",
    "Constant",
    "Cosine",
    "Estimate",
    "ExpungeError",
    "FineTune",
    "HealthFlag",
    "ImageData",
    "LiRA",
    "LossThreshold",
    "MembershipAudit",
    "Method",
    "NearestAttack",
    "NearestDDN",
    "NearestFGSM",
    "NearestL2PGD",
    "Progress",
    "Recipe",
    "Retrain",
    "Samples",
    "ShadowModels",
    "Split",
    "Step",
    "StreamedData",
    "TrainTask",
    "architecture",
    "attacks",
    "audit",
    "audits",
    "errors",
    "forget_classes",
    "forget_only",
    "forget_random",
    "forget_samples",
    "from_dataset",
    "listen",
    "load_data",
    "load_model",
    "logit_margin",
    "logits_of",
    "methods",
    "metrics",
    "normalization_of",
    "relabel",
    "save_model",
    "sgd",
    "train_fleet",
    "train_model",
    "train_shadow_models",
    "unlearn_sequentially",
    "with_normalize",
    "without_augment",
]
