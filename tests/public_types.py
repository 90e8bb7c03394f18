"""What a type checker must say about users' code. Never run: `.ci/run` gives it to mypy, with the package installed from its wheel."""

from pathlib import Path
from typing import assert_type

from torch import Tensor, nn

import expunge


def unlearn(model: nn.Module, split: expunge.Split) -> None:
    assert_type(expunge.AMUN()(model, split), nn.Module)
    assert_type(expunge.TRW(beta=0.0)(model, split, seed=1, device="cpu"), nn.Module)
    assert_type(expunge.AMUN.as_published("ICML 2025"), expunge.AMUN)
    assert_type(split.forget.labels, Tensor)


def own_data(images: Tensor, labels: Tensor) -> None:
    data = expunge.ImageData(images, labels, ("cat", "dog"))
    assert_type(expunge.forget_samples(data, [17, 42]), expunge.Split)
    assert_type(expunge.architecture("small", data)(), nn.Module)
    assert_type(data.shape, tuple[int, int, int])


def audit(original: nn.Module, unlearned: nn.Module, retrained: list[nn.Module], split: expunge.Split, test: expunge.Samples) -> None:
    result = expunge.audit({"original": original, "unlearned": unlearned, "retrained": retrained}, split, test)
    assert_type(result, expunge.Audit)
    assert_type(expunge.RMIA(online=False)(unlearned(split.train.images), test.labels), Tensor)


def train(data: expunge.Samples, build: expunge.Architecture, store: Path) -> None:
    recipe = expunge.Recipe(epochs=3, schedule=expunge.Cosine(), clip=expunge.Clip(max_norm=1.0))
    assert_type(expunge.train_model(build, data, recipe), nn.Module)
    assert_type(expunge.train_shadow_models(build, data, data, n=16, recipe=recipe, store=store), expunge.ShadowModels)
