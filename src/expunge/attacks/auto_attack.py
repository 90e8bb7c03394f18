"""AutoAttack, the standard ensemble of attacks, run by its authors' code: an optional extra, `pip install 'expunge[autoattack]'`."""

import sys
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from ..checks import setting
from ..data.images import Samples
from ..device import device_of
from ..errors import DataError, MissingError, ModelError
from ..progress import report
from ..types import Images, Logits
from .active_set import finite
from .bounded import NORMS, BoundedAttack, Tried

STAGE = "AutoAttack"
LIBRARY_NORMS = {"l2": "L2", "linf": "Linf"}
FEWEST_CLASSES = 4


@final
@dataclass(frozen=True, kw_only=True)
class AutoAttack(BoundedAttack):
    """Four attacks that need no tuning, one after another, each on the samples that withstood those before it.

        standard:  APGD on the cross-entropy · targeted APGD on the DLR loss, 9 targets · targeted FAB, 9 targets · Square, 5000 queries
        plus:      standard, and untargeted APGD-DLR and FAB, with 5 starts each

    Use when: a number must stand beside those of RobustBench, or PGD may be blind. Cost: 8000 forward and 2000 backward passes for a
    sample that withstands all, hours on a CPU for a test set: take a subset. Samples that are wrong already cost one forward pass.

    Args:
        norm: "linf", eps is the largest change of a pixel; or "l2", over the whole image.
        eps: radius for images in [0, 1], > 0. RobustBench, CIFAR-10: 8/255 for L∞, 0.5 for L2.
        version: "standard", which is what papers report; or "plus".
        seed: of the library's random starts and queries, in [0, 2**32).
        batch_size: images that go through the model together, ≥ 1. The library draws its random numbers batch by batch, so that the
            images that it finds depend on batch_size and on the order of the data; robust accuracy does so only on the margin.

    Raises:
        ConfigError: a setting is outside its range.
        MissingError: the library is not installed (when called).
        ModelError: the model has fewer than 4 classes, for which the DLR loss is not defined (when called).
        DataError: images of a size that the library's Square attack cannot take in L2, as 4 × 4 and 12 × 12 (when called).

    Flags: InputsOutsideUnitRange. The library's own warnings, as of zero gradients, go to the logger "auto-attack".

    Paper: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks", ICML 2020,
    arXiv:2003.01690.
    Library: pyautoattack (MIT), the authors' code as RobustBench, their benchmark, requires it from PyPI. torchattacks pins requests 2.25
    and reports other accuracies (its issues 164, 179, 188); ART puts DeepFool in place of FAB; adv-lib has no Square attack.
    Departures: whether a sample is fooled is decided by us, in float32, on the returned image after moving it into the ball and [0, 1];
    with fewer than 10 classes every other class is a target. No "rand" version: flag NondeterministicModel says that a model answers at random.
    Example:
        >>> AutoAttack(eps=0.5, norm="l2")
        AutoAttack(norm='l2', eps=0.5, version='standard', seed=0, batch_size=256)
    """

    name: ClassVar[str] = "auto_attack"
    paper: ClassVar[str] = "Croce and Hein 2020, arXiv:2003.01690"

    norm: str = setting("linf", choices=NORMS)
    eps: float = setting(8 / 255, gt=0)
    version: str = setting("standard", choices=("standard", "plus"))
    seed: int = setting(0, ge=0, lt=2**32)
    batch_size: int = setting(256, ge=1)

    def search(self, model: nn.Module, data: Samples, positions: Tensor, layout: torch.memory_format) -> Tried:
        library = _library()
        if self.norm == "l2" and not _square_fits(*data.shape[1:]):
            raise DataError(
                f"AutoAttack's Square attack in L2 lays five windows over the image's height, and the library fails where they do not fit, as on "
                f"images of {data.shape[1]} × {data.shape[2]} pixels. Use PGD(norm='l2', restarts=9), or norm='linf'."
            )
        images, labels = data.fetch(positions), data.labels[positions]
        watched, device, n = _Watched(model, layout), device_of(model), len(positions)
        with torch.no_grad():
            n_classes = watched(images[:1].to(device)).shape[1]
        if n_classes < FEWEST_CLASSES:
            raise ModelError(
                f"AutoAttack needs a model with at least {FEWEST_CLASSES} classes, whose logits its DLR loss compares; got {n_classes}. "
                "Use PGD(restarts=…)."
            )
        ensemble = library(watched, norm=LIBRARY_NORMS[self.norm], eps=self.eps, seed=self.seed, version=self.version, device=device)
        ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = min(9, n_classes - 1)
        report(STAGE, 0, n)
        found, answers = _untraced(ensemble.run_standard_evaluation, images, labels, batch_size=self.batch_size)
        report(STAGE, n, n)
        return Tried(found.detach(), answers != labels, torch.zeros(n, dtype=torch.bool), watched.forward_passes, watched.backward_passes)


class _Watched(nn.Module):
    """The model as the library needs it: contiguous images in, gradients that `view` can flatten out, passes counted, logits finite."""

    def __init__(self, model: nn.Module, layout: torch.memory_format) -> None:
        super().__init__()
        self.model, self.layout, self.forward_passes, self.backward_passes = model, layout, 0, 0

    def forward(self, x: Images) -> Logits:
        # There and back: the gradient takes the same way, and so arrives contiguous also from a channels-last model.
        flat = x.flatten(1).reshape(x.shape)
        logits = finite(self.model(flat.contiguous(memory_format=self.layout)))
        self.forward_passes += len(x)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, gradient: Tensor) -> None:
        self.backward_passes += len(gradient)


def _square_fits(height: int, width: int) -> bool:
    """Whether pyautoattack 0.2's first windows of Square in L2, whose side it takes from the height, lie within the image."""
    side = height // 5
    margin = (height - 5 * side) // 2
    return side == 1 or (side > 1 and all(margin + n // side * side <= n for n in (height, width)))


def _library() -> Any:
    try:
        from pyautoattack import AutoAttack as Ensemble
    except ImportError as error:
        raise MissingError(
            f"AutoAttack runs its authors' library, pyautoattack, which is an optional extra; got: {error}. pip install 'expunge[autoattack]'."
        ) from None
    return Ensemble


def _untraced(function: Any, *args: Any, **options: Any) -> Any:
    """Calls the function and then puts back the trace of a debugger or of coverage, which the library's check for dynamic models removes."""
    trace = sys.gettrace()
    try:
        return function(*args, **options)
    finally:
        sys.settrace(trace)
