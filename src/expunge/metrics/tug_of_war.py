"""Tug-of-War: how near three accuracies are to those of retraining, in one number."""

import torch
from torch import Tensor

from ..errors import DataError
from .estimate import Estimate, check_level, mean_estimate, unsupported


def tug_of_war(unlearned: Tensor, retrained: Tensor, level: float = 0.95) -> Estimate:
    """ToW = Π over forget, retain, test of (1 − |accuracy_unlearned − accuracy_retrained|), mean over seeds, in [0, 1]; 1 = the accuracies of retraining.

    The interval is Student's over seeds. For ToW-MIA pass, in the first column, the share of forget samples that an attack takes for non-members
    (MIA-efficacy) instead of the accuracy. Two retrained models have a ToW below 1, too: `tug_of_war_floor`.

    Args:
        unlearned, retrained: accuracies as fractions, a row for each seed, columns forget, retain, test.
        level: confidence in (0, 1).

    Raises:
        ConfigError: level is out of range.
        DataError: not (S, 3) with S ≥ 1, or an accuracy is not in [0, 1].

    Example:
        >>> print(tug_of_war(torch.tensor([[0.9, 1.0, 0.8], [0.8, 1.0, 0.8]]), torch.tensor([[0.8, 1.0, 0.8], [0.8, 1.0, 0.8]])))
        0.950 [0.315, 1.000]

    Paper: Zhao et al., "What makes unlearning hard and what to do about it" (RUM), NeurIPS 2024, arXiv:2406.01257.
    """
    _check_accuracies(unlearned, retrained)
    check_level(level)
    products = _products(unlearned, retrained).tolist()
    if len(products) == 1:
        return Estimate(products[0], 0.0, 1.0, 1, "one seed: nothing is known about others")
    return mean_estimate(products, level, within=(0.0, 1.0))


def tug_of_war_floor(retrained: Tensor) -> Estimate:
    """The ToW that retraining itself has: mean over pairs of retrained models. low and high are the smallest and the largest, not a confidence interval.

    Args:
        retrained: (S, 3) as in `tug_of_war`; S ≥ 2, or it is n/a.

    Raises:
        DataError: not (S, 3), or an accuracy is not in [0, 1].

    Example:
        >>> print(tug_of_war_floor(torch.tensor([[0.9, 1.0, 0.8], [0.8, 1.0, 0.8]])))
        0.900 [0.900, 0.900]
    """
    _check_accuracies(retrained, retrained)
    if len(retrained) < 2:
        return unsupported("needs two retrained models, got 1", len(retrained))
    first, second = torch.triu_indices(len(retrained), len(retrained), 1)
    products = _products(retrained[first], retrained[second])
    return Estimate(float(products.mean()), float(products.min()), float(products.max()), len(retrained))


def _products(a: Tensor, b: Tensor) -> Tensor:
    return (1 - (a.double() - b.double()).abs()).prod(1)


def _check_accuracies(unlearned: Tensor, retrained: Tensor) -> None:
    for accuracies in (unlearned, retrained):
        if accuracies.ndim != 2 or accuracies.shape[1] != 3:
            raise DataError(
                f"Tug-of-War needs accuracies of shape (seeds, 3), columns forget, retain, test; got {tuple(accuracies.shape)}. "
                "For one seed pass a matrix of one row."
            )
        if len(accuracies) == 0 or len(accuracies) != len(unlearned):
            raise DataError(
                f"Tug-of-War needs one row for each seed, as many of both; got {len(unlearned)} and {len(retrained)}. Pair models by seed."
            )
        if not bool(((accuracies >= 0) & (accuracies <= 1)).all()):
            raise DataError(
                f"accuracies must be fractions in [0, 1]; got {float(accuracies.max())} at most. Divide percents by 100; NaN is no accuracy."
            )
