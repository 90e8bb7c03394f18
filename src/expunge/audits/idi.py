"""The Information Difference Index: how much of what the features of the original tell about what was forgotten is left in the unlearned model, beyond what retraining leaves?

    I_l(θ) = InfoNCE bound of I(Z_l; Y) in bits, on held-out samples; y = forget or retain, balanced, so that I_l ≤ H(Y) = 1
    ID(θ)  = Σ_l (I_l(θ) − I_l(θ_R)),    IDI = ID(θ_U) / ID(θ_O)

Z_l is what layer l passes on. The critic of a layer is the rest of the network behind it with a projection, trained again, and two learned vectors, one a label (idi_critics.py has
the formula). 0 = like the retrained model, 1 = like the original, below 0 = over-unlearned: the features tell less than those of retraining. It is not clamped.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from ..checks import check_settings, setting
from ..data.split import Split
from ..device import device_of
from ..errors import ConfigError
from ..metrics.estimate import Estimate, check_level
from ..progress import report
from ..rng import derive, seed_setting
from ..training.features import features_at, stages
from .compared import ORIGINAL, RETRAINED, Models, cast, placed, plain
from .idi_critics import cut, held_out_information
from .information import LEAST, compared_information, drawn_samples

STAGE = "training critics"


@final
@dataclass(frozen=True, eq=False)
class IDIRow:
    """One model.

    Attributes:
        model: its name.
        information: I_l in bits for each layer, mean over critics, at most 0.993; the interval is over samples and critics.
        differences: I_l minus the mean of the retrained models (for one of them: of the others), paired; empty for the only retrained model.
        index: IDI.
        by_critic: IDI by each seed of the critics alone; empty where the index has no value.
    """

    model: str
    information: tuple[Estimate, ...]
    differences: tuple[Estimate, ...]
    index: Estimate
    by_critic: tuple[float, ...]


@final
@dataclass(frozen=True, eq=False)
class IDIResult:
    """All models, layer by layer.

    Attributes:
        layers: names, in the order of the model.
        rows: an `IDIRow` for each model.
        total: ID(θ_O) in bits, what the index divides by.
        floors: for each layer |I_l of a retrained model − mean of the others|: what chance alone does. index_floor: (Σ_l I_l of a retrained model − mean of the
            others) / total, signed: what the IDI of one more retrained model would be.
        n: held-out samples, half of them forget samples. seeds: critics a layer.
    """

    layers: tuple[str, ...]
    rows: list[IDIRow]
    total: Estimate
    floors: tuple[Estimate, ...]
    index_floor: Estimate
    n: int
    seeds: int

    def __getitem__(self, model: str) -> IDIRow:
        return {row.model: row for row in self.rows}[model]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the report."""
        rows = [
            {
                "model": r.model, "information": plain(r.information), "differences": plain(r.differences), "index": plain(r.index),
                "by_critic": plain(r.by_critic),
            }
            for r in self.rows
        ]  # fmt: skip
        return {
            "layers": list(self.layers), "rows": rows, "total": plain(self.total), "floors": plain(self.floors), "index_floor": plain(self.index_floor),
            "n": self.n, "seeds": self.seeds,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"InfoNCE, {self.seeds} critics a layer, {self.n} held-out samples, bits at {', '.join(self.layers)}"]
        lines += [f"{r.model}: {', '.join(f'{i.value:.3f}' for i in r.information)}; IDI {r.index:.2f}" for r in self.rows]
        return "\n".join([*lines, f"floor of IDI: {self.index_floor:.2f}"])


