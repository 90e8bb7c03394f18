"""How far many tasks are together, from what their workers report one by one."""

import contextvars
import math
from collections.abc import Mapping

from ..progress import Progress, report


class Board:
    """Adds up the progress of all tasks for whoever listened when they began.

    Args:
        sizes: how much work each task is, by its key, which is the stage that its progress is reported under.
        stage, things: what the sum is reported as: "train models", "models".
    """

    def __init__(self, sizes: Mapping[str, int], stage: str, things: str) -> None:
        self.context = contextvars.copy_context()
        self.sizes, self.stage, self.things = sizes, stage, things
        self.shares = dict.fromkeys(sizes, 0.0)
        self.finished: set[str] = set()

    def __call__(self, progress: Progress) -> None:
        if progress.stage not in self.finished:  # a report may arrive after the result
            self.shares[progress.stage] = progress.done / progress.total
            self._report()

    def finish(self, key: str) -> None:
        self.shares[key] = 1.0
        self.finished.add(key)
        self._report()

    def _report(self) -> None:
        done = math.floor(sum(self.sizes[key] * share for key, share in self.shares.items()) + 1e-6)
        self.context.run(report, self.stage, done, sum(self.sizes.values()), f"{len(self.finished)} of {len(self.sizes)} {self.things}")
