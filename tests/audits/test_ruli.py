import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from expunge.audits.ruli import ruli_efficacy, ruli_privacy, ruli_scores, vulnerability, vulnerable
from expunge.errors import ConfigError, DataError
from expunge.metrics import auc


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_scores(target, unlearned, unseen, h) -> list[float]:
    """The density of each group, kernel by kernel."""
    found = []
    for i, x in enumerate(target.tolist()):
        densities = [np.mean([norm.pdf(x, m, h[i]) for m in group[:, i].tolist()]) for group in (unlearned, unseen)]
        found.append(math.log(densities[0]) - math.log(densities[1]))
    return found


def test_scores_are_the_log_ratio_of_kernel_densities():
    target, unlearned, unseen = noise(20), noise(9, 20, seed=1) + 1, 2 * noise(7, 20, seed=2)
    assert ruli_scores(target, unlearned, unseen, bandwidth=0.7).tolist() == pytest.approx(
        slow_scores(target, unlearned, unseen, [0.7] * 20), abs=1e-9
    )
    within = [
        float(((unlearned[:, i] - unlearned[:, i].mean()) ** 2).sum() + ((unseen[:, i] - unseen[:, i].mean()) ** 2).sum()) / 14
        for i in range(20)
    ]
    h = [1.06 * math.sqrt((10 * np.mean(within) + 14 * w) / 24) * 7**-0.2 for w in within]
    assert ruli_scores(target, unlearned, unseen).tolist() == pytest.approx(slow_scores(target, unlearned, unseen, h), abs=1e-9)


def test_scores_do_not_depend_on_the_unit_of_the_margins():
    target, unlearned, unseen = noise(20), noise(9, 20, seed=1) + 1, 2 * noise(7, 20, seed=2)
    torch.testing.assert_close(ruli_scores(100 * target, 100 * unlearned, 100 * unseen), ruli_scores(target, unlearned, unseen))


def test_far_from_all_shadow_models_scores_stay_finite():
    target = torch.tensor([1e4, -1e4], dtype=torch.float64)
    scores = ruli_scores(target, noise(5, 2) + 1, noise(5, 2, seed=1))
    assert torch.isfinite(scores).all() and scores[0] > 0 > scores[1]


def test_constant_margins_are_no_evidence():
    assert (ruli_scores(torch.full((4,), 3.0), torch.full((5, 4), 3.0), torch.full((5, 4), 3.0)) == 0).all()


def test_privacy_on_gaussians_reaches_the_auc_of_theory():
    n, shift, forgotten = 4000, 1.0, torch.arange(4000) % 2 == 0
    easy = 5 * noise(n)
    game = ruli_privacy(
        easy + noise(n, seed=3) + shift * forgotten, forgotten, easy + noise(120, n, seed=1) + shift, easy + noise(120, n, seed=2)
    )
    assert game.auc.value == pytest.approx(0.5 * (1 + math.erf(shift / 2)), abs=0.02)
    assert game.auc.low < game.auc.value < game.auc.high and "samples, not models" in game.auc.note
    assert (game.n_members, game.n_nonmembers) == (2000, 2000) and game.tpr.value > 0.03


@pytest.mark.parametrize("n_models", [4, 16])
def test_a_perfect_unlearner_wins_neither_game(n_models):
    """30 nulls: the mean is 0.5 within three standard errors, and the intervals cover it."""
    n, forgotten, areas, covered = 200, torch.arange(200) % 2 == 0, [], []
    for seed in range(30):
        draws = noise(2 * n_models + 2, n, seed=seed) * torch.linspace(0.3, 3, n) + 4 * noise(n, seed=100 + seed)
        shadows = draws[2 : 2 + n_models], draws[2 + n_models :]
        games = ruli_privacy(draws[0], forgotten, *shadows), ruli_efficacy(draws[0], draws[1], *shadows)
        areas.append([g.auc.value for g in games])
        covered.append([g.auc.low <= 0.5 <= g.auc.high for g in games])
    error = np.std(areas, axis=0) / math.sqrt(30)
    assert (np.abs(np.mean(areas, axis=0) - 0.5) < 3 * error).all() and (np.mean(covered, axis=0) >= 0.85).all()


