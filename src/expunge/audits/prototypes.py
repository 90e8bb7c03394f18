"""Prototypical relearning: does the mean feature vector of a few images of a forgotten class, put into the last layer, bring the class back?

    m = mean of the features of k images of class c,    ŵ = w / |w|
    cosine:  answer = argmax_j cos(w_j, h),              w_c ← (1 − α) ŵ_c + α m̂
    l2:      answer = argmax_j w_j · h + b_j,            w_c ← (1 − α) w_c + α 2m,   b_c ← (1 − α) b_c − α |m|²

No step of training is taken. If the recovered accuracy on images that nobody was trained on is above that of retrained models, features of the class were left inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..checks import check_settings, setting
from ..data.images import Samples
from ..data.split import Split
from ..errors import DataError
from ..metrics.answers import ONE_REFERENCE, half_width
from ..metrics.estimate import Estimate, check_level, proportion_interval
from ..progress import report
from ..rng import permutation, seed_setting
from ..training.head import features_of, last_linear
from .compared import RETRAINED, Models, cast, others_of, placed, plain, spread

KINDS = ("cosine", "l2")
STAGE = "prototypes"
Hits = Bool[Tensor, "D N"]


@final
@dataclass(frozen=True, eq=False)
class PrototypeRow:
    """One model.

    Attributes:
        model: its name.
        before: accuracy on held-out images of the forgotten classes with the same kind of last layer, and nothing mixed in.
        recovered: the same with prototypes in it.
        taken: share of held-out images of other classes that are then answered with a forgotten class: what the recovery costs.
        net: recovered − taken, in [−1, 1]; 0 for a last layer that answers everything with the class.
        difference, net_difference: of recovered and of net to the mean of the retrained models (for one of them: of the others), paired; None for the only one.
    """

    model: str
    before: Estimate
    recovered: Estimate
    taken: Estimate
    net: Estimate
    difference: Estimate | None
    net_difference: Estimate | None


@final
@dataclass(frozen=True, eq=False)
class PrototypesResult:
    """All models.

    Attributes:
        rows: a `PrototypeRow` for each model.
        floor, net_floor: |recovered accuracy, or net, of a retrained model − mean of the others|: what chance alone does.
        kind, alpha, k, draws: what was done. n: held-out images of the forgotten classes.
    """

    rows: list[PrototypeRow]
    floor: Estimate
    net_floor: Estimate
    kind: str
    alpha: float
    k: int
    draws: int
    n: int

    def __getitem__(self, model: str) -> PrototypeRow:
        return {row.model: row for row in self.rows}[model]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the report."""
        names = ("before", "recovered", "taken", "net", "difference", "net_difference")
        rows = [{"model": row.model} | {name: plain(getattr(row, name)) for name in names} for row in self.rows]
        return {
            "rows": rows, "floor": plain(self.floor), "net_floor": plain(self.net_floor), "kind": self.kind, "alpha": self.alpha, "k": self.k,
            "draws": self.draws, "n": self.n,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"prototypes of {self.k} images ({self.kind}, alpha {self.alpha:g}), {self.n} held-out images of forgotten classes"]
        lines += [
            f"{r.model}: {r.before:.1%}, with prototypes {r.recovered:.1%}; of other images {r.taken:.1%} taken; net {r.net:.1%}"
            for r in self.rows
        ]
        return "\n".join([*lines, f"floor: {self.floor:.1%}; of net {self.net_floor:.1%}"])


