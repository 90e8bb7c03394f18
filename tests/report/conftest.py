"""A realistic audit as plain numbers, with the shapes and the sizes of a real one; the data are drawn, not trained."""

import json

import numpy as np
import pytest
import torch

from expunge.audits.told_apart import ClassLeakage
from expunge.audits.u_lira import u_lira_class, u_lira_floor
from report.browser import Browser

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


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


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


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PROFILES = {  # mean probabilities of each model on unseen deer
    "original": (1, 0, 3, 3, 84, 2, 3, 4, 0, 0),
    "AMUN": (3, 1, 25, 13, 4, 7, 17, 29, 1, 0),
    "GradientAscent": (12, 9, 11, 10, 0, 11, 13, 10, 12, 12),
    "retrained": (2, 0, 22, 13, 0, 8, 16, 38, 1, 0),
    "retrained 2": (2, 0, 24, 12, 0, 7, 17, 37, 1, 0),
}


def fraction(value, width, n):
    return {"value": value, "low": max(0.0, value - width), "high": min(1.0, value + width), "n": n, "note": None}


def class_answers(profiles, classes, forgotten, neighbour, n=100):
    """One forgotten class as an audit's plain values; the retrained models among `profiles` are told by their names."""
    shares = {name: np.array(profile, float) / sum(profile) for name, profile in profiles.items()}
    retrained = [name for name in shares if name.startswith("retrained")]
    rn, rows = classes.index(neighbour) if neighbour else None, []
    for name, share in shares.items():
        peers = [shares[r] for r in retrained if r != name]
        distance = near = None
        if peers:
            middle = np.mean(peers, 0)
            distance = fraction(float(np.abs(share - middle).sum() / 2), 0.04, n)
            near = {
                "neighbour": rn, "scores": share.tolist(), "reference_scores": [peer.tolist() for peer in peers],
                "score": fraction(float(share[rn]), 0.09, n), "reference": fraction(float(middle[rn]), 0.09, n),
                "gap": estimate(float(share[rn] - middle[rn]), 0.11, n), "profile_gap": float(np.abs(share - middle).mean()),
            }  # fmt: skip
        sharper = share**1.6 / (share**1.6).sum()
        rows.append({
            "model": name, "answer": [round(x, 5) for x in share.tolist()], "predicted": [round(x, 5) for x in sharper.tolist()],
            "distance": distance, "neighbour": near,
        })  # fmt: skip
    several = len(retrained) > 1
    return {
        "name": forgotten, "classes": list(classes), "n": n, "neighbour": neighbour,
        "distance_floor": {"value": 0.031, "low": 0.029, "high": 0.0337, "n": 2, "note": None} if several else None,
        "neighbour_floor": {"value": 0.012, "low": 0.01, "high": 0.0143, "n": 2, "note": None} if several else None,
        "rows": rows,
    }  # fmt: skip


@pytest.fixture(scope="session")
def leakage():
    """A real result of U-LiRA, on margins that are drawn: 6 + 6 models on 400 seen and 100 unseen images."""
    draw = torch.Generator().manual_seed(0)
    n = {"own train": 400, "own unseen": 100, "neighbour train": 400, "neighbour unseen": 100}
    margins = lambda shift: {key: shift + torch.randn(6, n[key], generator=draw) for key in n}  # noqa: E731
    retrained = margins(0.0)
    rows = {
        method: {key: u_lira_class(mine, retrained[key]) for key, mine in margins(shift).items()}
        for method, shift in {"original": 6.0, "AMUN": 0.7, "GradientAscent": -2.0}.items()
    }
    return ClassLeakage("deer", "horse", rows, {key: u_lira_floor(mine) for key, mine in retrained.items()}, 6)


@pytest.fixture
def class_sample(sample, leakage):
    """The same audit, had the class deer been forgotten: unseen deer are non-members, and there is what the models answer on them."""
    rng, edges = np.random.default_rng(1), np.array(sample["histograms"][0]["edges"])
    for model in sample["models"]:
        right = {"original": 83, "AMUN": 4}.get(model["name"], 0)
        model["forget_test"] = proportion(right, 100)
        if model["gaps"]:
            model["gaps"]["forget_test"] = estimate(right / 100, 0.04, 100)
    for entry in sample["histograms"]:
        draws = rng.normal(-4, 1.5, 100).clip(edges[0], edges[-1])
        entry["forget_test"] = np.histogram(draws, edges, density=True)[0].tolist()
    return sample | {
        "title": "Audit of class forgetting", "sizes": sample["sizes"] | {"forget_test": 100},
        "classes": [class_answers(PROFILES, CLASSES, "deer", "horse") | {"leakage": leakage.to_dict()}],
    }  # fmt: skip


@pytest.fixture
def many_classes(class_sample):
    """Forty people, one of them forgotten: no more than a dozen columns fit."""
    people = ["George W Bush", "Colin Powell", *(f"Given Familyname-{k}" for k in range(38))]
    rng = np.random.default_rng(2)
    base = rng.dirichlet(np.full(40, 0.25))
    profiles = {name: base + 0.25 * rng.dirichlet(np.full(40, 0.3)) for name in PROFILES}
    for name in PROFILES:
        profiles[name][0] = {"original": 5.0, "AMUN": 0.05}.get(name, 0)
    neighbour = people[1 + int(profiles["retrained"][1:].argmax())]
    return class_sample | {"classes": [class_answers(profiles, people, people[0], neighbour, 20)]}


@pytest.fixture
def many_retrained(class_sample):
    """Five retrained models: too many to list."""
    result = json.loads(json.dumps(class_sample))
    for k, name in enumerate(("retrained 3", "retrained 4", "retrained 5"), 1):
        for entries, key in (
            (result["models"], "name"),
            (result["attacks"], "model"),
            (result["histograms"], "model"),
            (result["classes"][0]["rows"], "model"),
        ):
            entries += [json.loads(json.dumps(entry)) | {key: name} for entry in entries if entry[key] == "retrained 2"]
        model = result["models"][-1]
        model["test"]["value"] -= 0.01 * k
    return result
