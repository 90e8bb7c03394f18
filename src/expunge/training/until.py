"""How large a step must be when only the forget set is at hand: just large enough that the class goes."""

import copy
import warnings

from torch import nn

from ..data.images import Samples
from ..errors import ClassNotGone
from ..rng import draw_seed, fork
from .inference import logits_of
from .loop import sgd
from .objectives import Objective

DOUBLINGS = 10  # of the step, a thousandfold: if that is not enough, the objective does not do it


def sgd_until_gone(
    model: nn.Module,
    data: Samples | list[Samples],
    objective: Objective,
    *,
    lr: float,
    until: float | None,
    forget: Samples,
    classifier: nn.Module | None = None,
    **options: object,
) -> None:
    """`sgd` with the smallest of the steps lr, 2 lr, 4 lr, … after which at most a share `until` of the forget samples are still answered with their labels.

    Where no retain sample holds the model in place, the step decides everything: too small and nothing is forgotten, too large and everything is. A user without retain
    data cannot see the second, but can see the first. Each trial starts anew from the weights that `model` came with: a walk that is stopped where the class just
    goes is caught in the middle of a swing, and is further from retraining than one that has come to rest. All trials have one seed, so that nothing but the step
    differs: the result is bit for bit that of one run with the step that was found.

    Args:
        model, data, objective, options: as in `sgd`, but for its seed, which is drawn from torch's global generator.
        lr: the first and smallest step, > 0.
        until: in [0, 1); None = one run with `lr`, whatever comes of it.
        forget: whose labels must go.
        classifier: answers for the forget samples, if it is not `model` itself.

    Raises:
        What `sgd` raises.

    Flags: ClassNotGone, after ten doublings; the model is that of the last trial.

    Cost: `sgd`'s for each trial, and one forward pass over `forget`.
    """
    first, seed = copy.deepcopy(model.state_dict()), draw_seed()
    for trial in range(1 if until is None else DOUBLINGS + 1):
        if trial:
            model.load_state_dict(first)
        with fork(seed):  # dropout draws from the generator too
            sgd(model, data, objective, lr=lr * 2**trial, seed=seed, **options)
        if until is None:
            return
        left = float(
            (logits_of(classifier or model, forget).argmax(1) == forget.labels).double().mean()
        )  # 1 of 20 is 0.05, which it is not in float32
        if left <= until:
            return
    warnings.warn(
        f"{left:.0%} of the forget samples are still answered with their class at lr={lr * 2**DOUBLINGS:g}; at most {until:.0%} should be. "
        "The result is not unlearned: allow more epochs, or try another method.",
        ClassNotGone,
        stacklevel=4,
    )
