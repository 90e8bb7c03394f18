"""Toy problems small enough that every registered method takes the whole exam in seconds."""

import dataclasses

import torch
from torch import nn

from expunge.attacks import NearestL2PGD
from expunge.data.images import ImageData, Samples
from expunge.methods import METHODS, Method
from expunge.training.loop import sgd
from expunge.training.recipe import Recipe


def toy_net(channels: int = 1, n_classes: int = 10) -> nn.Module:
    """A convnet with BatchNorm, so that its running statistics are in the exam as well."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, n_classes),
    )  # fmt: skip


class Attending(nn.Module):
    """A transformer of one layer on rows of pixels, with a parameter that lies in no layer."""

    def __init__(self, side: int = 8, n_classes: int = 3) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, side))
        self.attention, self.norm, self.head = (
            nn.MultiheadAttention(side, 2, batch_first=True),
            nn.LayerNorm(side),
            nn.Linear(side, n_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([self.token.expand(len(images), -1, -1), images[:, 0]], 1)
        return self.head(self.norm(rows + self.attention(rows, rows, rows, need_weights=False)[0])[:, 0])


def configured(cls: type[Method], **overrides) -> Method:
    """The method with settings that are quick on a toy problem; whatever field a method shares with others is set for all of them here."""
    quick = {
        "epochs": 2,
        "teacher_epochs": 2,
        "batch_size": 8,
        "forget_batch_size": 2,
        "build": toy_net,
        "n_inputs": 500,
        "noise_images": 16,
        "copies": 4,
        "fisher_samples": 32,
        "n_adversarial": 2,
        "attack_steps": 5,
        "attack": NearestL2PGD(eps_init=0.2, steps=10),
        "n_made": 200,
        "recipe": Recipe(epochs=3, lr=0.05, batch_size=16),
    } | overrides
    names = {field.name for field in dataclasses.fields(cls)}
    if may_build(cls) and "build" not in overrides:
        del quick["build"]
    return cls(**{name: value for name, value in quick.items() if name in names})


def variants() -> list[Method]:
    """Every registered method; where it has the choice, with retain data and without, and with a function that builds a network and without."""
    methods = []
    for cls in METHODS.values():
        methods.append(configured(cls))
        if isinstance(cls.retain, property) and "use_retain" in cls.__dataclass_fields__:
            methods.append(configured(cls, use_retain=False))
        if may_build(cls):
            methods.append(configured(cls, build=toy_net))
    return methods


def may_build(cls: type[Method]) -> bool:
    """Whether it can do without a function that builds a network, or take one."""
    return "build" in cls.__dataclass_fields__ and cls.__dataclass_fields__["build"].default is None


def method_id(method: Method) -> str:
    built = may_build(type(method)) and method.build is not None
    return method.name + ("" if method.reads_retain else "-without-retain") + ("-build" if built else "")


def spy_on_sgd(monkeypatch, *modules) -> list:
    """What methods hand to the training loop, (sources, options) for each call: filled in while they run."""
    calls = []

    def spy(model, sources, objective, **options):
        calls.append((sources, options))
        sgd(model, sources, objective, **options)

    for module in modules:
        monkeypatch.setattr(module, "sgd", spy)
    return calls


class Watched(Samples):
    """A data set that remembers which samples were read, and can forbid some."""

    def __init__(self, data: ImageData, forbidden: tuple[int, ...] = ()) -> None:
        self.data, self.read, self.forbidden = data, set(), set(forbidden)
        self.labels, self.ids, self.classes, self.augment = data.labels, data.ids, data.classes, data.augment

    @property
    def shape(self):
        return self.data.shape

    @property
    def fingerprint(self):
        return self.data.fingerprint

    def fetch(self, positions):
        self.read.update(positions.tolist())
        assert not self.forbidden & set(positions.tolist()), "a sample was read that the method said it would not read"
        return self.data.fetch(positions)
