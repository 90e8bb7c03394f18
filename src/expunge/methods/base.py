"""What every unlearning method is: a frozen recipe, called with (model, split), that returns a new model.

The chores live here, in `__call__`: checks, the copy, seeds, devices, and putting modes and flags back. A method's `run` holds only its idea.
"""

import contextlib
import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import torch
from torch import nn

from ..checks import check_settings, choose
from ..costs import sources
from ..data.split import Split
from ..device import device_of, resolve_device, without_autocast
from ..errors import DataError, ModelError
from ..rng import fork
from ..training.inference import check_model


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """An unlearning algorithm with all its hyperparameters. A method's only base is this class.

    Class attributes:
        name: as the command line spells it.
        paper: where the algorithm is from.
        retain: how much of the retain set it reads: "none", a "subset" whose size does not grow with it, or "full"; a property where that depends on a hyperparameter.
        scenario: what it can forget: "any" samples, or whole "classes" only.
        tunes: the setting that decides how far it goes, which `tune` chooses where the method does not find it itself (`to_tune`); None = there is none.
        published: hyperparameters that papers and authors chose for one of their experiments, by the experiment's name, for `as_published`. Most were
            chosen by looking at the retrained model, which nobody has who needs unlearning.
        revision: raised when the algorithm changes, so that stored results of the old one are not taken for the new.

    Example:
        >>> import expunge
        >>> train, _ = expunge.load_data("digits")
        >>> model, split = expunge.architecture("small", train)(), expunge.forget_samples(train, [17, 42])
        >>> unlearned = expunge.GradientAscent(epochs=1)(model, split, seed=0)
        >>> unlearned is model, expunge.GradientAscent().reads_retain
        (False, False)
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    scenario: ClassVar[str] = "any"
    tunes: ClassVar[str | None] = "lr"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    revision: ClassVar[int] = 1

    if TYPE_CHECKING:  # a class attribute, or a property where it depends on a hyperparameter

        @property
        def retain(self) -> str: ...

    def __post_init__(self) -> None:
        check_settings(self)

    @final
    def __call__(self, model: nn.Module, split: Split, *, seed: int = 0, device: str | torch.device = "auto") -> nn.Module:
        """A new model without the forget set; `model` stays as it is, bit for bit.

        Args:
            model: the original; maps images in [0, 1] to logits.
            split: what to forget, from `forget_samples`, `forget_random`, `forget_classes` or `forget_only`.
            seed: decides everything random, in [0, 2**63); the global generators are left alone.
            device: where to compute; the result is on the device of `model`.

        Raises:
            DataError: the method reads retain samples and the split has none, or forgets whole classes only and the split is of samples.
            ModelError: the model's outputs do not fit the labels, or training diverged.
        """
        if not isinstance(split, Split):
            raise DataError(f"split must be a Split; got {type(split).__name__}. Make one with forget_samples(train, indices).")
        if self.reads_retain and not split.has_retain:
            raise DataError(
                f"{self.name} reads retain samples, and the split has none. `expunge list methods` shows the methods that need none."
            )
        if self.scenario == "classes" and not split.forget_classes:
            raise DataError(
                f"{self.name} forgets whole classes: it takes them out of the model's answers, and samples of the same class that stay would be lost with them; "
                f"got a split of {len(split.forget_indices)} samples. Make it with forget_classes(train, [...]), or with forget_only(forget, classes=[...]) where the "
                "retain data are gone; `expunge list methods` shows the methods for samples."
            )
        if not isinstance(model, nn.Module):
            raise ModelError(f"model must be a torch.nn.Module; got {type(model).__name__}. A checkpoint is loaded by load_model.")
        place = resolve_device(device)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            without_autocast(place),
            fork(seed),
            _named(split),
        ):  # whatever surrounds the call
            unlearned = copy.deepcopy(model).to(place)
            check_model(unlearned, split.forget, labels=split.train.labels)
            self.run(unlearned, split)
        return _restored(unlearned.to(device_of(model)), model)

    @final
    def __str__(self) -> str:
        """As records have it: its repr without addresses, which differ from run to run."""
        return re.sub(r" at 0x[0-9a-f]+", "", repr(self))

    @property
    @final
    def reads_retain(self) -> bool:
        """Whether it reads retain samples."""
        return self.retain != "none"

    @classmethod
    @final
    def as_published(cls, experiment: str, **settings: Any) -> Self:
        """The method with the hyperparameters of a published experiment, for reproduction, and others of your own.

        Raises:
            MissingError: there is no such experiment in `published`.
        """
        return cls(
            **dict(cls.published[choose("experiment", experiment, cls.published, f"{cls.__name__}.published has them all.")]) | settings
        )

    def step_search(self, split: Split) -> float | None:
        """The share of forget samples that may still be answered with their class where the method itself searches for the step (`sgd_until_gone`); None = the step is as set."""
        return None

    def to_tune(self, split: Split) -> tuple[str, float] | None:
        """The setting that `tune` chooses for such a split, and the value that it starts from; None = there is none, or the method finds it itself."""
        if self.tunes is None or self.step_search(split) is not None:
            return None
        return self.tunes, getattr(self, self.tunes)

    @abstractmethod
    def cost(self, forget: float) -> float:
        """What a call takes at these settings, in passes over the training set: one is a forward and a backward pass of all its images; a forward pass alone is
        a third. A search of unknown length counts as measured on CIFAR-10, the trials of `until` as one, and a teacher answers in every epoch, as it must for
        augmented images (others it answers once).

        Args:
            forget: share of the training set that is forgotten, in (0, 1).
        """

    @abstractmethod
    def run(self, model: nn.Module, split: Split) -> None:
        """The paper's algorithm. Edits the copy that it is given; draws randomness from torch's global generator."""


@contextlib.contextmanager
def _named(split: Split) -> Iterator[None]:
    retain = split.retain.ids if split.has_retain else torch.empty(0, dtype=torch.int64)
    with sources(forget=split.forget.ids, retain=retain):
        yield


def _restored(unlearned: nn.Module, original: nn.Module) -> nn.Module:
    """Gives every module and parameter of the copy the original's mode and flags."""
    for module, was in zip(unlearned.modules(), original.modules(), strict=True):
        module.training = was.training
    for new, old in zip(unlearned.parameters(), original.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
        new.grad = None
    return unlearned
