"""What an audit found: accuracies, membership scores and gaps of each model, ready to print, to store, or to draw."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ..checks import choose
from ..errors import MissingError
from ..metrics.estimate import Estimate
from ..metrics.gap import GROUPS, Gaps
from ..metrics.roc import roc_band
from ..report import write
from ..report.twins import is_reference
from ..spectral.spectrum import Spectrum
from ..store.files import write_json
from .class_answers import ClassAnswers
from .factors import Factors
from .measures import Measured
from .risk import Risk
from .tables import Table, as_text, notes, tables
from .verdict import Verdict

HISTOGRAM_BINS = 40
ROC_POINTS = 120


@final
@dataclass(frozen=True)
class Flag:
    """A health flag that was raised; docs/flags.md says what to do about it."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


@final
@dataclass(frozen=True, eq=False)
class ModelRow:
    """One model: its accuracies, fractions in [0, 1], and its gaps to the reference (None for the reference itself, or without one).

    Where whole classes are forgotten, `forget_test` is the accuracy on unseen images of these classes and `test` that on the others; elsewhere it is None.
    """

    name: str
    forget: Estimate
    forget_test: Estimate | None
    retain: Estimate | None
    test: Estimate
    gaps: Gaps | None
    margins: dict[str, Tensor] = field(repr=False)  # logit margin of each sample of "forget", "forget_test", "retain", "test"
    seconds: float | None = None
    details: str | None = None
    hash: str | None = None  # of its weights, whatever its file is called; None where there were answers alone


@final
@dataclass(frozen=True, eq=False)
class AttackRow:
    """One attack on one model: forget samples as members against test samples as non-members."""

    attack: str
    model: str
    area: Estimate
    tpr: Estimate
    fpr: float
    gap: Estimate | None  # AUC minus the reference's, paired; None for the reference itself
    members: Tensor = field(repr=False)
    nonmembers: Tensor = field(repr=False)

    @property
    def auc(self) -> float:
        return self.area.value

    @property
    def auc_low(self) -> float:
        return self.area.low

    @property
    def auc_high(self) -> float:
        return self.area.high


