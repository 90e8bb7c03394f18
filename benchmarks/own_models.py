"""Which methods, measures and speed-ups work with which kind of network: each is run, and the table of docs/own_models.md says what happened.

    python benchmarks/own_models.py                                   # some minutes on one core; writes the table
    python benchmarks/own_models.py --networks "timm ViT" --only trw  # prints these alone

Tiny networks of torchvision, timm and transformers, trained for a moment on 60 of scikit-learn's digits (32×32, three channels); 12 of them, or a class, must leave. "yes" = a new model with other,
finite weights under the same names, and the same bits again from the same seed. Else the error's first sentence: one of expunge's own is a refusal, any other a fault of ours. How well a
method forgets on such a network is another question, for an audit.
"""

import argparse
import dataclasses
import pathlib
import re
import warnings
from collections.abc import Callable

import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

import expunge
from expunge import Recipe
from expunge.audits.measures import MEASURES
from expunge.data.images import ImageData
from expunge.errors import ExpungeError
from expunge.methods import METHODS, Method
from expunge.models.outputs import LogitsOnly

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "own_models.md"
MARKS = "<!-- table -->", "<!-- end of table -->"
RECIPE = Recipe(epochs=1, lr=0.02, batch_size=16)
QUICK = {
    "epochs": 1, "max_epochs": 1, "teacher_epochs": 1, "batch_size": 16, "forget_batch_size": 6, "n_inputs": 60, "noise_images": 8, "copies": 2, "fisher_samples": 8,
    "n_adversarial": 1, "attack_steps": 3, "n_made": 20, "recipe": RECIPE, "until": None,
}  # fmt: skip
OWN = {"ssd": {"alpha": 1.0}}  # on 60 images no weight is ten times as important for 12 of them
SMALL = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision ResNet": lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10),
    "torchvision MobileNet": lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25),
    "torchvision SqueezeNet": lambda: torchvision.models.squeezenet1_1(num_classes=10),
    "torchvision ViT": lambda: torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    ),
    "timm ViT": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, **TINY),
    "timm ConvNeXt": lambda: timm.create_model("convnext_atto", num_classes=10, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "transformers ResNet": lambda: LogitsOnly(
        ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10))
    ),
    "transformers ViT": lambda: LogitsOnly(ViTForImageClassification(ViTConfig(num_labels=10, **SMALL))),
}


@dataclasses.dataclass
class Subject:
    """A network that has learnt its images, and what must leave."""

    build: Callable[[], nn.Module]
    model: nn.Module
    samples: expunge.Split
    classes: expunge.Split
    test: ImageData

    def split(self, scenario: str) -> expunge.Split:
        return self.classes if scenario == "classes" else self.samples


def subject(name: str) -> Subject:
    train, test = (enlarged(data, 60) for data in expunge.load_data("digits"))
    build = Normalized(name)
    torch.manual_seed(0)
    model = build()
    expunge.sgd(model, train, epochs=15, lr=2e-3, batch_size=16, optimizer="adam", weight_decay=0.0, seed=0)
    return Subject(build, model.eval(), expunge.forget_samples(train, range(12)), expunge.forget_classes(train, [3]), test)


@dataclasses.dataclass(frozen=True)
class Normalized:
    """Builds one of NETWORKS with its normalisation in front."""

    name: str

    def __call__(self) -> nn.Module:
        return expunge.with_normalize(NETWORKS[self.name](), (0.5,) * 3, (0.5,) * 3)


def enlarged(data: expunge.Samples, n: int) -> ImageData:
    pixels = functional.interpolate(data.fetch(torch.arange(n)), size=(32, 32), mode="bilinear") * 255
    return ImageData(pixels.round().to(torch.uint8).repeat(1, 3, 1, 1), data.labels[:n], data.classes)


