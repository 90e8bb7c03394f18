"""What only a GPU can show; `pytest -m gpu` on a machine that has one."""

import warnings

import pytest
import torch

import expunge
from expunge.attacks import NearestL2PGD
from expunge.data.augment import augmented
from expunge.data.images import Augment, ImageData
from expunge.training import captured, loop
from expunge.training.how_many import choose_together
from expunge.training.inference import logits_of
from expunge.training.loop import sgd
from expunge.training.recipe import Recipe, train_model
from expunge.training.schedules import Cosine
from expunge.training.together import train_together
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


# Recorded steps (training/captured.py) and models side by side (training/together.py).


@pytest.fixture
def same_kernels(monkeypatch):
    """cuDNN may otherwise choose algorithms whose sums are in no fixed order, and a second run of the same code differs from the first."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


def with_dropout():
    return torch.nn.Sequential(*list(toy_net())[:-1], torch.nn.Dropout(0.3), torch.nn.Linear(128, 10))


def on_gpu(data, build=toy_net, *, recorded=True, epochs=6, batch_size=24, seed=1, **settings):
    """A model trained on the GPU, and the recordings that were replayed. 128 samples in batches of 24 have a last batch of 8."""
    recordings = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(captured, "WARM_UP", 3)
        warnings.simplefilter("error")
        original = loop.recorder
        patch.setattr(loop, "recorder", lambda *args: _spied(original(*args), recordings) if recorded else None)
        with expunge.rng.fork(seed):
            model = build().cuda()
            sgd(model, data, epochs=epochs, lr=0.05, batch_size=batch_size, schedule=Cosine(), **settings)
    return model, recordings


def _spied(record, recordings):
    def spy(work):
        replay = record(work)
        recordings.append(0)
        number = len(recordings) - 1

        def counted():
            recordings[number] += 1
            replay()

        return counted

    return spy


def distance(a, b):
    """The largest difference of two models' weights and buffers, relative to the largest weight."""
    pairs = list(zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    return max(((x.double() - y.double()).abs().max() / x.double().abs().max().clamp(min=1e-9)).item() for x, y in pairs)


@pytest.mark.parametrize("build", [toy_net, with_dropout])
@pytest.mark.parametrize(
    "settings",
    [{}, {"precision": "float32"}, {"optimizer": "adam"}, {"clip": expunge.Clip(max_norm=1.0, every=5)}, {"nesterov": True}],
    ids=str,
)
def test_recorded_steps_are_the_steps_that_they_replace(settings, build, memorised, same_kernels):
    # Same kernels in the same order on the same numbers; dropout continues the generator's counter. 1e-6 is for a library that chooses other kernels while it is recorded.
    data = memorised[1].train
    replayed, recordings = on_gpu(data, build, **settings)
    stepwise, _ = on_gpu(data, build, recorded=False, **settings)
    assert len(recordings) == 2 and recordings == [6 * 5 - 3, 6 - 3]  # full batches, and the last one of each epoch
    assert distance(replayed, stepwise) <= 1e-6


def test_dropout_differs_from_step_to_step_when_it_is_replayed(same_kernels, memorised):
    layer = torch.nn.Dropout(0.5)
    seen = torch.zeros(64, device="cuda")

    class Notes(torch.nn.Module):
        def forward(self, x):
            seen.add_((layer(torch.ones_like(seen)) > 0).float() * 1.0)
            return x

    layer.train()
    _, recordings = on_gpu(memorised[1].train.subset(range(120)), lambda: torch.nn.Sequential(toy_net(), Notes()), epochs=20)
    assert sum(recordings) > 90
    assert 30 < seen.mean() < 70 and seen.std() > 1  # of 100 draws; the same mask every time would give 0 and 100 only
    assert seen.min() > 20 and seen.max() < 80


def test_masked_weights_stay_when_steps_are_recorded(memorised):
    model, split, _ = memorised
    mask = {name: torch.rand_like(p) < 0.5 for name, p in model.named_parameters()}
    start = toy_copy(model)
    trained, recordings = on_gpu(split.train, lambda: toy_copy(model), mask=mask)
    assert sum(recordings)
    for name, p in trained.named_parameters():
        first = dict(start.named_parameters())[name]
        assert torch.equal(p.cpu()[~mask[name]], first[~mask[name]]) and not torch.equal(p.cpu(), first)


@pytest.mark.parametrize("build", [toy_net, with_dropout])
def test_models_trained_together_on_a_gpu_are_those_trained_alone(build, memorised, same_kernels, monkeypatch):
    monkeypatch.setattr(captured, "WARM_UP", 3)
    train = memorised[1].train
    trainings = [(train.subset(range(k % 2, 128 - 8 * (k % 3), 2)), k) for k in range(7)]
    recipe = Recipe(epochs=8, batch_size=16, lr=0.05)
    alone = [train_model(build, data, recipe, seed=seed, device="cuda") for data, seed in trainings]
    for n in (1, 4):
        done = sorted(train_together(build, trainings, recipe, together=n, device="cuda"), key=lambda t: t.number)
        assert all(t.error is None for t in done)
        assert max(distance(t.model, model) for t, model in zip(done, alone, strict=True)) <= 1e-6


def test_a_model_that_waits_for_the_gpu_is_trained_step_by_step_and_dropout_works_afterwards(memorised, monkeypatch):
    monkeypatch.setattr(captured, "WARM_UP", 3)

    class Waits(torch.nn.Module):
        def forward(self, x):
            return x if x.mean().item() > -1e9 else 2 * x

    def build():
        return torch.nn.Sequential(with_dropout(), Waits())

    with pytest.warns(captured.NotRecorded, match="one by one"):
        model = train_model(build, memorised[1].train, Recipe(epochs=4, batch_size=16), device="cuda")
    assert all(p.isfinite().all() for p in model.parameters())
    assert torch.rand(3, device="cuda").std() > 0  # the generator draws again


def test_the_pixels_are_on_the_gpu_once_for_all_models_and_places_give_their_memory_back(memorised, monkeypatch):
    monkeypatch.setattr(captured, "WARM_UP", 3)
    images = torch.randint(256, (4096, 3, 32, 32), dtype=torch.uint8)
    data = ImageData(images, torch.arange(4096) % 10, tuple("0123456789"), Augment(4, True))
    recipe = Recipe(epochs=1, batch_size=128)

    def build():
        return toy_net(3)

    def run(n_models, together):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for trained in train_together(
            build, [(data.subset(range(2048)), k) for k in range(n_models)], recipe, together=together, device="cuda"
        ):
            logits_of(trained.model, data)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    run(1, 1)
    held = torch.cuda.memory_allocated()
    assert held >= images.numel()  # the pixels stay there for the next models
    one, many = run(1, 1), run(8, 1)
    assert many <= 1.05 * one + 2**20  # eight models one after another need the memory of one


def test_steps_do_not_wait_for_the_gpu(memorised, monkeypatch):
    # But for the end of an epoch: what waits cannot be recorded, and streams would wait for one another.
    monkeypatch.setattr(captured, "WARM_UP", 3)
    step, calls = captured.CapturedStep.__call__, []

    def strict(self, drawn, epoch):
        calls.append(self.replaying)
        torch.cuda.set_sync_debug_mode("error" if len(calls) > 8 else "default")
        try:
            step(self, drawn, epoch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(captured.CapturedStep, "__call__", strict)
    train_model(toy_net, memorised[1].train, Recipe(epochs=6, batch_size=16), device="cuda")
    assert len(calls) == 48 and all(calls[5:])


def test_the_number_of_models_at_a_time_is_measured():
    images = torch.randint(256, (2048, 3, 32, 32), dtype=torch.uint8)
    data = ImageData(images, torch.arange(2048) % 10, tuple("0123456789"))
    chosen = choose_together(lambda: toy_net(3), data, Recipe(batch_size=128), device="cuda", most=4, seconds=0.2)
    assert 1 <= chosen.n <= 4 and 1 in chosen.rates and "images/s" in str(chosen)