@final
@dataclass(frozen=True, eq=False)
class Audit:
    """The result of `expunge.audit`. `print(audit)` shows the tables; `audit["RMIA", "unlearned"].auc` is one number of them.

    Attributes:
        models: one row a model. attacks: one row for each attack and model.
        reference: the name of the retrained model that gaps are to, or None.
        floor: the largest average gap between the reference and another retrained model: what chance alone does; None without another.
        flags: what makes the numbers less certain than they look.
        sizes: how many forget, retain and test samples and shadow models there were.
        classes: for each forgotten class, what the models answer on its unseen images; empty where no whole class is forgotten.
        factors: of AMUN's theorem, by model, if they were measured (see `expunge.factors`).
        spectra: the layers' largest singular values, by model, if they were computed (see `expunge.spectrum`).
        verdicts: whether each model can be told from the retrained ones; empty without one.
        measures: further ones that were asked for (see `audits.MEASURES`).
        risks: by model, for each forget sample the probability that an attacker gives to its having been trained on (see `audits.membership_risk`); empty without shadow models.
        thumbnails, labels: pictures (as data URIs) and class names of the most exposed forget samples, by id.
        protocol: name of the frozen protocol that was followed, such as "standard-1", or None.
        forget: the size and the hashes of the forget set (see `models.lineage.describe_split`), so that a result belongs to one request; None without a split.

    Example:
        >>> import torch, expunge
        >>> from expunge.audits import Audited
        >>> labels = torch.tensor([0, 1]).repeat(20)
        >>> sure = torch.eye(2)[labels] * torch.linspace(0, 1, 40)[:, None]
        >>> audited = Audited(labels={"forget": labels, "test": labels}, classes=("cat", "dog"))
        >>> result = expunge.audit_answers({"original": {"forget": 2 * sure + sure, "test": sure}}, audited)
        >>> result["LossThreshold", "original"].auc > 0.5
        True
    """

    models: list[ModelRow]
    attacks: list[AttackRow]
    reference: str | None
    floor: Estimate | None
    flags: list[Flag]
    sizes: dict[str, int]
    provenance: dict[str, Any]
    title: str = "Audit of unlearning"
    classes: list[ClassAnswers] = field(default_factory=list)
    factors: dict[str, Factors] = field(default_factory=dict)
    spectra: dict[str, Spectrum] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    protocol: str | None = None
    measures: list[Measured] = field(default_factory=list)
    risks: dict[str, Risk] = field(default_factory=dict)
    thumbnails: dict[int, str] = field(default_factory=dict, repr=False)
    labels: dict[int, str] = field(default_factory=dict, repr=False)
    forget: dict[str, Any] | None = None

    def __getitem__(self, key: tuple[str, str]) -> AttackRow:
        attack, model = key
        choose("attack", attack, dict.fromkeys(row.attack for row in self.attacks))
        choose("model", model, [row.name for row in self.models])
        return next(row for row in self.attacks if (row.attack, row.model) == (attack, model))

    def model(self, name: str) -> ModelRow:
        """The row of one model."""
        for row in self.models:
            if row.name == name:
                return row
        raise MissingError(f"no model named {name!r}; known: {', '.join(row.name for row in self.models)}.")

    def verdict(self, name: str) -> Verdict:
        """Whether this model can be told from the retrained ones."""
        for verdict in self.verdicts:
            if verdict.model == name:
                return verdict
        raise MissingError(
            f"no verdict on a model named {name!r}; there are ones on {', '.join(v.model for v in self.verdicts) or 'none'}. "
            "A verdict needs retrained models beside the audited one: pass 'retrained': [a, b, c]."
        )

    def tables(self) -> list[Table]:
        """The tables that are printed, as text."""
        return tables(self.to_dict())

    def notes(self) -> list[str]:
        """What belongs under the tables: sample sizes, the null floor, flags."""
        return notes(self.to_dict())

    def __str__(self) -> str:
        return as_text(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values: what `to_json` writes and the report is made of."""
        return {
            "title": self.title,
            "created": self.provenance.get("date", ""),
            "provenance": self.provenance,
            "reference": self.reference,
            "sizes": self.sizes,
            "forget": self.forget,
            "models": [_model_dict(row) for row in self.models],
            "attacks": [_attack_dict(row) for row in self.attacks],
            "floor": self.floor and self.floor.to_dict(),
            "histograms": _histograms(self.models),
            "classes": [answers.to_dict() for answers in self.classes],
            "factors": {name: found.to_dict() for name, found in self.factors.items()},
            "spectra": {name: found.to_dict() for name, found in self.spectra.items()},
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "protocol": self.protocol,
            "measures": [found.to_dict() for found in self.measures],
            "risks": self._risks(),
            "flags": [{"name": flag.name, "message": flag.message} for flag in self.flags],
        }

    def most_exposed(self, k: int = 24) -> list[int]:
        """Ids of the k forget samples whose risk is highest under the first audited model that is neither original nor retrained, else under the original."""
        ranked_by = self._ranked_by()
        return [] if ranked_by is None else [sample for sample, _ in self.risks[ranked_by].riskiest(k)]

    def _ranked_by(self) -> str | None:
        known = ("original", "control")
        audited = [name for name in self.risks if name not in known and not is_reference(name, self.reference)]
        return next(iter([*audited, *self.risks]), None)

    def _risks(self) -> dict[str, Any] | None:
        name = self._ranked_by()
        if name is None:
            return None
        examples = [
            {
                "id": sample, "label": self.labels.get(sample), "image": self.thumbnails.get(sample),
                "risks": {model: _plain(risk[sample]) for model, risk in self.risks.items()},
            }
            for sample in self.most_exposed()
        ]  # fmt: skip
        return {"n": self.sizes["forget"], "level": self.risks[name].level, "by": name, "examples": examples}

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON text; also written to `path` if given, whole or not at all. StoreError if it cannot be written."""
        return write_json(self.to_dict(), path)

    def to_html(self, path: str | Path) -> None:
        """Writes one self-contained page with tables, ROC curves, histograms, flags and the numbers as JSON."""
        write(self.to_dict(), path)


def _model_dict(row: ModelRow) -> dict[str, Any]:
    gaps = row.gaps and {name: _plain(gap) for name, gap in row.gaps._asdict().items()}
    accuracies = {group: _plain(getattr(row, group)) for group in GROUPS}
    return {"name": row.name} | accuracies | {"gaps": gaps, "seconds": row.seconds, "details": row.details, "hash": row.hash}


def _attack_dict(row: AttackRow) -> dict[str, Any]:
    lowest = 1 / len(row.nonmembers)
    fprs = torch.logspace(torch.tensor(lowest).log10().item(), 0, ROC_POINTS).clamp(lowest, 1).tolist()
    band = roc_band(row.members, row.nonmembers, fprs)
    return {
        "attack": row.attack, "model": row.model, "auc": _plain(row.area), "tpr": _plain(row.tpr), "fpr": row.fpr, "gap": _plain(row.gap),
        "roc": {name: [round(v, 6) for v in getattr(band, name).tolist()] for name in ("fpr", "tpr", "low", "high")},
    }  # fmt: skip


def _histograms(models: list[ModelRow]) -> list[dict[str, Any]]:
    """Densities of the margins of all models over the same bins; the outermost 0.5 % on either side are counted in the last bins."""
    every = torch.cat([m for row in models for m in row.margins.values()])
    low, high = torch.quantile(
        every[torch.linspace(0, len(every) - 1, min(len(every), 100_000)).long()], torch.tensor([0.005, 0.995])
    ).tolist()
    edges = torch.linspace(low, max(high, low + 1e-3 * max(1.0, abs(low))), HISTOGRAM_BINS + 1)  # a model may answer everything alike
    width = float(edges[1] - edges[0])

    def densities(margins: Tensor | None) -> list[float] | None:
        if margins is None:
            return None
        counts = torch.histogram(margins.clamp(low, float(edges[-1])), edges).hist
        return [round(v, 6) for v in (counts / len(margins) / width).tolist()]

    return [
        {"model": row.name, "edges": [round(v, 4) for v in edges.tolist()]} | {name: densities(row.margins.get(name)) for name in GROUPS}
        for row in models
    ]


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_dict()
