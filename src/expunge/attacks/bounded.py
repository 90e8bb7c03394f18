"""Accuracy under attack: what an attack within a fixed radius is, what it returns, and the share of samples that it leaves right.

A nearest attack asks how far the closest wrong image is; a bounded one asks whether there is any within `eps`. The chores live here, in
`BoundedAttack.__call__`: checks, a model that is left exactly as it was, and the last look in float32 at images that are certain to lie in
the ball. What an attack says about its own success is not believed.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..checks import check_settings
from ..costs import count
from ..data.images import Samples
from ..device import device_of, exact_float32
from ..errors import ConfigError, InputsOutsideUnitRange, ZeroGradients
from ..metrics.accuracy import accuracy_of
from ..metrics.estimate import Estimate, check_level
from ..types import Images, Labels, Scores
from .active_set import column, finite, length, project
from .adversarial_set import AdversarialSet
from .base import prepared, warn

NORMS = ("l2", "linf")


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Attacked:
    """What an attack within a fixed radius made of each sample, in order. Made by calling one: `PGD()(model, data)`.

    Attributes:
        images: float32 (N, C, H, W) in [0, 1], no further than eps from the sample: one that the model gets wrong, or the last one tried.
        labels: int64 (N,), what the model answers to `images`, in float32.
        true_labels: int64 (N,), y.
        ids: int64 (N,), the ids of the samples.
        already_wrong: bool (N,), whether the model is wrong at the sample itself, which is then kept as it is.
        distances: (N,), from the sample, in the attack's norm.
        forward_passes, backward_passes: images that went through the model in that direction, all samples together.
        attack: the attack's repr.

    Example:
        >>> import torch, expunge
        >>> x = torch.tensor([0.3, 0.45, 0.55, 0.7]).reshape(4, 1, 1, 1)
        >>> data = expunge.ImageData(x, torch.tensor([0, 0, 1, 1]), ("dark", "bright"))
        >>> bright = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2))
        >>> _ = bright.load_state_dict({"1.weight": torch.tensor([[-1.0], [1.0]]), "1.bias": torch.tensor([0.5, -0.5])})
        >>> expunge.PGD(eps=0.1)(bright, data)
        Attacked(4 images, 2 fooled, 0 already wrong)
    """

    images: Images
    labels: Labels
    true_labels: Labels
    ids: Labels
    already_wrong: Bool[Tensor, " N"]
    distances: Scores
    forward_passes: int
    backward_passes: int
    attack: str

    def __repr__(self) -> str:
        return f"Attacked({len(self.labels)} images, {int(self.fooled.sum())} fooled, {int(self.already_wrong.sum())} already wrong)"

    @property
    def fooled(self) -> Bool[Tensor, " N"]:
        """Whether the model is wrong at the image, bool (N,); so it is where it was wrong already."""
        return self.labels != self.true_labels


class Tried(NamedTuple):
    """What `BoundedAttack.search` reports, one row for each position."""

    images: Images
    claimed: Tensor  # bool (B,), whether the search takes the image for wrong
    blind: Tensor  # bool (B,), whether it ended where the gradient is exactly zero
    forward_passes: int
    backward_passes: int


@dataclass(frozen=True, kw_only=True)
class BoundedAttack(ABC):
    """A search for any image within a fixed radius that the model gets wrong. An attack's only base is this class.

    Three settings belong to every attack, which declares them:
        norm: "l2", over the whole image, or "linf", the largest change of a pixel.
        eps: radius in that norm, for images in [0, 1], > 0.
        batch_size: images that go through the model together, ≥ 1.

    Class attributes:
        name: as the command line would spell it.
        paper: where the algorithm is from.
        revision: raised when the algorithm changes, so that stored results of the old one are not taken for the new.

    Example:
        >>> import expunge
        >>> isinstance(expunge.PGD(), expunge.BoundedAttack), expunge.PGD(eps=0.5, norm="l2").eps
        (True, 0.5)
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    revision: ClassVar[int] = 1

    if TYPE_CHECKING:

        @property
        def norm(self) -> str: ...

        @property
        def eps(self) -> float: ...

        @property
        def batch_size(self) -> int: ...

    def __post_init__(self) -> None:
        check_settings(self)

    @final
    def __call__(self, model: nn.Module, data: Samples) -> Attacked:
        """An image within eps of every sample, wrong where one was found; `model` and the global random generators stay as they are.

        Args:
            model: maps images in [0, 1] to logits; float32. The search runs on the device where its weights are.
            data: images with their true labels; never augmented here.

        Raises:
            DataError: no samples, or labels that are not class numbers.
            ModelError: outputs that do not fit the classes or are not finite, or weights that are not float32.

        Flags: ZeroGradients, InputsOutsideUnitRange.
        """
        with prepared(model, data) as layout:
            trial = _Trial(self, model, data, layout)
            trial.run()
        _flag(trial)
        return Attacked(
            images=trial.images, labels=trial.labels, true_labels=data.labels.clone(), ids=data.ids.clone(), already_wrong=trial.already_wrong,
            distances=trial.distances, forward_passes=trial.forward, backward_passes=trial.backward, attack=repr(self),
        )  # fmt: skip

    @abstractmethod
    def search(self, model: nn.Module, data: Samples, positions: Tensor, layout: torch.memory_format) -> Tried:
        """What was tried last for the samples at these positions, at least one, all of which the model gets right.

        The model is in eval mode, gradients are on and reach inputs alone; it is fastest with images in this layout.
        """

    def into_ball(self, points: Images, x: Images) -> Images:
        """The points, moved into the ball around x and then into [0, 1]; by so much that rounding cannot put them outside again."""
        if self.norm == "l2":
            return project(points, x, torch.full_like(x[:, 0, 0, 0], self.eps * (1 - 2**-18)))
        room = max(self.eps * (1 - 2**-23) - 2**-25, self.eps / 2)
        return (x + (points - x).clamp(-room, room)).clamp_(0, 1)

    def distances(self, points: Images, x: Images) -> Scores:
        """How far each point is from x, in the attack's norm and in double precision."""
        change = points.double() - x.double()
        return length(change) if self.norm == "l2" else change.abs().amax((1, 2, 3))


