"""OU@ε: is more gone than was asked for? How differently from the original a model treats what lies near the forgotten images, once the forgotten classes are left aside.

    x' = x + δ,  |δ| ≤ ε, towards the class that the original puts second
    OU = E_x JSD( p_O(· | x') without the forgotten classes, renormalised ‖ p(· | x') )      nats, in [0, ln 2]

0: what the original says about all other classes is still there. A retrained model is not at 0 either: it has never seen these images. So the number is read beside that of
retrained models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attacks.active_set import ActiveSet, look
from ..attacks.base import prepared
from ..attacks.pgd import PGD
from ..checks import check_settings, setting
from ..costs import count
from ..data.images import ImageData, Samples, Subset
from ..data.split import Split
from ..device import device_of, exact_float32
from ..errors import ConfigError, DataError
from ..metrics.estimate import Estimate, check_level
from ..metrics.signals import jsd
from ..progress import report
from ..rng import seed_setting, uniform
from ..training.inference import logits_of
from ..types import Images, Labels, Logits
from .compared import ORIGINAL, RETRAINED, Models, cast, difference, few, others_of, placed, plain, spread

PERTURBATIONS = ("pgd", "gaussian")
STAGE = "over-unlearning"
AT_A_TIME = 1024  # perturbed images held at a time


@final
@dataclass(frozen=True, eq=False)
class OverUnlearningRow:
    """One model.

    Attributes:
        model: its name.
        divergence: OU@ε in nats, in [0, ln 2].
        difference: to the mean of the retrained models (for one of them: of the others), paired; None for the only retrained model.
    """

    model: str
    divergence: Estimate
    difference: Estimate | None


@final
@dataclass(frozen=True, eq=False)
class OverUnlearningResult:
    """All models but the original.

    Attributes:
        rows: an `OverUnlearningRow` for each model.
        floor: |OU@ε of a retrained model − mean of the others|: what chance alone does.
        perturbation, eps: what was done to the images; eps is the standard deviation for "gaussian". n: forget images.
    """

    rows: list[OverUnlearningRow]
    floor: Estimate
    perturbation: str
    eps: float
    n: int

    def __getitem__(self, model: str) -> OverUnlearningRow:
        return {row.model: row for row in self.rows}[model]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the report."""
        rows = [{"model": row.model, "divergence": plain(row.divergence), "difference": plain(row.difference)} for row in self.rows]
        return {"rows": rows, "floor": plain(self.floor), "perturbation": self.perturbation, "eps": self.eps, "n": self.n}

    def __str__(self) -> str:
        lines = [f"OU@{self.eps:g} ({self.perturbation}) in nats on {self.n} forget images"]
        lines += [f"{row.model}: {row.divergence}; to retrained {row.difference or 'n/a'}" for row in self.rows]
        return "\n".join([*lines, f"floor: {self.floor}"])


