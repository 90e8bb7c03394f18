"""Which samples a plan forgets, said before there are data: a call on the training set gives the split."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from ..checks import check_settings, setting
from ..data.images import Samples
from ..data.split import Split, forget_classes, forget_random, forget_samples
from ..errors import ConfigError
from ..rng import seed_setting


class Forget(ABC):
    """A frozen rule; `rule(train)` makes the split, `str(rule)` says it in a few words."""

    @abstractmethod
    def __call__(self, train: Samples) -> Split: ...


@final
@dataclass(frozen=True, kw_only=True)
class ForgetRandom(Forget):
    """Random samples: `n` of them, or a share of the training set.

    Args:
        n: how many, ≥ 1; or
        ratio: of the training set, in (0, 1).
        seed: the same seed chooses the same ones.

    Raises:
        ConfigError: both, or neither.

    Example:
        >>> from expunge import load_data
        >>> len(ForgetRandom(ratio=0.1)(load_data("digits")[0]).forget_indices)
        100
    """

    n: int | None = setting(None, ge=1)
    ratio: float | None = setting(None, gt=0, lt=1)
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.n is None) == (self.ratio is None):
            raise ConfigError(f"ForgetRandom takes n or ratio; got {'neither' if self.n is None else 'both'}. Pass one of them.")

    def __call__(self, train: Samples) -> Split:
        return forget_random(train, self.n or max(1, round((self.ratio or 0) * len(train))), seed=self.seed)

    def __str__(self) -> str:
        return f"{self.n} random samples" if self.ratio is None else f"{100 * self.ratio:g} % random samples"


@final
@dataclass(frozen=True, kw_only=True)
class ForgetClasses(Forget):
    """All samples of these classes, by name or number.

    Example:
        >>> import expunge
        >>> expunge.ForgetClasses(classes=("3",))(expunge.load_data("digits").train)
        Split(forget 102, retain 898, classes (3,))
    """

    classes: tuple[str | int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", (self.classes,) if isinstance(self.classes, str | int) else tuple(self.classes))
        check_settings(self)

    def __call__(self, train: Samples) -> Split:
        return forget_classes(train, self.classes)

    def __str__(self) -> str:
        return f"class {', '.join(map(str, self.classes))}"


@final
@dataclass(frozen=True, kw_only=True)
class ForgetSamples(Forget):
    """The samples at these positions of the training set.

    Example:
        >>> import expunge
        >>> expunge.ForgetSamples(indices=(17, 42))(expunge.load_data("digits").train)
        Split(forget 2, retain 998)
    """

    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", tuple(self.indices))
        check_settings(self)

    def __call__(self, train: Samples) -> Split:
        return forget_samples(train, self.indices)

    def __str__(self) -> str:
        return f"{len(self.indices)} given samples"