def robust_accuracy(model: nn.Module, data: Samples, attack: BoundedAttack, level: float = 0.95) -> Estimate:
    """The share of samples that the model gets right whatever the attack does, in [0, 1], with its exact (Clopper-Pearson) interval.

    Samples that are wrong already count as wrong. An attack can miss what is there, so the value is at least the true robust accuracy
    of these samples, never below it; the interval tells of the choice of samples, not of the attack's misses.

    Args:
        model: maps images in [0, 1] to logits; left as it is.
        data: images with their true labels.
        attack: PGD(…) or AutoAttack(…), with its radius.
        level: confidence in (0, 1).

    Raises:
        ConfigError: the attack has no fixed radius, or level is outside its range.
        DataError, ModelError, MissingError: as the attack.

    Flags: ZeroGradients, InputsOutsideUnitRange.

    Cost: the attack's.
    Example:
        >>> from expunge.attacks.pgd import PGD
        >>> from expunge.data.images import ImageData
        >>> x = torch.tensor([0.3, 0.45, 0.55, 0.7]).reshape(4, 1, 1, 1)
        >>> bright = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
        >>> _ = bright.load_state_dict({"1.weight": torch.tensor([[-1.0], [1.0]]), "1.bias": torch.tensor([0.5, -0.5])})
        >>> print(robust_accuracy(bright, ImageData(x, torch.tensor([0, 0, 1, 1]), ("dark", "bright")), PGD(eps=0.1)))
        0.500 [0.068, 0.932]
    """
    if not isinstance(attack, BoundedAttack):
        raise ConfigError(
            f"attack must have a fixed radius, as PGD(eps=…) and AutoAttack(eps=…) have; got {attack!r}. "
            "For a nearest attack: accuracy_within(attack(model, data), [eps])."
        )
    check_level(level)
    return accuracy_of(~attack(model, data).fooled, level)