@final
@dataclass(frozen=True, kw_only=True)
class PrototypicalRelearning:
    """The white-box audit with class prototypes in the last layer.

    Use when: whole classes were forgotten. A retrained model has features that tell a class that it never saw, too, so that a high recovered accuracy alone says nothing: the
    difference to retrained models does. And a prototype can win back the class by taking images of all others: features behind a ReLU all point the same way, so that on digits
    (alpha 1) it took 87 to 96 % of them, retrained models included; `net` counts what is left after that. Below retrained models: the features of the class were scattered, more than retraining would.
    Cost: one forward pass of each model over draws · k images a forgotten class, and over the held-out images.

    Args:
        kind: "cosine": rows and prototype have unit length, biases are left out, for all classes. "l2": the prototype as nearest-mean rule in the layer as it is; its
            logits are of another size than the others', which `taken` shows.
        k: images in a prototype, ≥ 1. Paper: 5.
        alpha: share of the prototype, in [0, 1], the same for all models. 1 = nothing of the old row is left.
        draws: how often other k images are drawn, ≥ 2.
        seed: in [0, 2**63), of the draws, which are the same for all models.

    Raises:
        ConfigError: a setting is outside its range (at construction), or no retrained model (when called).
        DataError: no class was forgotten as a whole, or too few images.

    Example:
        >>> from expunge import Recipe, forget_classes, load_data, train_model
        >>> def build():
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> train, test = load_data("digits")
        >>> split, recipe = forget_classes(train, [3]), Recipe(epochs=3)
        >>> original, retrained = [train_model(build, data, recipe) for data in (split.train, split.retain)]
        >>> result = PrototypicalRelearning()({"original": original, "retrained": retrained}, split, test)
        >>> result["retrained"].before.value, result["original"].recovered.value > 0.5
        (0.0, True)

    Paper: Ha et al., "Unlearning's Blind Spots: Over-Unlearning and Prototypical Relearning Attack", ICML 2026, arXiv:2506.01318.
    Departures: their code puts a prototype of unit length beside rows of any length, so that the recovered accuracy depends on the scale of the last layer; here all rows have unit
        length. It edits the model that it is given and uses another alpha for each method (0.5, 1, 0.8); here no model is changed and there is one alpha. Several draws,
        intervals, `taken`, `net` and the comparison with retrained models are ours.
    """

    name: ClassVar[str] = "prototypes"
    paper: ClassVar[str] = "Ha et al., ICML 2026, arXiv:2506.01318"

    kind: str = setting("cosine", choices=KINDS)
    k: int = setting(5, ge=1)
    alpha: float = setting(0.5, ge=0, le=1)
    draws: int = setting(20, ge=2)
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(
        self,
        models: Models,
        split: Split,
        test: Samples,
        *,
        reference: str = RETRAINED,
        level: float = 0.95,
        device: str | torch.device = "auto",
    ) -> PrototypesResult:
        """Puts prototypes of the forgotten classes into every model's last layer, and asks about held-out images.

        Args:
            models: by name, as for `audit`: "retrained" (one or several), and any others.
            split: of whole classes; prototypes are made of its forget samples.
            test: images that no model was trained on, of all classes.
            reference: the name of the retrained models.
            level: confidence in (0, 1). device: where the models run.

        Raises:
            ConfigError: no retrained model. DataError: as the class says.
            ModelError: a model's output is not that of an nn.Linear layer.
        """
        parts, chosen = cast(models, reference=reference, needs_original=False), self._draw(split, test)
        check_level(level)
        images = split.forget.subset(chosen.unique())
        places = torch.searchsorted(chosen.unique(), chosen)
        hits = {}
        for done, (name, model) in enumerate(parts.named.items()):
            report(STAGE, done, len(parts.named), name)
            with placed(model, device):
                head = last_linear(model, test)
                shots, held = features_of(model, head, images).double(), features_of(model, head, test).double()
            hits[name] = self._hits(head, shots[places], held, split.forget_classes, test.labels)
        report(STAGE, len(parts.named), len(parts.named))
        return self._result(hits, len(parts.retrained), level)

    def _draw(self, split: Split, test: Samples) -> Int64[Tensor, "D C k"]:
        """Positions in the forget set of the images of each prototype."""
        if not split.forget_classes:
            raise DataError(
                "prototypes are of whole forgotten classes; got a split of single samples. Make it with forget_classes(train, [...])."
            )
        rows = []
        for c in split.forget_classes:
            own, n_test = (split.forget.labels == c).nonzero().flatten(), int((test.labels == c).sum())
            if len(own) < self.k or n_test < 2:
                raise DataError(
                    f"a prototype of class {test.classes[c]!r} needs {self.k} forget samples and 2 test images of it; got {len(own)} and {n_test}. "
                    "Choose a smaller k, or leave the class's images in the test set."
                )
            rows.append(torch.stack([own[permutation(len(own), self.seed, c, d)[: self.k]] for d in range(self.draws)]))
        return torch.stack(rows, 1)

    def _hits(self, head: nn.Linear, shots: Tensor, held: Tensor, classes: Sequence[int], labels: Tensor) -> dict[str, Hits]:
        """Whether each held-out image is answered as asked, by draw."""
        weight = head.weight.detach().double().cpu()
        bias = torch.zeros(len(weight)).double() if head.bias is None else head.bias.detach().double().cpu()
        forgotten = torch.isin(labels, torch.tensor(classes))
        before = prototype_logits(weight, bias, shots[0], held, classes, 0.0, self.kind).argmax(1)[None]
        after = torch.stack([prototype_logits(weight, bias, one, held, classes, self.alpha, self.kind).argmax(1) for one in shots])
        return {
            "before": (before == labels)[:, forgotten],
            "recovered": (after == labels)[:, forgotten],
            "taken": torch.isin(after, torch.tensor(classes))[:, ~forgotten],
        }

    def _result(self, hits: dict[str, dict[str, Hits]], n_retrained: int, level: float) -> PrototypesResult:
        retrained = list(hits)[-n_retrained:]
        rows = []
        for name, own in hits.items():
            before, recovered, taken = (share(own[part], level) for part in ("before", "recovered", "taken"))
            peers = [hits[other] for other in retrained if other != name]
            gaps: tuple[Estimate | None, Estimate | None] = None, None
            if peers:
                gap, cost = (
                    share_difference(own[part], torch.stack([peer[part] for peer in peers]), level) for part in ("recovered", "taken")
                )
                gaps = gap, minus(gap, cost)
            rows.append(PrototypeRow(name, before, recovered, taken, minus(recovered, taken), *gaps))
        twins = torch.tensor([[row.recovered.value, row.net.value] for row in rows[-n_retrained:]], dtype=torch.float64)
        floor, net_floor = (spread([abs(float(one - rest.mean())) for one, rest in others_of(values)]) for values in twins.T)
        return PrototypesResult(rows, floor, net_floor, self.kind, float(self.alpha), self.k, self.draws, rows[0].recovered.n)


