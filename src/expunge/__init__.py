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
        *("AMUN", "BadTeacher", "BoundaryExpanding", "BoundaryShrink", "CFk", "DELETE", "ESC", "EUk", "FineTune"),
        *("FisherForgetting", "FreshTeacher", "GradientAscent", "InfluenceUnlearning", "JiT", "L1Sparse", "L2UL"),
        *("Method", "MUMis", "NegGradPlus", "RandomLabel"),
        *("Retrain", "SalUn", "SCAR", "SCRUB", "SSD", "SVDUnlearn", "TRW", "UNSIR", "calibrate_trw", "unlearn_sequentially"),
    ),
    ".metrics": ("Estimate",),
    ".metrics.signals": ("logit_margin",),
    ".models": ("Architecture", "LogitsOnly", "architecture", "load_model", "save_model", "with_normalize"),
    ".models.lineage": ("unlearning_record",),
    ".progress": ("Progress", "listen"),
    ".protocol": ("PROTOCOLS", "Protocol", "standard_audit"),
    ".ranks": ("RankLost", "distributed"),
    ".report.model_card": ("model_card",),
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

if TYPE_CHECKING:  # the same names, for type checkers and editors; "as" makes them public for these
    from . import attacks as attacks, audits as audits, errors as errors, methods as methods, metrics as metrics
    from .attacks import (
        PGD as PGD,
        AdversarialSet as AdversarialSet,
        Attacked as Attacked,
        AutoAttack as AutoAttack,
        BoundedAttack as BoundedAttack,
        NearestAttack as NearestAttack,
        NearestDDN as NearestDDN,
        NearestFGSM as NearestFGSM,
        NearestL2PGD as NearestL2PGD,
        Transfer as Transfer,
        accuracy_within as accuracy_within,
        robust_accuracy as robust_accuracy,
        transfer as transfer,
    )
    from .auditing import answers_of as answers_of, audit as audit, audit_answers as audit_answers
    from .audits import (
        MIANN as MIANN,
        RMIA as RMIA,
        LiRA as LiRA,
        LossThreshold as LossThreshold,
        MembershipAudit as MembershipAudit,
        read_answers as read_answers,
        save_answers as save_answers,
    )
    from .audits.factors import Factors as Factors
    from .audits.result import Audit as Audit
    from .bench import ForgetClasses as ForgetClasses, ForgetRandom as ForgetRandom, ForgetSamples as ForgetSamples, Plan as Plan
    from .costs import Cost as Cost, measure_cost as measure_cost
    from .data.from_dataset import from_dataset as from_dataset, normalization_of as normalization_of
    from .data.images import Augment as Augment, ImageData as ImageData, Samples as Samples, relabel as relabel
    from .data.load import load_data as load_data
    from .data.split import (
        Split as Split,
        forget_classes as forget_classes,
        forget_only as forget_only,
        forget_random as forget_random,
        forget_samples as forget_samples,
    )
    from .data.stream import StreamedData as StreamedData
    from .diagnosis import factors as factors
    from .errors import ExpungeError as ExpungeError, HealthFlag as HealthFlag
    from .leakage import class_leakage as class_leakage, sample_leakage as sample_leakage
    from .methods import (
        AMUN as AMUN,
        DELETE as DELETE,
        ESC as ESC,
        L2UL as L2UL,
        SCAR as SCAR,
        SCRUB as SCRUB,
        SSD as SSD,
        TRW as TRW,
        UNSIR as UNSIR,
        BadTeacher as BadTeacher,
        BoundaryExpanding as BoundaryExpanding,
        BoundaryShrink as BoundaryShrink,
        CFk as CFk,
        EUk as EUk,
        FineTune as FineTune,
        FisherForgetting as FisherForgetting,
        FreshTeacher as FreshTeacher,
        GradientAscent as GradientAscent,
        InfluenceUnlearning as InfluenceUnlearning,
        JiT as JiT,
        L1Sparse as L1Sparse,
        Method as Method,
        MUMis as MUMis,
        NegGradPlus as NegGradPlus,
        RandomLabel as RandomLabel,
        Retrain as Retrain,
        SalUn as SalUn,
        SVDUnlearn as SVDUnlearn,
        calibrate_trw as calibrate_trw,
        unlearn_sequentially as unlearn_sequentially,
    )
    from .metrics import Estimate as Estimate
    from .metrics.signals import logit_margin as logit_margin
    from .models import (
        Architecture as Architecture,
        LogitsOnly as LogitsOnly,
        architecture as architecture,
        load_model as load_model,
        save_model as save_model,
        with_normalize as with_normalize,
    )
    from .models.lineage import unlearning_record as unlearning_record
    from .progress import Progress as Progress, listen as listen
    from .protocol import PROTOCOLS as PROTOCOLS, Protocol as Protocol, standard_audit as standard_audit
    from .ranks import RankLost as RankLost, distributed as distributed
    from .report.model_card import model_card as model_card
    from .spectral.alternatives import GradientClip as GradientClip, Rescale as Rescale, SpectralNorm as SpectralNorm
    from .spectral.clip import Clip as Clip, clip_model as clip_model
    from .spectral.control import SpectralControl as SpectralControl
    from .spectral.fourier import FFTClip as FFTClip, GramRescale as GramRescale, gram_bound as gram_bound
    from .spectral.spectrum import Spectrum as Spectrum, spectrum as spectrum
    from .spectral.values import SingularValues as SingularValues, singular_values as singular_values
    from .training.class_shadows import ClassShadows as ClassShadows, train_class_shadows as train_class_shadows
    from .training.executors import Ray as Ray, Slurm as Slurm
    from .training.fleet import TrainTask as TrainTask, train_fleet as train_fleet
    from .training.importances import Importances as Importances, importances as importances
    from .training.inference import logits_of as logits_of
    from .training.loop import sgd as sgd
    from .training.masks import load_mask as load_mask, save_mask as save_mask
    from .training.recipe import Recipe as Recipe, train_model as train_model
    from .training.recipes import RECIPES as RECIPES, recipe as recipe
    from .training.saliency import saliency_mask as saliency_mask
    from .training.schedules import Constant as Constant, Cosine as Cosine, MultiStep as MultiStep, Step as Step, Triangular as Triangular
    from .training.shadow import ShadowModels as ShadowModels, train_shadow_models as train_shadow_models
    from .training.sisa import SISA as SISA, train_sisa as train_sisa
    from .tuning import Tuning as Tuning, development_split as development_split, tune as tune


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
