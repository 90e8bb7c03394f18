"""A realistic audit as plain numbers, with the shapes and the sizes of a real one; the data are drawn, not trained."""

import numpy as np
import pytest

FORGET, RETAIN, TEST = 100, 900, 797
UNDERPOWERED = "underpowered: the threshold rests on 7 non-members"


def estimate(value, width, n, note=None):
    return {"value": value, "low": value - width, "high": value + width, "n": n, "note": note}


def missing(reason, n):
    return {"value": None, "low": None, "high": None, "n": n, "note": reason}


def proportion(right, n):
    p = right / n
    width = 1.96 * (max(p * (1 - p), 0.25 / n) / n) ** 0.5
    return {"value": p, "low": max(0.0, p - width), "high": min(1.0, p + width), "n": n, "note": None}


def roc(members, nonmembers):
    fprs = np.geomspace(1 / len(nonmembers), 1, 120).clip(1 / len(nonmembers), 1)
    descending = np.append(np.sort(nonmembers)[::-1], -np.inf)
    tpr = np.array([(members > descending[int(f * len(nonmembers) + 1e-9)]).mean() for f in fprs])
    width = 1.96 * np.sqrt(np.maximum(tpr * (1 - tpr), 0.02) / len(members))
    curve = {"fpr": fprs, "tpr": tpr, "low": (tpr - width).clip(0), "high": (tpr + width).clip(max=1)}
    return {name: [round(float(x), 6) for x in values] for name, values in curve.items()}


def histogram(name, draws, edges):
    return {"model": name, "edges": edges.tolist()} | {
        group: None if values is None else np.histogram(values.clip(edges[0], edges[-1]), edges, density=True)[0].tolist()
        for group, values in draws.items()
    }


@pytest.fixture
def sample():
    """Four models (two of them retrained) under three attacks; one rate has no support, one flag is raised."""
    rng, edges = np.random.default_rng(0), np.linspace(-6, 16, 41)
    shifts = {"original": 3.0, "AMUN": 0.35, "GradientAscent": -2.2, "retrained": 0.0, "retrained 2": 0.08}
    right = {
        "original": (100, 900, 751),
        "AMUN": (95, 896, 746),
        "GradientAscent": (71, 842, 702),
        "retrained": (94, 900, 750),
        "retrained 2": (95, 899, 747),
    }
    seconds = {"original": 41.3, "AMUN": 3.9, "GradientAscent": 0.8, "retrained": 38.6, "retrained 2": None}
    details = {
        "original": "Recipe(epochs=20, lr=0.1, batch_size=128, momentum=0.9, weight_decay=0.0005, schedule=Cosine())",
        "AMUN": "AMUN(epochs=10, lr=0.01, batch_size=128, use_retain=True, attack=NearestL2PGD(eps_init=0.04, steps=50))",
        "GradientAscent": "GradientAscent(epochs=5, lr=0.0001, batch_size=128)",
        "retrained": "Retrain(recipe=Recipe(epochs=20, lr=0.1, batch_size=128))",
        "retrained 2": None,
    }
    models, attacks, histograms = [], [], []
    for name, shift in shifts.items():
        forget = rng.normal(5.5 + shift, 2.4 if shift else 2.7, FORGET)
        test, retain = rng.normal(5.4 + 0.4 * max(shift, 0), 2.8, TEST), rng.normal(9, 1.8, RETAIN)
        gaps = None
        if name != "retrained":
            gaps = {
                "forget": estimate((right[name][0] - 94) / 100, 0.03, FORGET),
                "retain": estimate((right[name][1] - 900) / 900, 0.004, RETAIN),
                "test": estimate((right[name][2] - 750) / 797, 0.009, TEST), "auc": estimate(0.09 * shift, 0.03, FORGET + TEST),
                "average": estimate(0.012 + 0.03 * abs(shift), 0.011, FORGET + RETAIN + TEST),
            }  # fmt: skip
        f, r, t = right[name]
        models.append({
            "name": name, "forget": proportion(f, FORGET), "retain": proportion(r, RETAIN), "test": proportion(t, TEST),
            "gaps": gaps, "seconds": seconds[name], "details": details[name],
        })  # fmt: skip
        histograms.append(histogram(name, {"forget": forget, "retain": retain, "test": test}, edges))
        for k, attack in enumerate(("LossThreshold", "LiRA", "RMIA")):
            members, nonmembers = rng.normal(shift * (0.25 + 0.15 * k), 1 + 0.1 * shift, FORGET), rng.normal(0, 1, TEST)
            area = float((members[:, None] > nonmembers).mean())
            rate = float((members > np.sort(nonmembers)[-8]).mean())
            attacks.append({
                "attack": attack, "model": name, "auc": estimate(area, 0.055 - 0.02 * abs(area - 0.5), FORGET + TEST),
                "tpr": proportion(round(100 * rate), FORGET) | {"note": UNDERPOWERED if k == 2 else None},
                "fpr": 0.01, "gap": None if name == "retrained" else estimate(area - 0.5, 0.05, FORGET + TEST),
                "roc": roc(members, nonmembers),
            })  # fmt: skip
    attacks[0]["tpr"] = missing("TPR at 1% FPR needs 500 non-members, got 397", FORGET + TEST)
    return {
        "title": "Audit of random-sample forgetting",
        "created": "2026-11-21T02:40:00Z",
        "provenance": {
            "expunge": "0.1.0", "torch": "2.9.1", "python": "3.12.3", "hardware": "AMD EPYC 9R14", "cores": 2,
            "date": "2026-11-21T02:40:00+00:00", "training set": "5f0c8e1d2ab94c77", "test set": "91bb2f6f00d3a1e5", "seed": 0,
        },
        "reference": "retrained",
        "sizes": {"forget": FORGET, "retain": RETAIN, "test": TEST, "shadow_models": 16},
        "models": models,
        "attacks": attacks,
        "floor": estimate(0.0144, 0.011, 1797),
        "histograms": histograms,
        "flags": [{"name": "TooFewNonMembers", "message": "TPR at 1% FPR needs 500 non-members, got 397. Ask for a larger fpr."}],
    }  # fmt: skip
