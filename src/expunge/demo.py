"""The whole story on the digits that come with scikit-learn: train, forget, and audit against retraining.

Everything goes through a store, so that a second run only reads, and an interrupted one goes on where it was.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from . import progress
from .auditing import audit
from .audits.lira import LiRA
from .audits.loss_threshold import LossThreshold
from .audits.rmia import RMIA
from .checks import check_settings, setting
from .data.images import Samples
from .data.load import load_data
from .data.pool import pool
from .data.split import Split, forget_random
from .methods import AMUN, FineTune, Method
from .models import Architecture, architecture
from .rng import seed_setting
from .store import Store
from .stored import unlearn_stored
from .training.fleet import TrainTask, load_trained, train_fleet
from .training.recipe import Recipe
from .training.schedules import Step
from .training.shadow import train_shadow_models

REVISION = 3  # raised when the audit's numbers change, so that a stored result of an older version is not shown


@final
@dataclass(frozen=True, kw_only=True)
class Demo:
    """Settings of the demonstration: 1000 digits to train on, a tenth of them to forget.

    Args:
        n_forget: random training digits to forget, ≥ 1.
        n_retrained: retrained models, ≥ 2: the yardstick, and the others for the null floor.
        n_shadows: shadow models, even, ≥ 16.
        recipe: how all of them are trained. Without weight decay, so that the network learns its digits by heart.
        methods: what is compared, by name. Learning rates were chosen on another forget set, without looking at a retrained model.
        seed: in [0, 2**63), of the forget set and the methods.
    """

    n_forget: int = setting(100, ge=1)
    n_retrained: int = setting(3, ge=2)
    n_shadows: int = setting(32, ge=16)
    recipe: Recipe = setting(factory=lambda: Recipe(epochs=40, lr=0.05, batch_size=64, weight_decay=0.0))
    methods: dict[str, Method] = setting(
        factory=lambda: {
            "AMUN": AMUN(epochs=5, lr=0.01, batch_size=64, schedule=Step(every=2)),
            "AMUN without retain data": AMUN(lr=0.003, batch_size=64, use_retain=False),
            "FineTune": FineTune(lr=0.05, batch_size=64),
        }
    )
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self, store: str | Path, *, workers: int | str = "auto", device: str | torch.device = "auto") -> dict[str, Any]:
        """The audit's result as plain values (see `Audit.to_dict`), computed, or read from the store if everything in it is done.

        Raises:
            StoreError: the store cannot be written.

        Cost: on two cores less than three minutes; the second time nothing.
        """
        kept = Store(Path(store))
        train, test = load_data("digits")
        build = architecture("small", train)
        spec = {"demo": self, "build": build, "data": train.fingerprint, "test": test.fingerprint, "revision": REVISION}
        cell = kept.cell("demo", spec)
        cell.ensure(lambda: cell.finish(self._audit(kept, build, train, test, {"workers": workers, "device": device})))
        return cell.result()

    def _audit(self, store: Store, build: Architecture, train: Samples, test: Samples, where: dict[str, Any]) -> dict[str, Any]:
        split = forget_random(train, self.n_forget, seed=self.seed)
        shadows = train_shadow_models(build, train, test, n=self.n_shadows, recipe=self.recipe, store=store, **where)
        cells = train_fleet(self._tasks(build, split), pool(train, test), store, **where)
        original, *retrained = (load_trained(cell, build) for cell in cells)
        unlearned = {}
        for done, (name, method) in enumerate(self.methods.items()):
            progress.report("unlearning", done, len(self.methods), name)
            with progress.silent():  # a method's own stages are too short to be shown
                unlearned[name] = unlearn_stored(method, original, split, build=build, store=store, seed=self.seed, device=where["device"])
        details = {
            "original": f"trained on all {len(train)} digits: {self.recipe}",
            "retrained": f"trained without the {self.n_forget}, alike",
        }
        seconds = {"original": cells[0].result()["seconds"], "retrained": cells[1].result()["seconds"]}
        result = audit(
            {"original": original} | {name: u.model for name, u in unlearned.items()} | {"retrained": retrained},
            split,
            test,
            attacks=[LossThreshold(), RMIA(), LiRA()],  # the last one enters the average gap: on few, easy images LiRA sees most
            shadows=shadows,
            seconds=seconds | {name: u.seconds for name, u in unlearned.items()},
            details=details | {name: str(method) for name, method in self.methods.items()},
            title=f"Forgetting {self.n_forget} handwritten digits",
            device=where["device"],
        )
        return result.to_dict()

    def _tasks(self, build: Architecture, split: Split) -> list[TrainTask]:
        """The original, and the retrained models with seeds of their own."""
        everything = torch.arange(len(split.train))
        kinds = [("original", everything, 0), *(("retrained", split.retain.positions, k) for k in range(1, self.n_retrained + 1))]
        return [TrainTask(build=build, recipe=self.recipe, positions=p, seed=s, kind=k, name=f"{k} model {s}") for k, p, s in kinds]