def accuracy_within(adversarial: AdversarialSet, radii: Sequence[float], level: float = 0.95) -> list[Estimate]:
    """The accuracy under L2 changes of up to each radius, from the distances of nearest adversarial examples: a whole curve for one search.

    A sample is right within r if its example is further away than r, or if none was found; one that was wrong already is wrong at every r.

    Args:
        adversarial: what a nearest attack returned, with samples that are wrong already.
        radii: L2 over the whole image in [0, 1], each ≥ 0; 0 gives the plain accuracy.
        level: confidence in (0, 1), of each interval by itself.

    Returns:
        One Estimate for each radius, in order. Like every accuracy under attack, not below the true one of these samples.

    Raises:
        ConfigError: a radius or the level is outside its range.

    Cost: none, after the search.
    Example:
        >>> from expunge.attacks.nearest_ddn import NearestDDN
        >>> from expunge.data.images import ImageData
        >>> x = torch.tensor([0.3, 0.45, 0.55, 0.7]).reshape(4, 1, 1, 1)
        >>> bright = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
        >>> _ = bright.load_state_dict({"1.weight": torch.tensor([[-1.0], [1.0]]), "1.bias": torch.tensor([0.5, -0.5])})
        >>> nearest = NearestDDN()(bright, ImageData(x, torch.tensor([0, 0, 1, 1]), ("dark", "bright")))
        >>> print(*accuracy_within(nearest, [0.0, 0.1, 0.3]), sep="; ")
        1.000 [0.398, 1.000]; 0.500 [0.068, 0.932]; 0.000 [0.000, 0.602]
    """
    bad = next((r for r in radii if isinstance(r, bool) or not isinstance(r, int | float) or not (math.isfinite(r) and r >= 0)), None)
    if bad is not None:
        raise ConfigError(f"radii must be numbers ≥ 0, L2 over the whole image in [0, 1]; got {bad!r}. Pass [0, 0.25, 0.5], for example.")
    return [accuracy_of(~(adversarial.found & (adversarial.distances.double() <= r)), level) for r in radii]


class _Trial:
    """One run of an attack over a data set."""

    def __init__(self, attack: BoundedAttack, model: nn.Module, data: Samples, layout: torch.memory_format) -> None:
        self.attack, self.model, self.data, self.device, self.layout = attack, model, data, device_of(model), layout
        n = len(data)
        self.images, self.distances = torch.empty(n, *data.shape), torch.zeros(n)
        self.labels = data.labels.clone()
        self.already_wrong, self.blind, self.outside = (torch.zeros(n, dtype=torch.bool) for _ in range(3))
        self.forward = self.backward = 0

    def run(self) -> None:
        everything = torch.arange(len(self.data))
        with exact_float32():
            self.look(everything)
        self.already_wrong = self.labels != self.data.labels
        todo = everything[~self.already_wrong]
        for exact in (False, True):
            if len(todo) == 0:
                break
            with exact_float32() if exact else contextlib.nullcontext():
                tried = self.attack.search(self.model, self.data, todo, self.layout)
            self.forward, self.backward = self.forward + tried.forward_passes, self.backward + tried.backward_passes
            with exact_float32():
                self.look(todo, tried.images)
            self.blind[todo] = tried.blind & ~self.wrong(todo)
            # On GPUs the search multiplies in TF32. What is wrong only by that rounding is searched for once more in float32.
            todo = todo[tried.claimed & ~self.wrong(todo)]

    def wrong(self, positions: Tensor) -> Tensor:
        return self.labels[positions] != self.data.labels[positions]

    @torch.no_grad()
    def look(self, positions: Tensor, images: Images | None = None) -> None:
        """The label that the model gives to each image, as stored and in float32; of the samples themselves, if there are no others."""
        for rows in torch.arange(len(positions)).split(self.attack.batch_size):
            at = positions[rows]
            x = point = self.data.fetch(at)
            if images is None:
                self.outside[at] = ~((x >= 0) & (x <= 1)).flatten(1).all(1)
            else:
                point = self.inside(images[rows], x)
            count(self.data.ids[at], forward=1)
            answers = finite(self.model(point.to(self.device, memory_format=self.layout))).argmax(1)
            self.images[at], self.labels[at] = point, answers.cpu()
            self.distances[at] = self.attack.distances(point, x).float()
            self.forward += len(at)

    def inside(self, points: Images, x: Images) -> Images:
        """The points themselves where they lie in the ball and in [0, 1], and else the nearest that do."""
        allowed = (self.attack.distances(points, x) <= self.attack.eps) & ((points >= 0) & (points <= 1)).flatten(1).all(1)
        return torch.where(column(allowed), points, self.attack.into_ball(points, x))


def _flag(trial: _Trial) -> None:
    n, stuck, outside = len(trial.data), int(trial.blind.sum()), int(trial.outside.sum())
    if outside:
        what = f"{outside} of {n} images lie outside [0, 1], to which attacks are confined, so that they may end further away than eps."
        warn(f"{what} Give images in [0, 1] and put Normalize in front of the model.", InputsOutsideUnitRange)
    if stuck:
        what = f"the gradient at the input is exactly zero for {stuck} of {n} samples: the attack is blind there, and they count as right."
        warn(f"{what} Does the model detach or round its input? AutoAttack tries without gradients, too.", ZeroGradients)
