"""Probes: how much do the features inside a model still tell about what was forgotten, layer by layer, although its answers may not?

    I_l(θ) = 1 + E log₂ q_l(y | z_l)           bits, on held-out samples; y = forget or retain, balanced
    index  = Σ_l (I_l(θ_U) − I_l(θ_R)) / Σ_l (I_l(θ_O) − I_l(θ_R))

q_l is a small classifier on the output z_l of a layer, so that I_l is a lower bound of the mutual information I(Z_l; Y). 0 = like the retrained model, 1 = like the
original, below 0 = the features tell less than those of retraining: more was removed than should be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import check_settings, setting
from ..data.split import Split
from ..errors import ConfigError
from ..metrics.estimate import Estimate, check_level
from ..progress import report
from ..rng import seed_setting
from ..training.features import features_at, stages
from .compared import ORIGINAL, RETRAINED, Models, cast, placed, plain
from .information import LEAST, compared_information, drawn_samples, information_difference_index
from .probe_fit import held_out_bits

PROBES = ("linear", "mlp")
STAGE = "probing layers"


@final
@dataclass(frozen=True, eq=False)
class ProbeRow:
    """One model.

    Attributes:
        model: its name.
        information: I_l in bits for each layer, in [−6.65, 0.993].
        differences: I_l minus the mean of the retrained models (for one of them: of the others), paired; empty for the only retrained model.
        index: 0 = retrained, 1 = original; without a value where the original cannot be told from the retrained models.
    """

    model: str
    information: tuple[Estimate, ...]
    differences: tuple[Estimate, ...]
    index: Estimate


@final
@dataclass(frozen=True, eq=False)
class ProbesResult:
    """All models, layer by layer.

    Attributes:
        layers: names, in the order of the model.
        rows: a `ProbeRow` for each model.
        total: Σ_l (I_l(θ_O) − I_l(θ_R)) in bits, what the index divides by.
        floors: for each layer |I_l of a retrained model − mean of the others|: what chance alone does. index_floor: (Σ_l I_l of a retrained model − mean of the
            others) / total, signed: what the index of one more retrained model would be.
        n: held-out samples, half of them forget samples.
        probe: which kind of classifier.
    """

    layers: tuple[str, ...]
    rows: list[ProbeRow]
    total: Estimate
    floors: tuple[Estimate, ...]
    index_floor: Estimate
    n: int
    probe: str

    def __getitem__(self, model: str) -> ProbeRow:
        return {row.model: row for row in self.rows}[model]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the report."""
        rows = [
            {"model": r.model, "information": plain(r.information), "differences": plain(r.differences), "index": plain(r.index)}
            for r in self.rows
        ]
        return {
            "layers": list(self.layers), "rows": rows, "total": plain(self.total), "floors": plain(self.floors), "index_floor": plain(self.index_floor),
            "n": self.n, "probe": self.probe,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.probe} probes, {self.n} held-out samples, bits at {', '.join(self.layers)}"]
        lines += [f"{r.model}: {', '.join(f'{i.value:.3f}' for i in r.information)}; index {r.index:.2f}" for r in self.rows]
        return "\n".join([*lines, f"floor of the index: {self.index_floor:.2f}"])


