"""What only a GPU can show; `pytest -m gpu` on a machine that has one."""

import pytest
import torch

import expunge
from expunge.attacks import NearestL2PGD
from expunge.data.augment import augmented
from expunge.data.images import Augment
from expunge.training.inference import logits_of
from expunge.training.recipe import Recipe, train_model
from toys import configured, toy_net, variants

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_crops_and_mirrors_are_the_same_bits_as_on_the_cpu(digits):
    pixels, ids = digits[0].images[:64], torch.arange(64)
    on_cpu = augmented(pixels, ids, Augment(2, True), 5, 3)
    assert torch.equal(augmented(pixels.cuda(), ids.cuda(), Augment(2, True), 5, 3).cpu(), on_cpu)


def test_logits_agree_with_the_cpu(memorised):
    model, _, test = memorised
    assert torch.allclose(logits_of(model, test), logits_of(toy_copy(model).cuda(), test), atol=1e-3)


def toy_copy(model):
    twin = toy_net()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("method", [m for m in variants() if m.scenario == "any"], ids=repr)
def test_methods_compute_on_the_gpu_and_give_the_model_back_where_it_was(method, memorised):
    model, split, _ = memorised
    unlearned = method(model, split, device="cuda")
    assert {p.device.type for p in unlearned.parameters()} == {"cpu"}
    assert not all(torch.equal(a, b) for a, b in zip(unlearned.parameters(), model.parameters(), strict=True))


def test_class_methods_compute_on_the_gpu(memorised_class):
    model, split, _ = memorised_class
    for method in variants():
        if method.scenario == "classes":
            method(model, split, device="cuda")


def test_adversarial_examples_on_the_gpu_fool_the_model_on_the_cpu(memorised):
    model, split, _ = memorised
    found = NearestL2PGD(eps_init=0.1, steps=20)(toy_copy(model).cuda(), split.forget)
    assert found.images.device.type == "cpu" and found.found.all()
    assert (logits_of(model, found).argmax(1) == found.labels).float().mean() > 0.9  # rounding may flip the nearest ones


def test_the_whole_job_on_the_gpu(memorised, tmp_path):
    _, split, test = memorised
    recipe = Recipe(epochs=4, batch_size=16)
    model = train_model(toy_net, split.train, recipe, device="cuda")
    shadows = expunge.train_shadow_models(toy_net, split.train, test, n=4, recipe=recipe, store=tmp_path, device="cuda")
    unlearned = configured(expunge.AMUN)(model, split)
    result = expunge.audit({"original": model, "unlearned": unlearned}, split, test, shadows=shadows)
    assert {p.device.type for p in unlearned.parameters()} == {"cuda"}
    assert 0 <= result["RMIA", "unlearned"].auc <= 1


def test_singular_values_and_clipping_are_those_of_the_cpu():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(16, 32, 3, stride=2, padding=1)
    here, there = (expunge.singular_values(conv.to(device), (16, 16, 16), 3) for device in ("cpu", "cuda"))
    torch.testing.assert_close(here.values, there.values, rtol=1e-4, atol=0)
    clipped = expunge.clip_model(torch.nn.Sequential(conv.to("cuda")), 0.5, input_shape=(16, 16, 16))
    assert clipped[0].weight.is_cuda
    assert expunge.singular_values(clipped[0].cpu(), (16, 16, 16)).values.item() <= 0.5 * 1.021