def test_efficacy_finds_what_is_left_and_its_interval_is_paired():
    n = 1000
    easy = 3 * noise(n)
    shadows = easy + noise(20, n, seed=1) + 0.7, easy + noise(20, n, seed=2)
    unlearned = easy + noise(n, seed=4) + 0.7
    game = ruli_efficacy(unlearned, easy + noise(n, seed=3), *shadows)
    assert game.auc.low > 0.6
    close = ruli_efficacy(unlearned, unlearned + 0.1 * noise(n, seed=5) - 0.2, *shadows).auc
    unpaired = auc(*(ruli_scores(x, *shadows) for x in (unlearned, unlearned + 0.1 * noise(n, seed=5) - 0.2)))
    assert close.value == pytest.approx(unpaired.value) and close.high - close.low < (unpaired.high - unpaired.low) / 3
    same = ruli_efficacy(unlearned, unlearned, *shadows).auc
    assert same.low == same.value == same.high == 0.5


def test_perfect_separation_is_not_certainty():
    game = ruli_efficacy(noise(30) + 50, noise(30, seed=1), noise(5, 30, seed=2) + 50, noise(5, 30, seed=3))
    assert game.auc.value == game.auc.high == 1 and 0.8 < game.auc.low < 0.95


def test_vulnerability_is_the_mean_lira_score_of_members():
    """With known Gaussians: 400 models give the divergence; samples alike in both groups have none."""
    shift, spread = torch.linspace(0, 3, 50).double(), torch.linspace(0.5, 2, 50).double()
    seen, unseen = shift + spread * noise(4000, 50), noise(4000, 50, seed=1)
    expected = -spread.log() + (spread**2 + shift**2) / 2 - 0.5
    torch.testing.assert_close(vulnerability(seen, unseen), expected, rtol=0.1, atol=0.02)
    assert (vulnerability(seen, unseen) >= 0).all()


def test_vulnerable_samples_are_where_the_trace_is():
    n, forgotten = 2000, torch.arange(2000) % 2 == 0
    memory = 3.0 * (torch.arange(n) % 4 < 2)  # half of the samples are memorised
    seen, unseen = memory + noise(20, n, seed=1), noise(20, n, seed=2)
    unlearned, target = 0.5 * memory + noise(20, n, seed=3), 0.5 * memory * forgotten + noise(n, seed=4)
    hit = vulnerable(vulnerability(seen, unseen))
    assert torch.equal(hit, memory > 0)
    games = [ruli_privacy(target[w], forgotten[w], unlearned[:, w], unseen[:, w]).auc for w in (hit, ~hit)]
    assert games[0].low > 0.75 and games[1].low < 0.5 < games[1].high


def test_choosing_samples_by_the_targets_own_score_would_choose_by_the_answer():
    n, forgotten = 2000, torch.arange(2000) % 2 == 0
    seen, unseen = 1 + noise(20, n, seed=1), noise(20, n, seed=2)
    original = forgotten + noise(n, seed=3)
    by_target, by_sample = vulnerable(original - unseen.mean(0)), vulnerable(vulnerability(seen, unseen))
    assert forgotten[by_target].double().mean() > 0.6 and abs(forgotten[by_sample].double().mean() - 0.5) < 0.05


def test_the_result_is_plain_values():
    game = ruli_efficacy(noise(30), noise(30, seed=1), noise(5, 30, seed=2), noise(5, 30, seed=3))
    plain = json.loads(json.dumps(game.to_dict(), allow_nan=False))
    assert plain["auc"]["value"] == game.auc.value and plain["tpr"]["value"] is None and plain["n_members"] == 30


def test_wrong_input_is_refused():
    good, target = noise(4, 5), noise(5)
    with pytest.raises(ConfigError, match="bandwidth must be a number > 0 or None; got 0"):
        ruli_scores(target, good, good, bandwidth=0.0)
    with pytest.raises(DataError, match="at least 2 unseen models"):
        ruli_scores(target, good, good[:1])
    with pytest.raises(DataError, match="same 5 samples"):
        ruli_scores(target[:4], good, good)
    with pytest.raises(DataError, match="finite; got 1"):
        ruli_scores(torch.cat([target[:4], torch.tensor([math.inf])]), good, good)
    with pytest.raises(DataError, match="samples of both kinds.*with 5 forgotten"):
        ruli_privacy(target, torch.ones(5).bool(), good, good)
    with pytest.raises(ConfigError, match="fpr must be a fraction"):
        ruli_efficacy(target, target, good, good, fpr=2.0)
    with pytest.raises(ConfigError, match="share must be a fraction"):
        vulnerable(target, 1.0)
    with pytest.raises(DataError, match="at least two; got 1"):
        vulnerable(target[:1])