@final
@dataclass(frozen=True, kw_only=True)
class Probes:
    """The white-box audit with small classifiers on the outputs of layers.

    Use when: you have the models themselves, and an answer that looks right is not enough: changing the last layer alone can make every answer that of the retrained
    model, and this audit then says 1. A probe finds what forget samples have in common (a class, a group), because it is asked about forget samples that it has not
    seen; for single images that were learnt by heart it may find nothing, and the index then has no value. What cannot be found linearly, or by a small network, is not
    excluded by it.
    Cost: one forward pass of each model over at most 2 · max_per_side training images; 35 small fits a layer and model (2 s of CPU for 512 features and 1,000 samples
    a side).

    Args:
        layers: names of modules, as in model.named_modules(), the same in all models; None = the outputs of the model's stages, without the logits. Feature maps are
            averaged over the image.
        probe: "linear": logistic regression. "mlp": one hidden layer of 32.
        max_per_side: forget samples, and as many retain samples, at most, ≥ 16; one half of each for fitting.
        seed: in [0, 2**63), of the choice of samples, which are the same for all models.

    Raises:
        ConfigError: a setting is outside its range (at construction), or no original or no retrained model (when called).
        DataError: fewer than 16 forget or retain samples.

    Example:
        >>> from torch import nn
        >>> from expunge import Recipe, forget_classes, load_data, train_model
        >>> def build():
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> split, recipe = forget_classes(load_data("digits").train, [3]), Recipe(epochs=2)
        >>> model, *retrained = [train_model(build, data, recipe) for data in (split.train, split.retain)]
        >>> result = Probes()({"original": model, "untouched": model, "retrained": retrained}, split)
        >>> result.layers, result.n, str(result["untouched"].index) == str(result["original"].index)
        (('2',), 102, True)

    Paper: the index has the form of IDI (Jeon et al., AAAI 2026), with other estimates of the information.
    Departures: IDI bounds I(Z; Y) by InfoNCE with critics of its own, the rest of the network with a projection; their sizes, training and batches are not known to
        us, so this is not IDI and its numbers are not comparable with IDI's. Held-out bits of probes, intervals, floors and the refusal are ours.
    """

    name: ClassVar[str] = "probes"
    paper: ClassVar[str] = "after Jeon et al., AAAI 2026"

    layers: tuple[str, ...] | None = None
    probe: str = setting("linear", choices=PROBES)
    max_per_side: int = setting(1000, ge=LEAST)
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise ConfigError(
                f"Probes: layers must name different modules, at least one; got {self.layers!r}. Leave it out for the model's stages."
            )

    def __call__(
        self, models: Models, split: Split, *, reference: str = RETRAINED, level: float = 0.95, device: str | torch.device = "auto"
    ) -> ProbesResult:
        """Probes every model on the same samples of the training set.

        Args:
            models: by name, as for `audit`: "original", "retrained" (one or several), and any others.
            split: what was forgotten; the retain data must be there.
            reference: the name of the retrained models.
            level: confidence in (0, 1). device: where the models run.

        Raises:
            ConfigError, DataError: as the class says.
            MissingError: a layer that a model does not have. ModelError: see `features_at` and `stages`.
        """
        parts, (positions, forget, fit) = (
            cast(models, reference=reference),
            drawn_samples(split, self.max_per_side, self.seed, "probes need"),
        )
        check_level(level)
        data = split.train.subset(positions)
        layers = self.layers or tuple(stages(parts.named[ORIGINAL], data))
        features: dict[str, dict[str, Tensor]] = {}
        for done, (name, model) in enumerate(parts.named.items()):
            report(STAGE, done, len(parts.named), name)
            with placed(model, device):
                features[name] = features_at(model, layers, data)
        report(STAGE, len(parts.named), len(parts.named))
        bits = self._bits(layers, list(features.values()), forget, fit)
        found = compared_information(bits[:, :, None], parts, level)
        rows = [ProbeRow(row.model, row.information, row.differences, row.idi) for row in found.rows]
        return ProbesResult(layers, rows, found.total, found.floors, found.index_floor, bits.shape[2], self.probe)

    def _bits(self, layers: Sequence[str], features: Sequence[dict[str, Tensor]], forget: Tensor, fit: Tensor) -> Tensor:
        """Bits of every model, layer and held-out sample, (models, layers, H): layers of one width are fitted together."""
        bits = torch.empty(len(features), len(layers), int((~fit).sum()), dtype=torch.float64)
        keys = {(m, k): one[layer] for m, one in enumerate(features) for k, layer in enumerate(layers)}
        for width in {z.shape[1] for z in keys.values()}:
            same = [key for key, z in keys.items() if z.shape[1] == width]
            found = held_out_bits(torch.stack([keys[key] for key in same]), forget, fit, self.probe, self.seed)
            bits[tuple(torch.tensor(same).T)] = found
        return bits


def probe_index(own: Float[Tensor, " N"], original: Float[Tensor, " N"], retrained: Float[Tensor, "M N"], level: float = 0.95) -> Estimate:
    """(mean of own − R) / (mean of original − R), R the mean of the retrained models, on the same N samples: 0 = retrained, 1 = original, not clamped.

    `information_difference_index` with one classifier instead of several critics: its interval, and what that covers, are described there.

    Args:
        own, original: bits of each held-out sample, summed over layers.
        retrained: the same of M ≥ 1 retrained models.
        level: confidence in (0, 1).

    Example:
        >>> retrained, original = torch.zeros(1, 100).double(), torch.linspace(0.5, 1.5, 100).double()
        >>> print(probe_index(0.25 * original + 0.1 * torch.linspace(-1, 1, 100).cos().double(), original, retrained))
        0.334 [0.329, 0.340]
    """
    return information_difference_index(own[None], original[None], retrained[:, None], level)
