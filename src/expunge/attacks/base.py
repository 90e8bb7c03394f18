"""What every search for nearest adversarial examples is: frozen settings, called with (model, data), that returns an `AdversarialSet`.

The chores live here, in `__call__`: checks, a model that is left exactly as it was, full batches, the last look in float32. An attack's
`begin` and `step` hold only its idea.
"""

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from ..checks import check_settings
from ..costs import count
from ..data.images import Samples
from ..device import device_of, exact_float32, fast_layout, without_autocast
from ..errors import AdversarialSearchFailed, DataError, InputsOutsideUnitRange, ModelError, ZeroGradients
from ..models.checkpoint import model_hash
from ..modes import eval_mode
from ..progress import report
from ..rng import fork
from ..training.inference import check_model
from .active_set import ActiveSet, column, finite, length, look, refill
from .adversarial_set import AdversarialSet

STAGE = "nearest adversarial examples"


@dataclass(frozen=True, kw_only=True)
class NearestAttack(ABC):
    """A search for the nearest image that the model gives another label. An attack's only base is this class.

    An attack says in `begin` what it counts for each sample, and in `step` what it does after one pass through the model; each row of the
    active set is a sample at its own stage. Two settings belong to every attack, which declares them after its own:
        batch_size: samples at work at the same time, ≥ 1. Results do not depend on it, but for rounding.
        bisections: halvings of the segment from x to what was found, ≥ 0; each costs one forward pass and can only shorten the distance.

    Class attributes:
        name: as the command line spells it.
        paper: where the algorithm is from.
        passes: what an image takes at the default settings, as forward and backward passes of training; measured on CIFAR-10.
        revision: raised when the algorithm changes, so that stored results of the old one are not taken for the new.

    Example:
        >>> import expunge
        >>> isinstance(expunge.NearestDDN(), expunge.NearestAttack), expunge.NearestDDN(bisections=3).bisections
        (True, 3)
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    passes: ClassVar[float]
    revision: ClassVar[int] = 1

    if TYPE_CHECKING:

        @property
        def batch_size(self) -> int: ...

        @property
        def bisections(self) -> int: ...

    def __post_init__(self) -> None:
        check_settings(self)

    @final
    def __call__(self, model: nn.Module, data: Samples) -> AdversarialSet:
        """The nearest adversarial example of every sample; `model` and the global random generators stay as they are.

        Args:
            model: maps images in [0, 1] to logits; float32. The search runs on the device where its weights are.
            data: images with their true labels; never augmented here.

        Returns:
            One example for each sample, in order. Samples that the model gets wrong already are kept as they are (`already_wrong`); those
            without a result keep the last image tried (`found` is False; `.succeeded()` leaves them out).

        Raises:
            DataError: no samples, or labels that are not class numbers.
            ModelError: outputs that do not fit the classes or are not finite, or weights that are not float32.

        Flags: AdversarialSearchFailed, ZeroGradients, InputsOutsideUnitRange.
        """
        with prepared(model, data) as layout:
            result = _Search(self, model, data, layout).run()
        _flag(result, data)
        done: dict[str, Any] = result.tensors
        return AdversarialSet(
            **done, ids=data.ids.clone(), true_labels=data.labels.clone(), found=done["labels"] != data.labels, classes=tuple(data.classes),
            model_hash=model_hash(model), data_fingerprint=data.fingerprint, attack=repr(self),
        )  # fmt: skip

    @abstractmethod
    def begin(self, rows: ActiveSet) -> None:
        """Adds the attack's own counters to rows that enter; their point is x."""

    @abstractmethod
    def step(self, rows: ActiveSet, wrong: Tensor, uphill: Tensor) -> Tensor:
        """Moves each row's point on, after one pass through the model at the present points; returns which rows are finished, bool (B,).

        Args:
            rows: the samples at work; `rows.keep(mask)` takes the present point as result.
            wrong: bool (B,), whether the model is wrong at the present point.
            uphill: (B, C, H, W), direction of steepest ascent of the loss there, of L2 length 1; zero where the gradient is zero or was not
                wanted.
        """