@final
@dataclass(frozen=True, kw_only=True)
class OverUnlearning:
    """The audit of damage near the forgotten images.

    Use when: whole classes were forgotten, and the accuracy on the rest looks right: damage close to the forgotten images shows here first. It also punishes a model that answers
    exactly as retrained ones do, where these differ from the original; hence the difference to them.
    Cost: for "pgd" `steps` passes of the original over the forget images, forward and back to the image, and one pass of every model over the perturbed ones.

    Args:
        perturbation: "pgd": towards the original's runner-up, the class with the highest logit but for the label. "gaussian": independent noise on every pixel.
        eps: largest change of a pixel, for images in [0, 1], > 0. Paper: 0.03.
        step: change of a pixel in one step, > 0, at most 2 eps. Paper: 0.01.
        steps: ≥ 1. Paper: 3.
        std: standard deviation of the noise, > 0. Paper: 0.01.
        seed: of the noise, in [0, 2**63).
        batch_size: ≥ 1. Results do not depend on it, but for rounding.
        max_images: of more forget images than this, so many are asked about, evenly spread, ≥ 2.

    Raises:
        ConfigError: a setting is outside its range (at construction), or no original or no retrained model (when called).
        DataError: no class was forgotten as a whole, or fewer than two forget images.

    Example:
        >>> from expunge import Recipe, forget_classes, load_data, train_model
        >>> def build():
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> split, recipe = forget_classes(load_data("digits").train.subset(range(300)), [3]), Recipe(epochs=3)
        >>> original, retrained = [train_model(build, data, recipe) for data in (split.train, split.retain)]
        >>> result = OverUnlearning()({"original": original, "retrained": retrained}, split)
        >>> 0 < result["retrained"].divergence.value < math.log(2)
        True

    Paper: Ha et al., "Unlearning's Blind Spots: Over-Unlearning and Prototypical Relearning Attack", ICML 2026, arXiv:2506.01318.
    Departures: their code clamps images to [0, 1] after mean and standard deviation were taken out, which changes dark pixels by far more than ε; here ε is in units of the image
        and Normalize belongs to the model. It adds the gradient of the runner-up's loss, which leads away from the runner-up; here the step goes towards it. It starts at a random point; here at
        the image. The original's images are used for all models, as there. Intervals, the comparison with retrained models and the floor are ours.
    """

    name: ClassVar[str] = "over_unlearning"
    paper: ClassVar[str] = "Ha et al., ICML 2026, arXiv:2506.01318"

    perturbation: str = setting("pgd", choices=PERTURBATIONS)
    eps: float = setting(0.03, gt=0)
    step: float = setting(0.01, gt=0)
    steps: int = setting(3, ge=1)
    std: float = setting(0.01, gt=0)
    seed: int = seed_setting()
    batch_size: int = setting(256, ge=1)
    max_images: int = setting(5000, ge=2)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.step > 2 * self.eps:
            raise ConfigError(
                f"OverUnlearning: step must be at most 2 eps, {2 * self.eps:g}; got {self.step:g}. A longer one leaves the ball from anywhere."
            )

    def __call__(
        self, models: Models, split: Split, *, reference: str = RETRAINED, level: float = 0.95, device: str | torch.device = "auto"
    ) -> OverUnlearningResult:
        """Perturbs the forget images with the original, and compares every model with it there.

        Args:
            models: by name, as for `audit`: "original", "retrained" (one or several), and any others.
            split: of whole classes.
            reference: the name of the retrained models.
            level: confidence in (0, 1). device: where the models run.

        Raises:
            ConfigError, DataError: as the class says. ModelError: outputs that do not fit, or weights that are not float32.

        Where the original has no gradient at an image, it stays as it is.
        """
        parts = cast(models, reference=reference)
        check_level(level)
        if not split.forget_classes or len(split.forget) < 2:
            raise DataError(
                f"OU@ε needs whole forgotten classes, at least two images; got classes {split.forget_classes} and {len(split.forget)} images. "
                "Make the split with forget_classes(train, [...])."
            )
        others = {name: model for name, model in parts.named.items() if name != ORIGINAL}
        forget = few(split.forget, self.max_images)
        blocks = torch.arange(len(forget)).split(max(AT_A_TIME, self.batch_size))
        apart: dict[str, list[Tensor]] = {name: [] for name in others}
        for b, at in enumerate(blocks):
            block = forget.subset(at)
            with placed(parts.named[ORIGINAL], device) as original:
                perturbed = ImageData(self.perturbed(original, block), block.labels, block.classes)
                near = Subset(perturbed, torch.arange(len(perturbed)), numbers=block.ids)  # so that costs are still those of forget samples
                expected = without_classes(logits_of(original, near), split.forget_classes)
            for k, (name, model) in enumerate(others.items()):
                report(STAGE, b * len(others) + k, len(blocks) * len(others), name)
                with placed(model, device):
                    apart[name].append(jsd(expected.double(), logits_of(model, near).double()))
        report(STAGE, len(blocks) * len(others), len(blocks) * len(others))
        return self._result({name: torch.cat(of_model) for name, of_model in apart.items()}, len(parts.retrained), level)

    def perturbed(self, original: nn.Module, data: Samples) -> Images:
        """The images that models are asked about, float32 in [0, 1], in order; `original` stays as it is.

        Cost: see the class; none for "gaussian".
        """
        if self.perturbation == "gaussian":
            return torch.cat(
                [_noisy(data.fetch(at), data.ids[at], self.std, self.seed) for at in torch.arange(len(data)).split(self.batch_size)]
            )
        walk, images, device = self._walk(), torch.empty(len(data), *data.shape), device_of(original)
        with prepared(original, data) as layout, exact_float32():
            for at in torch.arange(len(data)).split(self.batch_size):
                x, labels = data.fetch(at).to(device, memory_format=layout), data.labels[at].to(device)
                rows = ActiveSet.of(at.to(device), data.ids[at].to(device), x, self._runner_up(original, x, labels, data.ids[at]))
                for _ in range(self.steps):
                    _, away = look(original, rows)  # uphill on the runner-up's loss
                    rows.point = walk.step(rows, -away)
                images[at] = rows.point.cpu()
        return images

    def _walk(self) -> PGD:
        """Steps and ball in L∞."""
        return PGD(
            norm="linf", eps=self.eps, steps=self.steps, step_ratio=self.step / self.eps, random_start=False, batch_size=self.batch_size
        )

    @torch.no_grad()
    def _runner_up(self, original: nn.Module, x: Images, labels: Labels, ids: Labels) -> Labels:
        logits = original(x)
        count(ids, forward=1)
        return logits.scatter(1, labels[:, None], -math.inf).argmax(1)

    def _result(self, apart: dict[str, Tensor], n_retrained: int, level: float) -> OverUnlearningResult:
        retrained = list(apart)[-n_retrained:]
        rows = []
        for name, own in apart.items():
            peers = [apart[other] for other in retrained if other != name]
            value = difference(own, torch.zeros(1, len(own), dtype=torch.float64), level)
            low, high = max(0.0, value.low), min(math.log(2), value.high)
            gap = difference(own, torch.stack(peers), level, bounds=math.log(2)) if peers else None
            rows.append(OverUnlearningRow(name, Estimate(value.value, low, high, value.n), gap))
        means = torch.tensor([[row.divergence.value] for row in rows[-n_retrained:]], dtype=torch.float64)
        floor = spread([abs(float(one - rest.mean())) for one, rest in others_of(means)])
        eps = self.eps if self.perturbation == "pgd" else self.std
        return OverUnlearningResult(rows, floor, self.perturbation, float(eps), rows[0].divergence.n)