def prototype_logits(
    weight: Float[Tensor, "K d"],
    bias: Float[Tensor, " K"],
    shots: Float[Tensor, "C k d"],
    features: Float[Tensor, "N d"],
    classes: Sequence[int],
    alpha: float,
    kind: str = "cosine",
) -> Float[Tensor, "N K"]:
    """What a linear layer answers to features when prototypes of some classes are mixed into it; the layer's own tensors stay as they are.

    Args:
        weight, bias: of the layer.
        shots: the features of k images of each of the C classes.
        features: of the images to answer.
        classes: the C class numbers.
        alpha: share of the prototype, in [0, 1].
        kind: "cosine" or "l2".

    Example:
        >>> prototype_logits(torch.eye(2), torch.zeros(2), torch.tensor([[[3.0, 4.0]]]), torch.tensor([[0.6, 0.8]]), [0], 1.0).tolist()
        [[1.0, 0.800000011920929]]
    """
    mean, weight, bias, at = shots.mean(1), weight.clone(), bias.clone(), list(classes)
    if kind == "cosine":
        weight = normalize(weight, dim=1)
        weight[at] = normalize((1 - alpha) * weight[at] + alpha * normalize(mean, dim=1), dim=1)
        return normalize(features, dim=1) @ weight.T
    weight[at] = (1 - alpha) * weight[at] + alpha * 2 * mean
    bias[at] = (1 - alpha) * bias[at] - alpha * mean.square().sum(1)
    return features @ weight.T + bias


def share(hits: Hits, level: float = 0.95) -> Estimate:
    """The share of hits over D draws and N images, with an interval for other draws and other images; at least as wide as the exact one of N images.

    Example:
        >>> print(share(torch.ones(3, 40).bool()))
        1.000 [0.912, 1.000]
    """
    d, n = hits.shape
    if n < 1:
        raise DataError("a share needs at least one image; got none. Pass held-out images of all classes.")
    by_image = hits.double().mean(0)
    value = float(by_image.mean())
    low, high = proportion_interval(value * n, n, level)
    if d > 1:
        reach = half_width(float(by_image.var(correction=0)) / n, float(hits.double().mean(1).var()) / d, d, level)
        low, high = min(low, value - reach), max(high, value + reach)
    return Estimate(value, max(0.0, low), min(1.0, high), n)


def share_difference(own: Hits, references: Bool[Tensor, "M D N"], level: float = 0.95) -> Estimate:
    """The share of hits minus the mean of those of the M retrained models, on the same draws and images.

    The interval covers which images and draws these are and, with two or more references, the seeds of the retrained models and of the audited one, s² (1 + 1/M): for 95 % of models
    that are one more retrained model it holds 0. As Agresti and Min's, it has a width where all agree: half a sample is added to each way in which two models can differ.

    Example:
        >>> print(share_difference(torch.ones(3, 40).bool(), torch.zeros(2, 3, 40).bool()))
        1.000 [0.873, 1.000]
    """
    apart = own.double() - references.double().mean(0)
    (d, n), m = apart.shape, len(references)
    by_image, value = apart.mean(0), float(apart.mean())
    centre = value * n / (n + 2)
    variance = (float(by_image.square().sum()) + 1) / (n + 2) - centre**2
    among = half_width(0.0, float(references.double().mean((1, 2)).var()) * (1 + 1 / m) if m > 1 else 0.0, m, level)
    draws = float(apart.mean(1).var()) / d if d > 1 else 0.0
    reach = (half_width(variance / (n + 2), draws, d, level) ** 2 + among**2) ** 0.5
    low, high = min(value, centre - reach), max(value, centre + reach)
    return Estimate(value, max(-1.0, low), min(1.0, high), n, None if m > 1 else ONE_REFERENCE)


def minus(a: Estimate, b: Estimate) -> Estimate:
    """a − b of two numbers on different images, from their intervals (Zou and Donner's MOVER); too wide, if anything, where draws move both the same way.

    Example:
        >>> print(minus(Estimate(0.9, 0.8, 0.95, n=40), Estimate(0.1, 0.05, 0.2, n=400)))
        0.800 [0.659, 0.871]
    """
    low = ((a.value - a.low) ** 2 + (b.high - b.value) ** 2) ** 0.5
    high = ((a.high - a.value) ** 2 + (b.value - b.low) ** 2) ** 0.5
    value = a.value - b.value
    return Estimate(value, value - low, value + high, a.n, a.note)