def tried(work: Callable[[], str]) -> str:
    """ "yes", or why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except ExpungeError as error:
        return str(error).split(". ")[0].split("; ")[0]
    except Exception as error:  # a fault of ours, and the table is to show it
        return f"FAULT: {type(error).__name__}: {str(error).splitlines()[0][:120]}"


def method_works(cls: type[Method], on: Subject) -> str:
    names = {field.name for field in dataclasses.fields(cls)}
    method = cls(**{name: value for name, value in (QUICK | OWN.get(cls.name, {}) | {"build": on.build}).items() if name in names})
    before = on.model.state_dict()
    first, again = (method(on.model, on.split(cls.scenario)).state_dict() for _ in range(2))
    if list(first) != list(before) or not all(v.isfinite().all() for v in first.values()):
        return "FAULT: other names, or weights that are not finite"
    if not all(torch.equal(first[name], again[name]) for name in first):
        return "FAULT: other bits from the same seed"
    return "yes" if any(not torch.equal(first[name], before[name]) for name in first) else "nothing changes"


def measure_works(name: str, on: Subject) -> str:
    split = on.split("classes" if name in ("over_unlearning", "prototypes") else "any")
    if name == "probes":  # they need 16 samples of each kind
        split = expunge.forget_samples(split.train, range(20))
    retrained = [expunge.Retrain(build=on.build, recipe=RECIPE)(on.model, split, seed=seed) for seed in (1, 2)]
    expunge.audit({"original": on.model, "retrained": retrained}, split, on.test, measures=[name])
    return "yes"


def bound_is_known(on: Subject) -> str:
    bound = expunge.spectrum(on.model, on.test.shape).bound
    return "yes" if bound.value is not None else re.sub(r" in \S+", "", bound.reason.split(". ")[0])  # without the layer's name


def bfloat16_works(on: Subject) -> str:
    model = expunge.train_model(on.build, on.samples.train, dataclasses.replace(RECIPE, precision="bfloat16"))
    return "yes" if all(p.dtype == torch.float32 for p in model.parameters()) else "FAULT: weights in another precision"


def channels_last_works(on: Subject) -> str:
    images = on.test.fetch(torch.arange(20))
    with torch.no_grad():
        plain, fast = on.model(images), on.model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    on.model.to(memory_format=torch.contiguous_format)
    return "yes" if torch.allclose(plain, fast, rtol=1e-3, atol=1e-3) else "FAULT: other answers"


CHECKS: dict[str, Callable[[Subject], str]] = {
    **{f"`{cls.__name__}`": (lambda on, cls=cls: method_works(cls, on)) for cls in METHODS.values()},
    # idi fits networks of its own for each layer, which takes minutes even here; it needs what probes need
    **{f"measure `{name}`": (lambda on, name=name: measure_works(name, on)) for name in MEASURES if name != "idi"},
    "Lipschitz bound of `spectrum`": bound_is_known,
    "bfloat16": bfloat16_works,
    "channels last": channels_last_works,
}


def table(results: dict[str, dict[str, str]]) -> str:
    """Markdown: everything that works everywhere in one sentence, a row for each of the others, and the reasons below."""
    everywhere = [check for check, row in results.items() if set(row.values()) == {"yes"}]
    reasons = list(dict.fromkeys(found for row in results.values() for found in row.values() if found != "yes"))
    networks = list(next(iter(results.values())))
    lines = [
        f"On all of {', '.join(networks)}: {', '.join(everywhere)}.",
        "",
        f"| | {' | '.join(networks)} |",
        "|---" * (len(networks) + 1) + "|",
    ]
    for check, row in results.items():
        if check not in everywhere:
            lines.append(f"| {check} | {' | '.join('yes' if v == 'yes' else f'no ({reasons.index(v) + 1})' for v in row.values())} |")
    return "\n".join([*lines, "", *(f"{k}. {reason}" for k, reason in enumerate(reasons, start=1))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="", help="comma between names; default: all")
    parser.add_argument("--only", default="", help="a part of the names of methods and measures; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = options.networks.split(",") if options.networks else list(NETWORKS)
    results: dict[str, dict[str, str]] = {check: {} for check in CHECKS if options.only.lower() in check.lower()}
    if not results:
        parser.error(f"--only must be a part of one of these: {', '.join(CHECKS)}; got {options.only}")
    for name in networks:
        on = subject(name)
        print(
            f"{name}: accuracy on its images {float((expunge.logits_of(on.model, on.samples.train).argmax(1) == on.samples.train.labels).float().mean()):.2f}",
            flush=True,
        )
        for check, row in results.items():
            row[name] = tried(lambda check=check, on=on: CHECKS[check](on))
            print(f"  {check}: {row[name]}", flush=True)
    print("\n" + table(results))
    if not options.networks and not options.only:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
        PAGE.write_text(f"{before}{MARKS[0]}\n\n{table(results)}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
