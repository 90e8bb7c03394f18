"""One small plan that has been run: digits, two originals, a method that works and one that diverges, both tuned."""

import pytest

from bench_plans import small_plan


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(plan, store, results)"""
    store = tmp_path_factory.mktemp("bench")
    plan = small_plan()
    return plan, store, plan.run(store, workers=1, device="cpu")
