"""Choosing TRW's tilt without a model retrained for the request: on other classes, whose retrained models are at hand."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.images import Samples
from ..data.split import forget_classes
from ..errors import ConfigError, DataError
from ..training.inference import logits_of
from .trw import FROM_RETAIN, TRW, trw_target

BETAS = (-5.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
MOST_IMAGES = 500  # of a class; 500 × 500 distances for each setting


class Calibration(NamedTuple):
    """What `calibrate_trw` chose.

    Attributes:
        method: TRW with the chosen settings.
        distance: its mean energy distance to the retrained models' answers. before: that of β = 0 at temperature 1 (RWFT).
        floor: that of two retrained models of one class to one another, if a class came with several; None otherwise.
    """

    method: TRW
    distance: float
    before: float
    floor: float | None

    def __str__(self) -> str:
        chosen = f"similarity={self.method.similarity!r}, beta={self.method.beta:g}, temperature={self.method.temperature:g}"
        floor = "" if self.floor is None else f"; retrained models are {self.floor:.4f} from one another"
        return f"{chosen}: energy distance {self.distance:.4f} to retraining on the development classes, RWFT {self.before:.4f}{floor}"


def calibrate_trw(
    model: nn.Module,
    train: Samples,
    development: Mapping[str | int, nn.Module | Sequence[nn.Module]],
    *,
    start: TRW | None = None,
    similarities: Sequence[str] = ("weights", "features", "answers"),
    betas: Sequence[float] = BETAS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Calibration:
    """TRW with the similarity, β and temperature whose targets look most like the answers of models retrained without other classes.

    For every development class d, the targets q that TRW would teach images of d, as if d were to be forgotten, are compared as a cloud of points with the answers of a model
    retrained without d on the same images, by the energy distance 2 E|q − r| − E|q − q'| − E|r − r'|, which sees means and sharpness alike and is what audits of a class
    see. The setting with the smallest mean distance is chosen; nothing is trained. The retrained model of the request itself is never looked at, and the
    development models serve every later request.

    Args:
        model: the original.
        train: its training set.
        development: for each development class, by name or number, one or more models retrained without it; none of them to be forgotten. Two classes or more: the
            best setting for one class is often not the best for the next.
        start: TRW with all other settings; default TRW(). Its use_retain=False leaves out "features" and "logits", which need retain samples.
        similarities, betas, temperatures: what is tried; β = 0 with temperature 1 always.

    Raises:
        DataError: no development class, or one without a model. MissingError: a class that does not exist.
        ConfigError: no similarity is left to try.
        ModelError: a model does not fit the data, or similarity "weights" or "features" without a last linear layer.

    Cost: one forward pass of each model over its class; for each class and each of "features" and "logits" one of the original over the training set; and two distance
    matrices of at most 500 × 500 for each model and setting.

    Example:
        >>> from expunge import Recipe, architecture, forget_classes, load_data, train_model
        >>> train, _ = load_data("digits")
        >>> build, recipe = architecture("small", train), Recipe(epochs=2)
        >>> without_three = train_model(build, forget_classes(train, [3]).retain, recipe)
        >>> found = calibrate_trw(train_model(build, train, recipe), train, {3: without_three}, similarities=["weights"])
        >>> found.distance <= found.before
        True

    Departures: the paper fixes β = 10; the calibration is ours.
    """
    if not development:
        raise DataError(
            "calibration needs at least one development class with a model retrained without it; got none. Pass {class: model}."
        )
    start = start or TRW()
    similarities = [s for s in similarities if start.use_retain or s not in FROM_RETAIN]
    if not similarities:
        raise ConfigError(
            f"calibration needs at least one similarity to try; got none, or only such as need retain samples ({', '.join(FROM_RETAIN)}) with "
            f"use_retain={start.use_retain}. Choose 'weights' or 'answers', which need none."
        )
    sums: dict[tuple[str, float, float], float] = {}
    floors = []
    for name, given in development.items():
        models = list(given) if isinstance(given, Sequence) else [given]
        if not models:
            raise DataError(
                f"each development class needs a model retrained without it; got none for {name!r}. Leave the class out, or pass {{{name!r}: model}}."
            )
        split = forget_classes(train, [name])
        logits = logits_of(model, split.forget)
        few = torch.linspace(0, len(logits) - 1, min(len(logits), MOST_IMAGES)).long()
        answers = [logits_of(m, split.forget.subset(few)).softmax(1) for m in models]
        floors += [energy_distance(a, b) for k, a in enumerate(answers) for b in answers[:k]]
        for similarity in similarities:
            one = dataclasses.replace(start, similarity=similarity)
            retain = [split.retain] if start.use_retain else []
            s = one.similarity_of(model, split, logits, retain)[split.forget_classes[0]]
            for temperature in {*temperatures, 1.0}:
                for beta in {*betas, 0.0}:
                    q = trw_target(logits[few], split.forget_classes, s, beta, temperature)
                    key = similarity, beta, temperature
                    sums[key] = sums.get(key, 0.0) + sum(energy_distance(q, r) for r in answers) / len(answers)
    mean = {key: total / len(development) for key, total in sums.items()}
    similarity, beta, temperature = min(mean, key=lambda key: (mean[key], abs(key[1]), abs(key[2] - 1)))
    method = dataclasses.replace(start, similarity=similarity, beta=beta, temperature=temperature)
    before = mean[similarities[0], 0.0, 1.0]
    return Calibration(method, mean[similarity, beta, temperature], before, sum(floors) / len(floors) if floors else None)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """The energy distance between two clouds of points, (N, K) and (M, K): ≥ 0, and 0 only for equal distributions.

    Example:
        >>> cloud = torch.eye(3)
        >>> energy_distance(cloud, cloud)
        0.0
    """
    across, within_a, within_b = (torch.cdist(x.double(), y.double()).mean() for x, y in ((a, b), (a, a), (b, b)))
    return max(float(2 * across - within_a - within_b), 0.0)  # rounding can fall below
