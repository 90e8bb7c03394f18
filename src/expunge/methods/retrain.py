"""Retraining from scratch without the forget set: exact unlearning, the yardstick of all others."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from ..checks import setting
from ..data.split import Split
from ..device import device_of
from ..errors import ModelError
from ..rng import draw_seed
from ..training.recipe import Build, Recipe, train_model
from .base import Method


@final
@dataclass(frozen=True, kw_only=True)
class Retrain(Method):
    """A new model trained on the retain set alone, with new initial weights and the original's recipe.

    Use when: you need certainty, or the yardstick for another method. Cost: a whole training on the retain set; epochs stay as they are, steps shrink.

    Args:
        build: returns a freshly initialised model of the original's architecture.
        recipe: how the original was trained.

    Raises:
        ModelError: `build` makes another architecture than the model's.
        DataError: the split has no retain samples.

    Paper: folklore; Bourtoule et al., "Machine Unlearning", IEEE S&P 2021, arXiv:1912.03817.
    Departures: none. Initial weights are drawn anew: they are not the original's even if it was trained with the same seed.
    Example:
        >>> from expunge import Recipe, architecture, forget_samples, load_data
        >>> train, test = load_data("digits")
        >>> Retrain(build=architecture("small", train), recipe=Recipe(epochs=2)).name
        'retrain'
    """

    name: ClassVar[str] = "retrain"
    paper: ClassVar[str] = "Bourtoule et al. 2021, arXiv:1912.03817"
    retain: ClassVar[str] = "full"
    tunes: ClassVar[str | None] = None

    build: Build
    recipe: Recipe = setting(factory=Recipe)

    def cost(self, forget: float) -> float:
        return self.recipe.epochs * (1 - forget)

    def run(self, model: nn.Module, split: Split) -> None:
        retrained = train_model(self.build, split.retain, self.recipe, seed=draw_seed(), device=device_of(model))
        try:
            model.load_state_dict(retrained.state_dict())
        except RuntimeError as error:
            raise ModelError(
                f"build() must make a model of the original's architecture; {str(error).splitlines()[1].strip()} Pass the function that built the original."
            ) from None