def without_classes(logits: Logits, classes: Sequence[int]) -> Float[Tensor, "N K"]:
    """Logits with these classes at −∞, whose softmax is that of the others, renormalised.

    Raises:
        DataError: no class is left.

    Example:
        >>> without_classes(torch.tensor([[9.0, 1.0, 1.0]]), [0]).softmax(1).tolist()
        [[0.0, 0.5, 0.5]]
    """
    if len(set(classes)) >= logits.shape[1]:
        raise DataError(f"at least one class must stay; got {len(set(classes))} forgotten ones of {logits.shape[1]}.")
    masked = logits.clone()
    masked[:, list(classes)] = -math.inf
    return masked


def _noisy(x: Images, ids: Labels, std: float, seed: int) -> Images:
    """Normal noise on every pixel, a function of (seed, sample, pixel) alone, clamped to [0, 1]."""
    pixels = torch.arange(x[0].numel())
    counters = ids[:, None] * len(pixels) + pixels
    # Odd numbers over 2²³, less 1: never −1 or 1, where the inverse of the error function is infinite.
    flat = (2 * uniform(seed, ids=counters.flatten(), high=2**23) + 1).double() / 2**23 - 1
    return (x + std * math.sqrt(2) * flat.erfinv().reshape(x.shape).float()).clamp(0, 1)