class _Search:
    """One run of an attack over a data set."""

    def __init__(self, attack: NearestAttack, model: nn.Module, data: Samples, layout: torch.memory_format) -> None:
        self.attack, self.model, self.data, self.device, self.layout = attack, model, data, device_of(model), layout
        n = len(data)
        self.tensors = {
            "images": torch.empty(n, *data.shape), "labels": data.labels.clone(), "distances": torch.zeros(n), "epsilons": torch.zeros(n),
            "forward_passes": torch.zeros(n, dtype=torch.int64), "already_wrong": torch.zeros(n, dtype=torch.bool),
        }  # fmt: skip
        self.claimed, self.stuck, self.outside = (torch.zeros(n, dtype=torch.bool) for _ in range(3))

    def run(self) -> "_Search":
        todo = torch.arange(len(self.data))
        for exact in (False, True):
            with exact_float32() if exact else contextlib.nullcontext():
                self.search(todo)
            with exact_float32():
                self.look_again(todo)
            # On GPUs the search multiplies in TF32. What is wrong only by that rounding is searched for once more in float32.
            todo = (self.claimed & (self.tensors["labels"] == self.data.labels)).nonzero().flatten()
            if len(todo) == 0:
                break
        return self

    def search(self, todo: Tensor) -> None:
        """Runs the attack on the samples at these positions, always `batch_size` at a time while there are enough."""
        size, n = self.attack.batch_size, len(todo)
        rows, todo = self.enter(todo[:size]), todo[size:]
        while len(rows):
            answers, uphill = look(self.model, rows)
            wrong = answers != rows.y
            blind = rows.wants_gradient & (uphill == 0).flatten(1).all(1)
            rows.already_wrong = torch.where(rows.passes == 0, wrong, rows.already_wrong)
            rows.passes = rows.passes + 1
            finished = self.attack.step(rows, wrong, uphill) | rows.already_wrong | blind
            if finished.any():
                self.leave(rows.take(finished), blind[finished])
                rows, todo = refill(rows, finished, todo, self.enter)
                report(STAGE, n - len(todo) - len(rows), n)

    def enter(self, positions: Tensor) -> ActiveSet:
        x = self.data.fetch(positions)
        self.outside[positions] = ~((x >= 0) & (x <= 1)).flatten(1).all(1)
        rows = ActiveSet.of(*(self.at_work(t) for t in (positions, self.data.ids[positions], x, self.data.labels[positions])))
        rows.already_wrong = torch.zeros_like(rows.found)
        self.attack.begin(rows)
        return rows

    def at_work(self, values: Tensor) -> Tensor:
        """Values on the model's device, images in the layout in which it is fastest."""
        return values.to(self.device, memory_format=self.layout) if values.ndim == 4 else values.to(self.device)

    def leave(self, rows: ActiveSet, blind: Tensor) -> None:
        at, out = rows.positions.cpu(), self.tensors
        claimed = rows.found | rows.already_wrong
        image = torch.where(column(rows.already_wrong), rows.x, torch.where(column(rows.found), rows.best, rows.point))
        out["images"][at], out["epsilons"][at], out["already_wrong"][at] = image.cpu(), rows.radius.cpu(), rows.already_wrong.cpu()
        out["forward_passes"][at] += rows.passes.cpu()
        self.claimed[at], self.stuck[at] = claimed.cpu(), (blind & ~claimed).cpu()

    @torch.no_grad()
    def look_again(self, todo: Tensor) -> None:
        """The label that the model gives to each result, as stored, in float32; first a bisection towards x, if there is one."""
        out = self.tensors
        for at in todo.split(self.attack.batch_size):
            x, y, far = (self.at_work(t) for t in (self.data.fetch(at), self.data.labels[at], out["images"][at]))
            count(self.data.ids[at], forward=1 + self.attack.bisections)
            near, answers = x, finite(self.model(far)).argmax(1)
            for _ in range(self.attack.bisections):
                middle = ((near + far) / 2).clamp_(0, 1)
                guess = finite(self.model(middle)).argmax(1)
                wrong = guess != y
                near, far = torch.where(column(wrong), near, middle), torch.where(column(wrong), middle, far)
                answers = torch.where(wrong, guess, answers)
            out["images"][at], out["labels"][at], out["distances"][at] = far.cpu(), answers.cpu(), length(far - x).cpu()
            out["forward_passes"][at] += 1 + self.attack.bisections
            out["epsilons"][at] = torch.where(out["epsilons"][at].isinf(), out["distances"][at], out["epsilons"][at])


@contextlib.contextmanager
def prepared(model: nn.Module, data: Samples) -> Iterator[torch.memory_format]:
    """Checks model and data, and makes the model ready for an attack inside the block, whatever surrounds it; yields the layout that images should have.

    Raises:
        DataError, ModelError: as attacks do.
    """
    with torch.inference_mode(False), fork(0):
        _check(model, data)
        device = device_of(model)
        first = data.fetch(torch.arange(1)).to(device)
        with _only_inputs(model), without_autocast(device), fast_layout(model, first) as layout:
            yield layout


@contextlib.contextmanager
def _only_inputs(model: nn.Module) -> Iterator[None]:
    """Eval mode and gradients with respect to inputs alone, whatever surrounds the block; puts modes and flags back."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with eval_mode(model), torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _check(model: nn.Module, data: Samples) -> None:
    if not isinstance(data, Samples) or len(data) == 0:
        raise DataError(f"data must be a non-empty ImageData or subset of one; got {data!r}. Attack split.forget, or load_data(…).")
    if data.labels.ndim != 1:
        raise DataError(
            f"labels must be class numbers, int64 (N,); got probabilities of shape {tuple(data.labels.shape)}. "
            "Attack the data before relabelling them."
        )
    check_model(model, data)
    strange = next((p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
    if strange is not None:
        raise ModelError(
            f"the model's weights must be float32, for which distances are computed; got {strange}. Call model.float() on a copy."
        )


def _flag(search: _Search, data: Samples) -> None:
    n, stuck, outside = len(data), int(search.stuck.sum()), int(search.outside.sum())
    failed = int((search.tensors["labels"] == data.labels).sum())
    if outside:
        what = f"{outside} of {n} images lie outside [0, 1]; adversarial examples are confined to it, so that their distances mean nothing."
        warn(f"{what} Give images in [0, 1] and put Normalize in front of the model.", InputsOutsideUnitRange)
    if stuck:
        what = f"the gradient at the input is exactly zero for {stuck} of {n} samples, and the search stopped there."
        warn(f"{what} Does the model detach or round its input?", ZeroGradients)
    if failed:
        what = f"no adversarial example was found for {failed} of {n} samples."
        warn(f"{what} Use .succeeded(), or a search with more steps.", AdversarialSearchFailed)


def warn(message: str, flag: type[UserWarning]) -> None:
    """A flag that points at the line which called the attack: warned by a function that the attack's `__call__` calls."""
    warnings.warn(message, flag, stacklevel=4)
