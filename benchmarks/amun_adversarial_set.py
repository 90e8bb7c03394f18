"""What of AMUN's adversarial set matters? CIFAR-10: other searches, another model's set, and substitutes with other images or other labels.

    python benchmarks/amun_adversarial_set.py --scale cpu --root data --store runs    # resumable; models are shared with plans/amun_cifar10_random10.toml

Data, models, forget set and audits are those of the plan file. AMUN with and without retain data,

- by PGD (its own search), DDN and FGSM, and with the set of another original (the paper's transfer), each with a step size of its own, tuned as in the plan;
- with the default step size and without retain data, on D_F + S and on S alone, where S is D_A or what the paper puts in its place: the forget images with the adversarial labels (AdvL),
  with random labels (RL), the adversarial images with random labels (ARL), and images at the same distance in a random direction with the adversarial labels (ARS). Random labels are
  neither the true nor the adversarial one.

Writes docs/results/amun_searches_<scale>.json and .md, and amun_substitutes_<scale>.json and .md.
"""

import dataclasses
from typing import ClassVar

import torch
from plan_options import parser  # beside this script
from torch import Tensor, nn

import expunge
from expunge import AMUN, AdversarialSet, NearestAttack, NearestDDN, NearestFGSM, NearestL2PGD
from expunge.bench import read_plan
from expunge.bench.point import points
from expunge.data.images import Samples
from expunge.training.fleet import load_trained, train_fleet
from expunge.tuning import development_split

SUBSTITUTES = {"D_A": (), "AdvL": ("images",), "RL": ("images", "labels"), "ARL": ("labels",), "ARS": ("direction",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Substitute(NearestAttack):
    """D_A with something else in the place of its images or labels; the same at each call. It overrides what is final in a search, that labels are the model's own: that is the ablation."""

    name: ClassVar[str] = "substitute"
    paper: ClassVar[str] = AMUN.paper
    passes: ClassVar[float] = NearestDDN.passes
    begin = step = None

    search: NearestAttack
    replaced: tuple[str, ...]

    def __call__(self, model: nn.Module, data: Samples) -> AdversarialSet:
        found = self.search(model, data)
        images, labels = data.fetch(torch.arange(len(data))), found.labels
        with expunge.rng.fork(0):
            if "images" in self.replaced:
                found = dataclasses.replace(found, images=images)
            if "direction" in self.replaced:
                found = dataclasses.replace(found, images=_on_sphere(images, found.distances))
            if "labels" in self.replaced:
                found = dataclasses.replace(found, labels=_other_labels(data.labels, labels, len(data.classes)))
        return found


def _on_sphere(images: Tensor, distances: Tensor) -> Tensor:
    """A point in a random direction of each image at its distance, clamped to [0, 1] as the paper does."""
    noise = torch.randn_like(images)
    return (images + noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * distances.view(-1, 1, 1, 1)).clamp(0, 1)


def _other_labels(true: Tensor, adversarial: Tensor, n_classes: int) -> Tensor:
    """A random label of each sample that is neither of the two."""
    weights = torch.ones(len(true), n_classes)
    weights.scatter_(1, true.unsqueeze(1), 0.0).scatter_(1, adversarial.unsqueeze(1), 0.0)
    return torch.multinomial(weights, 1).squeeze(1)


def another_set(plan: expunge.Plan, store: str, root: str) -> AdversarialSet:
    """The adversarial set of one more original, for the plan's forget set and for what tuning pretends to forget."""
    (point,) = points(plan, store, root)
    positions = torch.cat([point.split.forget_indices, development_split(point.split).forget_indices]).unique()
    attacked = point.split.train.subset(positions)
    task = dataclasses.replace(point.tasks["originals"][0], seed=plan.seeds, name="the other original")
    (cell,) = train_fleet([task], point.pool, point.store, workers=1)
    kept = point.store.cell("adversarial", {"model": cell.folder.name, "positions": positions, "attack": NearestDDN()})
    path = kept.folder / "set.safetensors"
    if not path.exists():
        NearestDDN()(load_trained(cell, point.build), attacked).save(path)
    return AdversarialSet.load(path)


def searches(other: AdversarialSet) -> dict[str, AMUN]:
    attacks = {"PGD": {"attack": NearestL2PGD()}, "DDN": {"attack": NearestDDN()}, "FGSM": {"attack": NearestFGSM()}}
    attacks["another model's"] = {"adversarial": other, "transferred": True}
    retain = {"": True, ", without retain data": False}
    return {f"{name}{suffix}": AMUN(use_retain=use, **attack) for suffix, use in retain.items() for name, attack in attacks.items()}


def substitutes() -> dict[str, AMUN]:
    found = {}
    for use_forget, suffix in ((True, "D_F + "), (False, "")):
        for name, replaced in SUBSTITUTES.items():
            found[f"{suffix}{name}"] = AMUN(
                use_retain=False, use_forget=use_forget, attack=Substitute(search=NearestDDN(), replaced=replaced)
            )
    return found


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    plan = dataclasses.replace(read_plan(options.plan, options.scale), paper={})
    parts = {
        "searches": dataclasses.replace(
            plan, methods=searches(another_set(plan, options.store, options.root)), title="AMUN with other adversarial sets"
        ),
        "substitutes": dataclasses.replace(plan, methods=substitutes(), tuning=0, title="What of the adversarial set matters"),
    }
    for name, part in parts.items():
        results = part.run(options.store, root=options.root, workers=options.workers)
        stem = f"amun_{name}_{options.scale or 'paper'}"
        results.to_json(options.out / f"{stem}.json")
        results.to_markdown(options.out / f"{stem}.md")
        print(results)


if __name__ == "__main__":
    main()
