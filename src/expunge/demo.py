"""The whole story on the digits that come with scikit-learn: train, forget, and audit against retraining.

Everything goes through a store, so that a second run only reads, and an interrupted one goes on where it was.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from . import progress
from .audit import audit
from .audits.lira import LiRA
from .audits.loss_threshold import LossThreshold
from .audits.rmia import RMIA
from .checks import check_settings, setting
from .data.load import load_data
from .data.pool import pool
from .data.split import forget_random
from .methods import AMUN, FineTune, Method
from .models import architecture
from .store import Store
from .stored import unlearn_stored
from .training.fleet import TrainTask, load_trained, train_fleet
from .training.recipe import Recipe
from .training.schedules import Step
from .training.shadow import train_shadow_models

REVISION = 1  # raised when the audit's numbers change, so that a stored result of an older version is not shown


@final
@dataclass(frozen=True, kw_only=True)
class Demo:
    """Settings of the demonstration: 1000 digits to train on, a tenth of them to forget.

    Args:
        n_forget: random training digits to forget, ≥ 1.
        n_retrained: retrained models, ≥ 2: the yardstick, and the others for the null floor.
        n_shadows: shadow models, even, ≥ 16.
        recipe: how all of them are trained.
        methods: what is compared, by name.
        seed: of the forget set and the methods.
    """

    n_forget: int = setting(100, ge=1)
    n_retrained: int = setting(3, ge=2)
    n_shadows: int = setting(32, ge=16)
    recipe: Recipe = setting(factory=lambda: Recipe(epochs=25, lr=0.1, batch_size=64))
    methods: dict[str, Method] = setting(
        factory=lambda: {
            "AMUN": AMUN(epochs=5, lr=0.02, batch_size=64, schedule=Step(every=2)),
            "AMUN without retain data": AMUN(epochs=5, lr=0.005, batch_size=64, schedule=Step(every=2), use_retain=False),
            "FineTune": FineTune(epochs=5, lr=0.02, batch_size=64),
        }
    )
    seed: int = setting(0, ge=0)

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self, store: str | Path, *, workers: int | str = "auto", device: str | torch.device = "auto") -> dict[str, Any]:
        """The audit's result as plain values (see `Audit.to_dict`), computed, or read from the store if everything in it is done.

        Raises:
            StoreError: the store cannot be written.

        Cost: on two cores less than three minutes; the second time nothing.
        """
        store = Store(Path(store))
        train, test = load_data("digits")
        build = architecture("small", train)
        cell = store.cell("demo", {"demo": self, "build": build, "data": train.fingerprint, "test": test.fingerprint, "revision": REVISION})
        while not cell.done:
            with cell.claim() as mine:
                if mine:
                    cell.finish(self._audit(store, train, test, build, workers, device))
        return cell.result()

    def _audit(self, store, train, test, build, workers, device) -> dict[str, Any]:
        split = forget_random(train, self.n_forget, seed=self.seed)
        everything = pool(train, test)
        tasks = [
            TrainTask(build=build, recipe=self.recipe, positions=positions, seed=seed, kind=kind, name=f"{kind} model {seed}")
            for kind, positions, seeds in [
                ("original", torch.arange(len(train)), [0]),
                ("retrained", split.retain.ids, range(1, self.n_retrained + 1)),
            ]
            for seed in seeds
        ]  # fmt: skip
        shadows = train_shadow_models(build, train, test, n=self.n_shadows, recipe=self.recipe, store=store, workers=workers, device=device)
        cells = train_fleet(tasks, everything, store, workers=workers, device=device)
        original, *retrained = (load_trained(cell, build) for cell in cells)
        unlearned = {}
        for done, (name, method) in enumerate(self.methods.items()):
            progress.report("unlearning", done, len(self.methods), name)
            with progress.listen(lambda _: None):
                unlearned[name] = unlearn_stored(method, original, split, build=build, store=store, seed=self.seed, device=device)
        seconds = {"original": cells[0].result()["seconds"], "retrained": cells[1].result()["seconds"]}
        details = {
            "original": f"trained on all {len(train)} digits: {self.recipe}",
            "retrained": f"trained without the {self.n_forget} digits, with the same recipe",
        }
        result = audit(
            {"original": original} | {name: u.model for name, u in unlearned.items()} | {"retrained": retrained}, split, test,
            attacks=[LossThreshold(), LiRA(), RMIA()], shadows=shadows, fpr=0.01, title="Forgetting 100 handwritten digits", device=device,
            seconds=seconds | {name: u.seconds for name, u in unlearned.items()}, details=details | {name: repr(m) for name, m in self.methods.items()},
        )  # fmt: skip
        return result.to_dict()
