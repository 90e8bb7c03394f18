"""Health flags of an audit: for each a set of answers that raises it, and one that does not."""

from dataclasses import replace

import pytest
import torch

import expunge
from expunge.audits import Audited, LiRA, LossThreshold
from toys import toy_net

N, K, MODELS = 300, 4, 16
LABELS = torch.arange(N) % K


def answers(rng, confidence, *, right=1.0):
    """Logits (N, K) whose margins are `confidence`, with noise; a share of them for the true class."""
    logits = 0.3 * torch.randn(N, K, generator=rng)
    target = torch.where(torch.rand(N, generator=rng) < right, LABELS, (LABELS + 1) % K)
    return logits.scatter_add(1, target[:, None], torch.as_tensor(confidence).expand(N)[:, None].float())


def audit_of(
    *,
    n_retrained=2,
    memory=2.0,
    spread=0.0,
    shadow_right=1.0,
    target_right=1.0,
    shadow_memory=2.0,
    fpr=0.05,
    lucky=0.0,
    n_test=N,
    shadows=True,
):
    """An original that is surer of forget samples by `memory`, retrained models, and shadow models that are surer of what they saw."""
    rng = torch.Generator().manual_seed(0)
    half = torch.rand(MODELS // 2, 2 * N, generator=rng) < 0.5
    included = torch.stack([half, ~half], 1).flatten(0, 1)
    shadow = torch.stack(
        [torch.cat([answers(rng, 3 + shadow_memory * seen.float(), right=shadow_right) for seen in row.split(N)]) for row in included]
    )
    audited = Audited(
        labels={"forget": LABELS, "test": LABELS}, classes=tuple("abcd"),
        **({"shadow_logits": shadow, "included": included, "shadow_accuracy": shadow_right} if shadows else {}),
    )  # fmt: skip

    def model(extra):
        return {"forget": answers(rng, 3 + extra, right=target_right), "test": answers(rng, 3.0, right=target_right)}

    models = {"original": model(memory)}
    models |= {f"retrained{f' {k + 1}' * (k > 0)}": model(spread * k) for k in range(n_retrained)}
    attacks = [LossThreshold(), LiRA()] if shadows else [LossThreshold()]
    result = expunge.audit_answers(models, audited, attacks=attacks, fpr=fpr)
    return {flag.name for flag in result.flags}, result


@pytest.mark.parametrize(
    ("flag", "raised", "quiet"),
    [
        ("ModelNeverMemorised", {"memory": 0.0}, {"memory": 2.0}),
        ("NoNullFloor", {"n_retrained": 1}, {"n_retrained": 2}),
        ("TooFewNonMembers", {"fpr": 0.01}, {"fpr": 0.05}),
        ("ShadowsUnlikeTarget", {"shadow_right": 0.8}, {"shadow_right": 0.97}),
        ("WeakBeatsStrong", {"shadow_memory": -2.0}, {"shadow_memory": 2.0}),  # shadow models to which a sample that they saw is a stranger
        ("RetrainDiffersAcrossSeeds", {"spread": 1.0}, {"spread": 0.0}),
    ],
)
def test_a_flag_is_raised_where_it_should_be_and_not_elsewhere(flag, raised, quiet):
    assert flag in audit_of(**raised)[0]
    assert flag not in audit_of(**quiet)[0]


def test_an_audit_of_sound_answers_raises_nothing():
    assert not audit_of()[0]


def test_a_flag_on_shadow_models_needs_shadow_models():
    assert not {"ShadowsUnlikeTarget", "WeakBeatsStrong"} & audit_of(shadows=False, memory=2.0)[0]


def test_what_a_flag_says_has_the_numbers_that_raised_it():
    _, result = audit_of(shadow_right=0.8)
    (flag,) = (flag for flag in result.flags if flag.name == "ShadowsUnlikeTarget")
    assert "held-out accuracy of 80.0%" in flag.message and "retrained has 100.0%" in flag.message


def test_shadow_models_of_another_recipe_than_the_original_are_flagged(digits, tmp_path):
    train, test = digits[0].subset(range(60)), digits[1].subset(range(60))
    split, recipe = expunge.forget_random(train, 10), expunge.Recipe(epochs=1, lr=0.05)
    shadows = expunge.train_shadow_models(toy_net, train, test, n=2, recipe=recipe, store=tmp_path, workers=1, device="cpu")
    model = expunge.train_model(toy_net, train, recipe, device="cpu")

    def messages(original):
        result = expunge.audit({"original": model}, split, test, attacks=[LossThreshold()], shadows=shadows, recipe=original, device="cpu")
        return [flag.message for flag in result.flags if flag.name == "ShadowsUnlikeTarget"]

    assert not messages(None) and not messages(recipe)
    assert not messages(replace(recipe, precision="float32"))  # how it is computed, not what it does
    (message,) = messages(replace(recipe, epochs=9, augment=False))
    assert "epochs=1 (original: 9), augment=True (original: False)" in message
