"""Plans that run in seconds."""

from expunge import RMIA, FineTune, GradientAscent, Recipe
from expunge.bench import ForgetRandom, Plan

METHODS = {"fine_tune": FineTune(epochs=1, lr=0.05), "worse": GradientAscent(epochs=2, lr=1e6)}


def small_plan(**changes) -> Plan:
    settings = {
        "methods": METHODS, "data": "digits", "arch": "small", "recipe": Recipe(epochs=2, lr=0.05, batch_size=64), "forget": ForgetRandom(n=30), "seeds": 2, "shadows": 4,
        "attacks": [RMIA()], "tuning": 2, "n_train": 300, "title": "Small",
    }  # fmt: skip
    return Plan(**(settings | changes))
