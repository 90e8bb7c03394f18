"""The factors of AMUN's theorem on linear models, where every one of them has a closed form."""

import json
import math

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn
from torch.nn.functional import softplus

import expunge
from expunge.attacks import AdversarialSet, NearestL2PGD, transfer
from expunge.audits.tables import as_text, tables
from expunge.data.images import ImageData
from expunge.data.split import forget_samples
from expunge.diagnosis import factors
from expunge.errors import ConfigError, DataError, MissingError
from expunge.models.checkpoint import model_hash
from expunge.report import render
from expunge.report.factors_section import GROUPS
from report.pages import HOSTILE, Page

DIRECTION = torch.tensor([3.0, -4.0, 0.0, 0.0])  # of length 5
KEYS = [factor.key for group in GROUPS.values() for factor in group]


def linear(scale: float = 1.0, shift: float = 0.0) -> nn.Module:
    """Two classes; class 1 leads by scale · direction · (x − 0.5) + shift."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([-DIRECTION, DIRECTION]) * scale / 2)
        net[1].bias.copy_(torch.tensor([-1.0, 1.0]) * (shift - scale * float(DIRECTION.sum()) / 2) / 2)
    return net


def lead(images: torch.Tensor, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return scale * (images.flatten(1).double() - 0.5) @ DIRECTION.double() + shift


@pytest.fixture
def train():
    images = (0.5 + 0.06 * torch.randn(30, 1, 2, 2, generator=torch.Generator().manual_seed(0))).clamp(0.2, 0.8)
    return ImageData(images, (lead(images) > 0).long(), ("zero", "one"))


@pytest.fixture
def examples(train):
    """Every image mirrored at the border of `linear()`: the distances are twice the margins."""
    step = -2 * lead(train.images)[:, None] * DIRECTION.double() / 25
    images = (train.images.flatten(1).double() + step).float().reshape(train.images.shape)
    n, distances = len(train), (images - train.images).flatten(1).norm(dim=1)
    return AdversarialSet(
        images=images, labels=1 - train.labels, ids=train.ids, classes=train.classes, true_labels=train.labels, distances=distances, epsilons=distances,
        forward_passes=torch.ones(n).long(), found=torch.ones(n).bool(), already_wrong=torch.zeros(n).bool(), model_hash=model_hash(linear()),
        data_fingerprint=train.fingerprint, attack="mirror",
    )  # fmt: skip


@pytest.fixture
def split(train):
    return forget_samples(train, range(20))


def towards(images, labels, **model):
    """The cross-entropy of a `linear(…)` with these labels: log(1 + e^−lead)."""
    return softplus(-lead(images, **model) * (2 * labels - 1))


def test_every_term_has_its_closed_form(split, examples):
    x, y = split.forget.fetch(torch.arange(20)), split.forget.labels
    x_adv = examples.images[:20]
    found = factors(linear(), split, examples, unlearned=linear(2.0, 0.1), retrained=linear(0.5, -0.2))
    expected = [
        towards(x_adv, y),
        towards(x_adv, 1 - y, scale=2.0, shift=0.1),
        towards(x, y, scale=0.5, shift=-0.2),
        towards(x_adv, 1 - y, scale=0.5, shift=-0.2),
    ]
    for term, losses in zip(found.terms, expected, strict=True):
        assert term.value == pytest.approx(losses.mean().item(), abs=1e-6)
        assert term.low < term.value < term.high and term.low >= 0 and term.n == 20
    a, b, c, d = expected
    each = a + b - c - d
    assert found.c.value == pytest.approx(each.mean().item(), abs=1e-6)
    width = 2.0930 * each.std().item() / math.sqrt(20)  # Student's t with 19 degrees of freedom
    assert found.c.high - found.c.value == pytest.approx(width, rel=1e-4) == found.c.value - found.c.low


def test_distances_and_smoothness_have_their_closed_forms(split, examples):
    found = factors(linear(), split, examples)
    distances = 2 * lead(split.forget.fetch(torch.arange(20))).abs() / 5
    assert found.distance.value == pytest.approx(distances.mean().item(), rel=1e-5)
    ordered = distances.sort().values
    assert found.median_distance.value == pytest.approx(ordered[9:11].mean().item(), rel=1e-5)
    # Of 20 draws, fewer than 6 lie below the median with probability 0.0207: the 6th smallest to the 6th largest.
    assert [found.median_distance.low, found.median_distance.high] == pytest.approx([ordered[5].item(), ordered[14].item()], rel=1e-5)
    norm = 5 / math.sqrt(2)  # rows ±direction/2
    assert found.layer == ("1", pytest.approx(norm, rel=1e-4)) and found.bound.value == pytest.approx(norm, rel=1e-3)
    assert found.stretch.value == found.bound.value * found.distance.value
    assert found.found.value == 1.0 and found.found.n == 20 and found.found.low < 1


def test_the_attack_is_made_where_no_examples_are_given(split, train):
    found = factors(linear(), split.forget, attack=NearestL2PGD(eps_init=0.01, bisections=12), retrained=linear())
    distances = lead(split.forget.fetch(torch.arange(20))).abs() / 5
    assert found.distance.value == pytest.approx(distances.mean().item(), rel=1e-2)
    assert found.terms.original_adversarial.value == pytest.approx(math.log(2), abs=1e-2)  # just behind the border
    assert found.transfer.same.value == 1.0  # the same model
    assert "bisections=12" in found.attack


def test_what_is_good_for_unlearning_makes_c_larger(split, examples):
    def c(**others):
        return factors(linear(), split, examples, **({"unlearned": linear(), "retrained": linear()} | others)).c.value

    assert c(unlearned=linear(20.0)) < c() < c(unlearned=linear(0.1))  # learnt by heart; stopped early
    assert c(retrained=linear(-1.0)) < c(retrained=linear(0.1)) < c(retrained=linear(5.0))  # against transfer and generalisation; for them


def test_several_retrained_models_are_averaged_for_each_image(split, examples):
    one, other = linear(0.5), linear(2.0, 0.3)
    alone = [factors(linear(), split, examples, unlearned=linear(), retrained=m) for m in (one, other)]
    both = factors(linear(), split, examples, unlearned=linear(), retrained=[one, other])
    assert both.n_retrained == 2 and both.c.n == 20
    for get in (lambda f: f.c, lambda f: f.terms.retrained_clean, lambda f: f.terms.retrained_adversarial):
        assert get(both).value == pytest.approx(sum(get(f).value for f in alone) / 2)
        assert get(both).high - get(both).value > max(get(f).high - get(f).value for f in alone)  # over the models as well
    assert both.terms.original_adversarial == alone[0].terms.original_adversarial
    assert both.transfer == transfer(examples, split.forget, [one, other])
    assert factors(linear(), split, examples, unlearned=linear(), retrained=[one]).c == alone[0].c


def test_what_needs_a_missing_model_is_na_and_says_so(split, examples):
    found = factors(linear(), split, examples)
    assert found.terms.original_adversarial.supported
    assert str(found.terms.unlearned_adversarial) == "n/a (needs an unlearned model)"
    assert str(found.terms.retrained_clean) == str(found.transfer.same) == "n/a (needs a retrained model)"
    assert str(found.c) == "n/a (needs an unlearned and a retrained model)"
    assert str(factors(linear(), split, examples, unlearned=linear()).c) == "n/a (needs a retrained model)"
    assert str(factors(linear(), split, examples, retrained=linear()).c) == "n/a (needs an unlearned model)"


def test_images_that_the_original_gets_wrong_are_left_out(train, examples):
    labels = train.labels.clone()
    labels[:4] = 1 - labels[:4]
    found = factors(linear(), ImageData(train.images, labels, train.classes), unlearned=linear(), retrained=linear())
    assert (found.n, found.n_used, found.n_wrong) == (30, 26, 4) and found.c.n == found.found.n == 26


def test_an_attack_without_success_leaves_no_numbers(split):
    with pytest.warns(UserWarning, match="no adversarial example"):
        found = factors(
            linear(), split, attack=NearestL2PGD(eps_init=1e-6, steps=1, max_doublings=0), unlearned=linear(), retrained=linear()
        )
    assert found.found.value == 0 and found.bound.value is not None
    for estimate in (found.distance, found.median_distance, found.stretch, found.c, *found.terms, *found.transfer):
        assert not estimate.supported and "of 20 images" in estimate.note
    assert "n/a" in str(found)


def test_one_image_has_values_without_intervals(train, examples):
    found = factors(linear(), train.subset([3]), examples, unlearned=linear(), retrained=linear(0.5))
    assert math.isfinite(found.c.value) and math.isnan(found.c.low) and "one image" in found.c.note
    text, plain = str(found), json.dumps(found.to_dict(), allow_nan=False)
    assert "nan" not in text and json.loads(plain)["estimates"]["c"]["low"] is None


def test_a_network_without_a_known_bound_says_why(split, train):
    class Gate(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)  # a product of two tensors that depend on the image

    found = factors(nn.Sequential(linear(), Gate()), split, attack=NearestL2PGD(steps=3))
    assert found.bound.value is None and found.stretch.note == "needs the bound L"
    assert "n/a" in str(found) and found.layer.name == "0.1"


def test_bad_input_is_refused(split, examples, train):
    with pytest.raises(ConfigError, match="either given or made"):
        factors(linear(), split, examples, attack=NearestL2PGD())
    with pytest.raises(ConfigError, match="at least one in a list"):
        factors(linear(), split, examples, retrained=[])
    with pytest.raises((DataError, TypeCheckError)):
        factors(linear(), train.images, examples)
    with pytest.raises(ConfigError, match="level"):
        factors(linear(), split, examples, level=95.0)
    with pytest.raises(DataError, match="made with the model"):
        factors(linear(2.0), split, examples)
    with pytest.raises(DataError, match="made from another"):
        factors(linear(), ImageData(1 - train.images, train.labels, train.classes), examples)


def test_the_table_has_a_line_with_a_sentence_for_each_factor(split, examples):
    found = factors(linear(), split, examples, unlearned=linear(), retrained=linear())
    lines = str(found).splitlines()
    assert len(lines) == 3 + len(KEYS) + 1
    for line, factor in zip(lines[3:], (f for group in GROUPS.values() for f in group), strict=False):
        assert line.startswith(factor.name) and line.endswith(factor.meaning) and (factor.better or "-") in line
    assert "20 of 20 forget images; one retrained model" in lines[-1]
    assert set(KEYS) - set(found.to_dict()["estimates"]) == {"bound", "norm"}


@pytest.fixture
def audited(train, split, examples):
    models = {"original": linear(), HOSTILE: linear(0.5), "retrained": [linear(0.4), linear(0.6)]}
    found = factors(linear(), split, examples, unlearned=models[HOSTILE], retrained=models["retrained"])
    test = ImageData(1 - train.images, 1 - train.labels, train.classes)
    return models, split, test, found


def test_an_audit_shows_them_in_text_json_and_page(audited, tmp_path):
    models, split, test, found = audited
    result = expunge.audit(models, split, test, factors={HOSTILE: found})
    plain = json.loads(result.to_json())
    assert plain["factors"] == {HOSTILE: json.loads(json.dumps(found.to_dict()))}
    assert "Factors of AMUN's theorem" in str(result) and as_text(plain) == str(result)
    assert f"Factors of {HOSTILE}: 20 of 20 forget images; mean of 2 retrained models." in result.notes()
    html = render(plain)
    page = Page(html)
    assert page.numbers == plain and html.count("<script") == html.count("</script") == 1
    assert "Why did it go well or badly?" in page.words and all(title in page.words for title in GROUPS)
    for factor in (f for group in GROUPS.values() for f in group):
        assert factor.name in page.words and factor.meaning in page.words
    c = found.c
    shown = [f"{x:+.3f}".replace("-", "−") for x in (c.value, c.low, c.high)]
    assert f"{shown[0]} {shown[1]} to {shown[2]}" in page.words
    assert page.words.count("Measured on 20 of 20 forget images; mean of 2 retrained models.") == 1
    assert page.words.index("Why did it go") < page.words.rindex("Flags")


def test_an_audit_without_factors_and_one_stored_before_there_were_any_have_no_section(audited):
    models, split, test, _ = audited
    result = expunge.audit(models, split, test)
    plain = json.loads(result.to_json())
    assert result.factors == {} == plain["factors"]
    before = {key: value for key, value in plain.items() if key != "factors"}
    assert "Why did it go" not in render(plain) and "Why did it go" not in render(before)
    assert as_text(before) == as_text(plain) and "Factors" not in as_text(plain)


@pytest.fixture
def spectra(audited):
    models, *_ = audited
    one, other = models["retrained"]
    named = {"original": models["original"], HOSTILE: models[HOSTILE], "retrained": one, "retrained 2": other}
    return {name: expunge.spectrum(model, (1, 2, 2)) for name, model in named.items()}


def test_an_audit_shows_spectra_in_text_json_and_page(audited, spectra):
    models, split, test, _ = audited
    result = expunge.audit(models, split, test, spectra=spectra)
    plain = json.loads(result.to_json())
    assert result.spectra == spectra and plain["spectra"] == {name: found.to_dict() for name, found in spectra.items()}
    title, header, rows = result.tables()[-1]
    assert title.startswith("Spectral norms") and header == ["model", "largest σ₁", "layer", "Lipschitz bound"]
    assert rows == [[name, f"{found.norms['1']:#.4g}", "1", f"{found.bound.value:.3g}"] for name, found in spectra.items()]
    assert rows[0][1:] == ["3.536", "1", "3.54"] and as_text(plain) == str(result)
    html = render(plain)
    page = Page(html)
    assert page.numbers == plain and html.count("<script") == html.count("</script") == 1
    assert (
        "1 4 3.536 1.768 1.414 2.121" in page.words
        and "original stretches a difference between two images at most 3.54 times" in page.words
    )
    assert page.words.index("How far can each layer") < page.words.rindex("Flags")


def test_spectra_of_many_retrained_models_are_one_row_of_text_and_the_yardstick_and_one_more_on_the_page(audited):
    _, split, test, _ = audited
    many = {"original": linear(), "retrained": [linear(0.4), linear(0.6), linear(0.8), linear(1.0)]}
    named = {"original": linear(), "retrained": linear(0.4)} | {f"retrained {k + 2}": linear(0.6 + 0.2 * k) for k in range(3)}
    spectra = {name: expunge.spectrum(model, (1, 2, 2)) for name, model in named.items()}
    result = expunge.audit(many, split, test, spectra=spectra)
    *_, rows = result.tables()[-1]
    assert rows[2:] == [["retrained 2 … 4", "2.828 [2.121, 3.536]", "1", "2.83 [2.12, 3.54]"]]
    page = Page(render(result.to_dict()))
    assert "1 4 3.536 1.414 2.121 " in page.words and page.numbers["spectra"].keys() == spectra.keys()


def test_spectra_without_a_bound_or_a_layer_say_why(audited, spectra):
    models, split, test, _ = audited
    plain = expunge.audit(models, split, test, spectra=spectra).to_dict()
    plain["spectra"]["original"] |= {"bound": None, "reason": "a gate. Wrap it"}
    plain["spectra"][HOSTILE] |= {"layers": []}
    early = plain["spectra"]["retrained"]["layers"][0]
    early |= {"converged": False, "error_estimate": [0.25]}
    rows = tables(plain)[-1].rows
    assert rows[0][3] == "n/a (a gate. Wrap it)" and rows[1][1:3] == ["n/a (no affine layer was seen)", "-"]
    assert rows[2][1] == "1.414 ± 0.2" and "no bound, for a gate. Wrap it" in Page(render(plain)).words


def test_an_audit_without_spectra_and_one_stored_before_there_were_any_have_no_section(audited, spectra):
    models, split, test, _ = audited
    result = expunge.audit(models, split, test)
    plain = json.loads(result.to_json())
    assert result.spectra == {} == plain["spectra"]
    before = {key: value for key, value in plain.items() if key != "spectra"}
    assert "How far can each layer" not in render(plain) and "How far can each layer" not in render(before)
    assert as_text(before) == as_text(plain) and "Spectral norms" not in as_text(plain)
    with pytest.raises(MissingError, match="spectra= takes the names of audited models"):
        expunge.audit(models, split, test, spectra={"AMUN": spectra["original"]})


def test_an_audit_takes_factors_of_its_own_models_and_images_only(audited, train, examples):
    models, split, test, found = audited
    with pytest.raises(MissingError, match="names of audited models"):
        expunge.audit(models, split, test, factors={"AMUN": found})
    other = factors(linear(), train.subset(range(10)), examples)
    with pytest.raises(DataError, match="20 forget samples"):
        expunge.audit(models, split, test, factors={"retrained": other})
