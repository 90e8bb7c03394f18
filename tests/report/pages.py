"""What the tests of the report share: a page taken apart, a name that would break one that is not escaped, and verdicts and risks with the shapes of real ones."""

import functools
import json
import re
from html.parser import HTMLParser

import numpy as np
import torch

from expunge.report import render, thumbnail

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> $\\frac{1}$ {{ 7*7 }} <!-- \' & é'
VOID = {"meta", "link", "img", "br", "col"}


class Page(HTMLParser):
    """The tags, the visible text and the scripts of a page; checks that tags are closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.scripts, self.open = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        (self.scripts if inside == "script" else [] if inside == "style" else self.text).append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def numbers(self):
        return json.loads("".join(self.scripts))


def rendered(result):
    """The page of a result, drawn once for all tests that look at it: most of the time goes into figures."""
    return _rendered(json.dumps(result))


@functools.cache
def _rendered(text):
    return render(json.loads(text))


def light(result):
    """The audit without figures, for tests of other parts."""
    return result | {"histograms": [], "attacks": [row | {"roc": None} for row in result["attacks"]]}


def estimate(value, low, high, n=197, note=None):
    return {"value": value, "low": low, "high": high, "n": n, "note": note}


def contrast(name, kind, value, low, high, margin=0.02, note=None):
    return {"name": name, "kind": kind, "gap": estimate(value, low, high, note=note), "margin": margin}


VERDICTS = [
    {
        "model": "original", "word": "distinguishable",
        "text": "By protocol standard-1, original is distinguishable from retraining: an attacker tells its forget images from unseen ones better (RMIA AUC higher by 0.243, 95% interval 0.201 to 0.285; 0 is not in it).",
        "contrasts": [
            contrast("RMIA AUC", "area", 0.243, 0.201, 0.285), contrast("LiRA AUC", "area", 0.188, 0.139, 0.237),
            contrast("True positives at 1% FPR", "share", None, None, None, note="TPR at 1% FPR needs 500 non-members, got 397"),
            contrast("Forget accuracy", "share", 0.06, 0.018, 0.102), contrast("Test accuracy", "share", 0.001, -0.009, 0.011),
        ],
        "needs": [],
    },
    {
        "model": "AMUN", "word": "cannot tell",
        "text": "By protocol standard-1, this audit cannot tell AMUN from retraining, nor call them alike: the interval of the RMIA AUC difference (95%, −0.031 to +0.057) reaches beyond ±0.02 and holds 0.",
        "contrasts": [
            contrast("RMIA AUC", "area", 0.013, -0.031, 0.057), contrast("LiRA AUC", "area", -0.004, -0.058, 0.05),
            contrast("True positives at 1% FPR", "share", 0.01, -0.07, 0.09, note="underpowered: the threshold rests on 7 non-members"),
            contrast("Forget accuracy", "share", 0.01, -0.02, 0.04), contrast("Test accuracy", "share", -0.005, -0.014, 0.004),
        ],
        "needs": [
            "about 640 forget images rather than 100, or differences averaged over 3 retrained models (there are 2)",
            "500 test images for the rate of true positives at 1% FPR; there are 397",
        ],
    },
    {
        "model": "GradientAscent", "word": "indistinguishable",
        "text": "By protocol standard-1, GradientAscent is indistinguishable from retraining at the precision of this audit (AUC difference within ±0.02, 95%).",
        "contrasts": [
            contrast("RMIA AUC", "area", -0.004, -0.017, 0.009), contrast("LiRA AUC", "area", 0.002, -0.012, 0.016),
            contrast("True positives at 1% FPR", "share", 0.0, -0.018, 0.018), contrast("Forget accuracy", "share", -0.002, -0.012, 0.008),
            contrast("Test accuracy", "share", 0.003, -0.006, 0.012),
        ],
        "needs": [],
    },
]  # fmt: skip


def judged(result, extra=()):
    """The audit, had it been made by the protocol: with a verdict on each of its models, and on these `extra` names."""
    more = [VERDICTS[k % 3] | {"model": name} for k, name in enumerate(extra)]
    return result | {"protocol": "standard-1", "verdicts": json.loads(json.dumps(VERDICTS + more))}


def pictures(n, shape=(3, 32, 32), seed=0):
    """Small coloured scenes: a blob on a gradient, which one can tell apart."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[1], 0 : shape[2]] / max(shape[1:])
    for _ in range(n):
        (cx, cy), inner, outer = rng.uniform(0.3, 0.7, 2), rng.uniform(0, 1, shape[0]), rng.uniform(0, 1, shape[0])
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.04)
        image = inner[:, None, None] * blob + outer[:, None, None] * (1 - blob) * (0.6 + 0.4 * y)
        yield torch.tensor(np.clip(image + rng.normal(0, 0.03, shape), 0, 1), dtype=torch.float32)


def exposed(result, n=24, shape=(3, 32, 32)):
    """The audit with its most exposed images, as the models named in it see them."""
    rng = np.random.default_rng(3)
    models = [model["name"] for model in result["models"]]
    classes = ("cat", "dog", "deer", "ship", "truck")
    level = {"original": 2.6, "AMUN": 0.5}

    def risk(model, k):
        centre = (level.get(model, 0.1) + rng.normal(0, 0.35)) * (1 - 0.015 * k)
        return estimate(*(round(float(1 / (1 + np.exp(-z))), 4) for z in (centre, centre - 0.9, centre + 0.9)), n=16)

    examples = [
        {"id": int(rng.integers(1000)), "label": classes[k % 5], "image": thumbnail(image), "risks": {m: risk(m, k) for m in models}}
        for k, image in enumerate(pictures(n, shape))
    ]
    examples.sort(key=lambda example: -example["risks"]["original"]["value"])
    return result | {"risks": {"n": 100, "level": 0.95, "by": "original", "examples": examples}}
