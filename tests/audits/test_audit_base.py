import math

import pytest
import torch

from expunge.audits import AUDITS, LiRA, LossThreshold
from expunge.errors import ConfigError, DataError, ModelError
from expunge.metrics import auc, true_log_prob

N, K, M = 600, 5, 8
ALL = [pytest.param(cls(), id=name) for name, cls in AUDITS.items()]
STRONG = [pytest.param(cls(), id=name) for name, cls in AUDITS.items() if cls.needs_shadows]


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Logits without any trace of membership."""
    rng = torch.Generator().manual_seed(0)
    first = torch.rand(M // 2, N, generator=rng) < 0.5
    return {
        "target_logits": torch.randn(N, K, generator=rng),
        "labels": torch.arange(N) % K,
        "shadow_logits": torch.randn(M, N, K, generator=rng),
        "included": torch.stack([first, ~first], 1).flatten(0, 1),
    }


@pytest.mark.parametrize("audit", ALL)
def test_scores_are_one_finite_number_a_sample(audit, inputs):
    scores = audit(**inputs)
    assert scores.shape == (N,) and torch.isfinite(scores).all()


@pytest.mark.parametrize("audit", ALL)
def test_the_null_has_an_auc_of_one_half(audit, inputs):
    scores, half = audit(**inputs), N // 2
    error = math.sqrt((N + 1) / (12 * half * half))
    assert auc(scores[:half], scores[half:]).value == pytest.approx(0.5, abs=3 * error)


@pytest.mark.parametrize("audit", ALL)
def test_constant_logits_give_constant_scores(audit, inputs):
    inputs["target_logits"], inputs["shadow_logits"] = torch.zeros(N, K), torch.zeros(M, N, K)
    assert audit(**inputs).unique().numel() == 1


@pytest.mark.parametrize("audit", ALL)
def test_a_more_confident_target_looks_more_like_a_member(audit, inputs):
    inputs["shadow_logits"].scatter_add_(2, inputs["labels"].expand(M, N)[..., None], 2.0 * inputs["included"][..., None])
    before = audit(**inputs)
    surer = inputs["target_logits"].scatter_add(1, inputs["labels"][:, None], torch.ones(N, 1))
    assert (audit(**inputs | {"target_logits": surer}) - before).median() > 0


@pytest.mark.parametrize("audit", ALL)
def test_inputs_are_left_as_they_were(audit, inputs):
    before = {name: x.clone() for name, x in inputs.items()}
    audit(**inputs)
    assert all(torch.equal(x, before[name]) for name, x in inputs.items())


def test_loss_threshold_ranks_as_minus_the_loss_does(inputs):
    scores = LossThreshold()(inputs["target_logits"], inputs["labels"])
    assert torch.equal(scores.argsort(), true_log_prob(inputs["target_logits"].double(), inputs["labels"]).argsort())


@pytest.mark.parametrize("audit", STRONG)
@pytest.mark.parametrize("missing", ["shadow_logits", "included"])
def test_missing_shadow_models_are_named(audit, inputs, missing):
    del inputs[missing]
    with pytest.raises(ConfigError, match=rf"got no {missing}.*train_shadow_models"):
        audit(**inputs)


@pytest.mark.parametrize("audit", STRONG)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shadow_logits": torch.zeros(M, N - 1, K)}, r"\(M, 600, 5\).*got \(8, 599, 5\)"),
        ({"included": torch.zeros(M, N)}, "bool of shape"),
        ({"included": torch.zeros(M, N).bool()}, "first: sample 0 with 0 and 8"),
        ({"labels": torch.full((N,), K)}, "labels must lie in"),
    ],
    ids=["shape", "dtype", "no model trained on it", "label"],
)
def test_inputs_that_do_not_fit_are_refused(audit, inputs, change, match):
    with pytest.raises(DataError, match=match):
        audit(**inputs | change)


def test_a_shadow_model_with_nan_logits_is_named(inputs):
    inputs["shadow_logits"][3, 17, 0] = math.nan
    with pytest.raises(ModelError, match=r"shadow model 3 must be finite.*first: sample 17"):
        LiRA()(**inputs)


def test_a_target_with_nan_logits_is_named(inputs):
    with pytest.raises(ModelError, match="target logits must be finite"):
        LossThreshold()(inputs["target_logits"] * math.nan, inputs["labels"])


@pytest.mark.parametrize("audit", STRONG)
def test_offline_audits_accept_samples_that_no_shadow_model_saw(audit, inputs):
    inputs["included"][:, :10] = False
    with pytest.raises(DataError, match="online=False"):
        audit(**inputs)
    assert torch.isfinite(type(audit)(online=False)(**inputs)).all()
