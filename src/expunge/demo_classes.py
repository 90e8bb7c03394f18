"""The second half of the demonstration: forgetting one digit altogether, and showing where its images go.

Everything goes through a store, so that a second run only reads, and an interrupted one goes on where it was.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from . import progress
from .auditing import audit
from .checks import check_settings, setting
from .data.load import load_data
from .data.split import forget_classes
from .leakage import class_leakage
from .methods import DELETE, TRW, BoundaryExpanding, BoundaryShrink, FineTune, Method
from .models import architecture
from .store import Store
from .stored import unlearn_stored
from .training.class_shadows import ClassShadows, train_class_shadows
from .training.recipe import Recipe

REVISION = 1  # raised when the audit's numbers change, so that a stored result of an older version is not shown


@final
@dataclass(frozen=True, kw_only=True)
class ClassDemo:
    """Settings of the demonstration: all images of one digit leave.

    Args:
        digit: the class to forget, 0 to 9.
        n: models that know the digit, and models retrained without it, ≥ 6 of each: the yardstick, its spread, and U-LiRA's shadow models.
        recipe: how all of them are trained. Without weight decay, so that the network learns its digits by heart.
        methods: what is compared, by name. Those for classes have their defaults; none was chosen on digit 8.
    """

    digit: int = setting(8, ge=0, le=9)
    n: int = setting(8, ge=6)
    recipe: Recipe = setting(factory=lambda: Recipe(epochs=40, lr=0.05, batch_size=64, weight_decay=0.0))
    methods: dict[str, Method] = setting(
        factory=lambda: {
            "TRW": TRW(batch_size=64),
            "DELETE": DELETE(),
            "BoundaryShrink": BoundaryShrink(),
            "BoundaryExpanding": BoundaryExpanding(),
            "FineTune": FineTune(epochs=5, lr=0.05, batch_size=64),
        }
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self, store: str | Path, *, workers: int | str = "auto", device: str | torch.device = "auto") -> dict[str, Any]:
        """The audit's result as plain values (see `Audit.to_dict`), computed, or read from the store if everything in it is done.

        Raises:
            StoreError: the store cannot be written.

        Cost: about 85 CPU seconds, of which 60 are spread over the workers: a minute or two; the second time nothing.
        """
        kept = Store(Path(store))
        train, test = load_data("digits")
        build = architecture("small", train)
        spec = {"demo": self, "build": build, "data": train.fingerprint, "test": test.fingerprint, "revision": REVISION}
        cell = kept.cell("demo", spec)

        def work() -> None:
            split = forget_classes(train, [self.digit])
            shadows = train_class_shadows(build, split, test, n=self.n, recipe=self.recipe, store=kept, workers=workers, device=device)
            cell.finish(self._audit(shadows, device))

        cell.ensure(work)
        return cell.result()

    def _audit(self, shadows: ClassShadows, device: str | torch.device) -> dict[str, Any]:
        split, original = shadows.split, shadows.original(0)
        leakage = class_leakage(self.methods, shadows, device=device)
        with progress.silent():  # all of them are in the store by now
            unlearned = {
                name: unlearn_stored(
                    method, original, split, build=shadows.build, store=shadows.store, seed=shadows.seeds[0], device=device
                )
                for name, method in self.methods.items()
            }
        details = {
            "original": f"trained on all {len(split.train)} digits: {self.recipe}",
            "retrained": f"trained without the {len(split.forget)} images of {self.digit}, alike",
        }
        seconds = {"original": shadows.originals[0].result()["seconds"], "retrained": shadows.retrained[0].result()["seconds"]}
        result = audit(
            {"original": original} | {name: u.model for name, u in unlearned.items()}
            | {"retrained": [shadows.retrained_model(k) for k in range(len(shadows))]},
            split, shadows.test,
            seconds=seconds | {name: u.seconds for name, u in unlearned.items()},
            details=details | {name: str(method) for name, method in self.methods.items()},
            leakage=leakage, title=f"Forgetting the digit {self.digit}", device=device,
        )  # fmt: skip
        return result.to_dict()