@final
@dataclass(frozen=True, kw_only=True)
class IDI:
    """The white-box audit with critics: for each model and layer, copies of all that comes behind the layer learn to tell forget from retain samples by what the layer passes on.

    Use when: you have the models, the answers look right, and the literature's number is wanted. A model of which only the last layer was changed answers as it likes and has an IDI of exactly
    1: critics leave that layer out. `Probes` asks the same of linear classifiers on averaged features and is many times faster; critics read whole feature maps through
    several layers and can find more, in retrained models too. For single images that were learnt by heart critics may find nothing on others, and the index then has no value.
    Labels are balanced, whatever the sizes of the sets: I_l then has the highest ceiling, 1 bit, and that of a small forget set is not lost in it. The critic of a layer and seed begins in all models with
    the same projection and sees the same samples in the same order.
    Cost: for each model, layer and seed at most steps · batch_size samples forward and backward through the layers behind (with 1,000 a side about 25 passes over 750 samples), and one forward pass for each model
    and layer. Memory: what one layer passes on for all samples; 0.5 GB for 2,000 of a ResNet-18's first stage at 32×32.

    Args:
        layers: names of modules, as in model.named_modules(), the same in all models; None = the outputs of the model's stages, without the logits. Critics go on
            up to the last stage.
        max_per_side: forget samples, and as many retain samples, at most, ≥ 16; one half of each for training critics.
        seeds: critics a layer, ≥ 2. Paper: 5.
        steps: of each critic's training at most, ≥ 1; it ends where no step has been better for 100.
        lr: of Adam for the copied layers, > 0; the projection and the label vectors learn ten times as fast.
        batch_size: half of it of either label, ≥ 2.
        seed: in [0, 2**63), of the choice of samples, which are the same for all models, and of critics.

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
        >>> result = IDI(seeds=2, steps=50)({"original": model, "untouched": model, "retrained": retrained}, split)
        >>> result.layers, result.n, str(result["untouched"].index) == str(result["original"].index)
        (('2',), 102, True)

    Paper: Jeon et al., "An Information Theoretic Evaluation Metric for Strong Unlearning", AAAI 2026, arXiv:2405.17878; five trials, critics of the remaining layers with a projection,
        two trainable vectors for the labels.
    Departures: read from its abstract, its reviews and notes of third parties; its code, and with it the sizes, training and batches of the critics, which layers count, the balance of labels and
        whether the bound is taken on held-out samples, is not known to us: compare numbers with those of other implementations with care. Ours: a projection to 64 dimensions on standardised features,
        Adam instead of SGD, BatchNorm's statistics as they are, balanced labels, the best step chosen on a quarter of the training half, 1 % of a coin toss in every answer
        (`cautious`), held-out samples, intervals, floors and the refusal.
    """

    name: ClassVar[str] = "idi"
    paper: ClassVar[str] = "Jeon et al., AAAI 2026, arXiv:2405.17878"

    layers: tuple[str, ...] | None = None
    max_per_side: int = setting(1000, ge=LEAST)
    seeds: int = setting(5, ge=2)
    steps: int = setting(300, ge=1)
    lr: float = setting(0.0003, gt=0)
    batch_size: int = setting(64, ge=2)
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise ConfigError(
                f"IDI: layers must name different modules, at least one; got {self.layers!r}. Leave it out for the model's stages."
            )

    def __call__(
        self, models: Models, split: Split, *, reference: str = RETRAINED, level: float = 0.95, device: str | torch.device = "auto"
    ) -> IDIResult:
        """Trains the critics of every model on the same samples of the training set.

        Args:
            models: by name, as for `audit`: "original", "retrained" (one or several), and any others. Copies are trained.
            split: what was forgotten; the retain data must be there.
            reference: the name of the retrained models.
            level: confidence in (0, 1). device: where models and critics run.

        Raises:
            ConfigError, DataError: as the class says.
            MissingError: a layer that a model does not have. ModelError: see `features_at`, `stages` and `Remaining`.
        """
        parts, (positions, forget, fit) = cast(models, reference=reference), drawn_samples(split, self.max_per_side, self.seed, "IDI needs")
        check_level(level)
        data = split.train.subset(positions)
        ends = stages(parts.named[ORIGINAL], data)
        layers = self.layers or tuple(ends)
        for model in parts.named.values():  # what does not fit is refused before the first critic is trained
            features_at(model, list(dict.fromkeys([*layers, ends[-1]])), data.subset(range(2)))
        bits = torch.empty(len(parts.named), len(layers), self.seeds, int((~fit).sum()), dtype=torch.float64)
        total = len(parts.named) * len(layers)
        for m, (name, model) in enumerate(parts.named.items()):
            with placed(model, device) as there:
                for k, layer in enumerate(layers):
                    report(STAGE, m * len(layers) + k, total, f"{name}, {layer}")
                    remaining, z = cut(there, layer, ends[-1], data)
                    bits[m, k] = held_out_information(
                        remaining, z.to(device_of(there)), forget, fit, steps=self.steps, lr=self.lr, batch_size=self.batch_size,
                        seeds=[derive(self.seed, k, s) for s in range(self.seeds)],
                    )  # fmt: skip
        report(STAGE, total, total)
        found = compared_information(bits, parts, level)
        rows = [IDIRow(*row) for row in found.rows]
        return IDIResult(layers, rows, found.total, found.floors, found.index_floor, bits.shape[3], self.seeds)
