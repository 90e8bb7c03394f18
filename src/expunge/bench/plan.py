"""A benchmark as one value: methods × data × architecture × recipe × forget set, with seeds, attacks and shadow models.

A plan says what is to be measured and nothing about where: the store, the folder of the data, workers and devices are told when it runs.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ..audits.base import MembershipAudit
from ..audits.loss_threshold import LossThreshold
from ..audits.rmia import RMIA
from ..checks import check_settings, setting
from ..data.images import Augment, Samples
from ..errors import ConfigError
from ..methods import Method
from ..store import Store
from ..training.recipe import Build, Recipe
from .forget import Forget

if TYPE_CHECKING:
    from .results import Results
    from .status import Status

Data = str | tuple[Samples, Samples]
AXES = ("data", "arch", "recipe", "forget")  # of the grid
COLUMNS = ("average gap", "forget", "forget test", "retain", "test", "TV distance", "MIA-NN gap")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Every method on every combination of data, architecture, recipe and forget set, compared with retraining.

    For each combination: `seeds` originals, `retrained` models without the forget set, shadow models; each method unlearns from every original, with its step
    size chosen by `tune` if `tuning` says so; one audit for each original, against each retrained model in turn. Everything is kept in a store, so that a run goes on where it was stopped,
    several processes may share the work, and a larger plan reuses what a smaller one made.

    Args:
        methods: by name, or a list (then each has its own name).
        data: a data set by name or path, a pair (train, test), or a list of these.
        arch: an architecture by name, "module:function" or a function of yours that returns a fresh model; or a list.
        recipe: how original, retrained and shadow models are trained; or a list.
        forget: `ForgetRandom`, `ForgetClasses`, `ForgetSamples`; or a list.
        seeds: originals, ≥ 1; three or more give intervals over trainings.
        retrained: models without the forget set, ≥ 2: the yardstick and the null floor. None = as many as seeds, and at least 2.
        shadows: shadow models, even; 0 = none, and then no attack that needs them.
        attacks: the last one enters the average gap. None = RMIA with shadow models, else the loss threshold.
        tuning: settings that `tune` tries for each method, ≥ 0; 0 = methods as they are. Tuning looks at a quarter of the test images, and the audit at the others.
        n_train: so many random training images instead of all, ≥ 2; None = all.
        augment: how training varies the images; None = as the data set says.
        title: the heading of tables and pages.
        paper: published values to be shown beside the measured ones, as the paper prints them: {method: {column: "95.5 ± 0.2"}}; "source" says where they are from.

    Raises:
        ConfigError: no method, two of one name, retraining as a method, an attack that needs shadow models without any, or a number outside its range.

    Example:
        >>> import expunge
        >>> plan = Plan(methods=[expunge.FineTune(epochs=2)], data="digits", arch="small", recipe=Recipe(epochs=2), forget=expunge.ForgetRandom(n=50), shadows=0)
        >>> list(plan.methods), len(plan.grid())
        (['fine_tune'], 1)
    """

    methods: Mapping[str, Method] | Sequence[Method]
    data: Data | Sequence[Data] = "cifar10"
    arch: str | Build | Sequence[str | Build] = "resnet18"
    recipe: Recipe | Sequence[Recipe]
    forget: Forget | Sequence[Forget]
    seeds: int = setting(3, ge=1)
    retrained: int | None = setting(None, ge=2)
    shadows: int = setting(64, ge=0)
    attacks: Sequence[MembershipAudit] | None = None
    tuning: int = setting(0, ge=0)
    n_train: int | None = setting(None, ge=2)
    augment: Augment | None = None
    title: str = "Benchmark"
    paper: Mapping[str, Any] = setting(factory=dict)

    def __post_init__(self) -> None:
        check_settings(self)
        methods, default = _named(self.methods), RMIA() if self.shadows else LossThreshold()
        attacks = (default,) if self.attacks is None else tuple(self.attacks)
        object.__setattr__(self, "methods", methods)
        object.__setattr__(self, "attacks", attacks)
        wanting = [type(a).__name__ for a in attacks if a.needs_shadows and not self.shadows]
        if wanting or not attacks:
            raise ConfigError(
                f"{', '.join(wanting) or 'attacks'} must {'have shadow models' if wanting else 'name one at least'}; got none. Set shadows=64, or attacks=[LossThreshold()]."
            )
        if self.shadows % 2:
            raise ConfigError(
                f"shadows must be even, because they are trained on complementary halves; got {self.shadows}. Pass {self.shadows + 1}."
            )
        strange = set(self.paper) - {"source", "original", "retrained", *methods}
        if strange:
            raise ConfigError(
                f"paper must name methods of the plan; got {', '.join(sorted(strange))}. Its methods are {', '.join(methods)}."
            )
        for axis in AXES:
            if not _listed(getattr(self, axis)):
                raise ConfigError(f"{axis} must have one value at least; got an empty list. Leave it out for the default, or name one.")

    @property
    def n_retrained(self) -> int:
        return self.retrained or max(2, self.seeds)

    def grid(self) -> list[dict[str, Any]]:
        """All combinations of data, architecture, recipe and forget set, the last one changing fastest."""
        return [dict(zip(AXES, values, strict=True)) for values in itertools.product(*(_listed(getattr(self, axis)) for axis in AXES))]

    def columns(self) -> list[str]:
        """Names of the columns that tables of this plan may have."""
        return [*COLUMNS, *(f"{type(attack).__name__} AUC" for attack in self.attacks or ())]

    def status(self, store: Store | str | Path, *, root: str | Path = "data", device: Any = "auto") -> "Status":
        """What there is to do, what the store has of it, and how long the rest takes. Trains nothing.

        Raises: as `run`.
        """
        from .status import status

        return status(self, store, root=root, device=device)

    def run(
        self,
        store: Store | str | Path,
        *,
        root: str | Path = "data",
        workers: int | str = "auto",
        device: Any = "auto",
        executor: Any = "pool",
        watch: "Callable[[Results], None] | None" = None,
    ) -> "Results":
        """Does what the store does not have yet, and returns the results. Interrupt it whenever you like; the same call goes on.

        Args:
            store: the folder of all models and results. Several processes, on several machines, may run one plan on one store.
            root: the folder of named data sets, or to download them to.
            workers: processes on a CPU, ≥ 1; "auto" = one for each core. executor: where they run, as in `train_fleet`.
            device: "auto", "cpu", "cuda", …
            watch: called with the results so far whenever a model has been unlearned.

        Raises:
            DataError, MissingError: data, architecture or forget set that do not fit. ModelError: an original, retrained or shadow model diverged. StoreError: the store cannot be written.

        Cost: trainings from scratch: (seeds + retrained + shadows / 2 + one for tuning) for each combination; each method, once for each seed, and `tuning` times.
        """
        from .runner import run

        return run(self, store, root=root, workers=workers, device=device, executor=executor, watch=watch)

    def results(self, store: Store | str | Path, *, root: str | Path = "data") -> "Results":
        """What the store has by now; methods that are not there yet say so. Trains nothing."""
        from .results import results

        return results(self, store, root=root)


def _named(methods: Mapping[str, Method] | Sequence[Method]) -> dict[str, Method]:
    """The methods by name; what cannot be in a plan is refused."""
    pairs = list(methods.items()) if isinstance(methods, Mapping) else [(getattr(m, "name", ""), m) for m in methods]
    strange = [m for _, m in pairs if not isinstance(m, Method)]
    if strange or not pairs:
        raise ConfigError(
            f"a plan needs methods, such as AMUN(); got {strange[0]!r}."
            if strange
            else "a plan needs at least one method; got none. Pass methods=[AMUN()]."
        )
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"each method must have a name of its own; got {', '.join(twice)} twice. Pass methods={{'{twice[0]}': …, '{twice[0]} (other settings)': …}}."
        )
    taken = [name for name in names if name in ("original", "retrained", "source")]
    if taken or any(m.name == "retrain" for _, m in pairs):
        raise ConfigError(
            f"a plan has original and retrained models of its own; got {', '.join(taken) or 'retrain'} among its methods. Leave it out."
        )
    return dict(pairs)


def _listed(value: Any) -> list[Any]:
    """An axis as a list; a pair of data sets is one value."""
    is_pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, Samples) for part in value)
    return list(value) if isinstance(value, list | tuple) and not is_pair else [value]
