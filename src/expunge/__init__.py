"""Make trained image classifiers forget chosen training images, and show with honest statistics that they did.

    train, test = expunge.load_data("cifar10")
    split = expunge.forget_samples(train, [17, 42, 4711])
    unlearned = expunge.AMUN()(model, split)
    print(expunge.audit({"original": model, "unlearned": unlearned, "retrained": retrained}, split, test))

Everything public is named here; docs/architecture.md is the map. A name is imported when it is first used, so that `expunge --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Where each public name is defined.
_HOMES = {
    ".attacks": (
        *("AdversarialSet", "Attacked", "AutoAttack", "BoundedAttack", "NearestAttack", "NearestDDN", "NearestFGSM", "NearestL2PGD"),
        *("PGD", "Transfer", "accuracy_within", "robust_accuracy", "transfer"),
    ),
    ".auditing": ("answers_of", "audit", "audit_answers"),
    ".audits": ("MIANN", "RMIA", "LiRA", "LossThreshold", "MembershipAudit", "read_answers", "save_answers"),
    ".audits.factors": ("Factors",),
    ".audits.result": ("Audit",),
    ".data.from_dataset": ("from_dataset", "normalization_of"),
    ".bench": ("ForgetClasses", "ForgetRandom", "ForgetSamples", "Plan"),
    ".costs": ("Cost", "measure_cost"),
    ".data.images": ("Augment", "ImageData", "Samples", "relabel"),
    ".data.load": ("load_data",),
    ".data.split": ("Split", "forget_classes", "forget_only", "forget_random", "forget_samples"),
    ".data.stream": ("StreamedData",),
    ".diagnosis": ("factors",),
    ".errors": ("ExpungeError", "HealthFlag"),
    ".leakage": ("class_leakage", "sample_leakage"),
    ".methods": (
        *("AMUN", "BadTeacher", "BoundaryExpanding", "BoundaryShrink", "CFk", "DELETE", "ESC", "EUk", "FineTune", "FisherForgetting"),
        *("GradientAscent", "InfluenceUnlearning", "JiT", "L1Sparse", "L2UL", "Method", "MUMis", "NegGradPlus", "RandomLabel"),
        *("Retrain", "SalUn", "SCAR", "SCRUB", "SSD", "SVDUnlearn", "TRW", "UNSIR", "calibrate_trw", "unlearn_sequentially"),
    ),
    ".metrics": ("Estimate",),
    ".metrics.signals": ("logit_margin",),
    ".models": ("Architecture", "architecture", "load_model", "save_model", "with_normalize"),
    ".progress": ("Progress", "listen"),
    ".protocol": ("PROTOCOLS", "Protocol", "standard_audit"),
    ".ranks": ("RankLost", "distributed"),
    ".spectral.alternatives": ("GradientClip", "Rescale", "SpectralNorm"),
    ".spectral.clip": ("Clip", "clip_model"),
    ".spectral.control": ("SpectralControl",),
    ".spectral.fourier": ("FFTClip", "GramRescale", "gram_bound"),
    ".spectral.spectrum": ("Spectrum", "spectrum"),
    ".spectral.values": ("SingularValues", "singular_values"),
    ".tuning": ("Tuning", "development_split", "tune"),
    ".training.class_shadows": ("ClassShadows", "train_class_shadows"),
    ".training.executors": ("Ray", "Slurm"),
    ".training.fleet": ("TrainTask", "train_fleet"),
    ".training.importances": ("Importances", "importances"),
    ".training.inference": ("logits_of",),
    ".training.loop": ("sgd",),
    ".training.masks": ("load_mask", "save_mask"),
    ".training.recipe": ("Recipe", "train_model"),
    ".training.recipes": ("RECIPES", "recipe"),
    ".training.saliency": ("saliency_mask",),
    ".training.schedules": ("Constant", "Cosine", "MultiStep", "Step", "Triangular"),
    ".training.shadow": ("ShadowModels", "train_shadow_models"),
    ".training.sisa": ("SISA", "train_sisa"),
}
_SUBPACKAGES = ("attacks", "audits", "errors", "methods", "metrics")
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, *_SUBPACKAGES])  # noqa: PLE0605

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from . import attacks, audits, errors, methods, metrics
    from .attacks import (
        PGD,
        AdversarialSet,
        Attacked,
        AutoAttack,
        BoundedAttack,
        NearestAttack,
        NearestDDN,
        NearestFGSM,
        NearestL2PGD,
        Transfer,
        accuracy_within,
        robust_accuracy,
        transfer,
    )
    from .auditing import answers_of, audit, audit_answers
    from .audits import MIANN, RMIA, LiRA, LossThreshold, MembershipAudit, read_answers, save_answers
    from .audits.factors import Factors
    from .audits.result import Audit
    from .bench import ForgetClasses, ForgetRandom, ForgetSamples, Plan
    from .costs import Cost, measure_cost
    from .data.from_dataset import from_dataset, normalization_of
    from .data.images import Augment, ImageData, Samples, relabel
    from .data.load import load_data
    from .data.split import Split, forget_classes, forget_only, forget_random, forget_samples
    from .data.stream import StreamedData
    from .diagnosis import factors
    from .errors import ExpungeError, HealthFlag
    from .leakage import class_leakage, sample_leakage
    from .methods import (
        AMUN,
        DELETE,
        ESC,
        L2UL,
        SCAR,
        SCRUB,
        SSD,
        TRW,
        UNSIR,
        BadTeacher,
        BoundaryExpanding,
        BoundaryShrink,
        CFk,
        EUk,
        FineTune,
        FisherForgetting,
        GradientAscent,
        InfluenceUnlearning,
        JiT,
        L1Sparse,
        Method,
        MUMis,
        NegGradPlus,
        RandomLabel,
        Retrain,
        SalUn,
        SVDUnlearn,
        calibrate_trw,
        unlearn_sequentially,
    )
    from .metrics import Estimate
    from .metrics.signals import logit_margin
    from .models import Architecture, architecture, load_model, save_model, with_normalize
    from .progress import Progress, listen
    from .protocol import PROTOCOLS, Protocol, standard_audit
    from .ranks import RankLost, distributed
    from .spectral.alternatives import GradientClip, Rescale, SpectralNorm
    from .spectral.clip import Clip, clip_model
    from .spectral.control import SpectralControl
    from .spectral.fourier import FFTClip, GramRescale, gram_bound
    from .spectral.spectrum import Spectrum, spectrum
    from .spectral.values import SingularValues, singular_values
    from .training.class_shadows import ClassShadows, train_class_shadows
    from .training.executors import Ray, Slurm
    from .training.fleet import TrainTask, train_fleet
    from .training.importances import Importances, importances
    from .training.inference import logits_of
    from .training.loop import sgd
    from .training.masks import load_mask, save_mask
    from .training.recipe import Recipe, train_model
    from .training.recipes import RECIPES, recipe
    from .training.saliency import saliency_mask
    from .training.schedules import Constant, Cosine, MultiStep, Step, Triangular
    from .training.shadow import ShadowModels, train_shadow_models
    from .training.sisa import SISA, train_sisa
    from .tuning import Tuning, development_split, tune


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name], __name__), name)
    elif name in _SUBPACKAGES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
