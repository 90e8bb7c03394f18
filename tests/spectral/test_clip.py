"""Clipping: the bound holds by an independent measurement, and nothing else changes."""

import copy

import pytest
import torch
from torch import nn

from expunge import AMUN, Clip, GradientClip, NearestDDN, Recipe, Rescale, clip_model, forget_random, singular_values, spectrum
from expunge.errors import ConfigError, ModelError
from expunge.spectral.layers import affine_layers, grouped
from expunge.spectral.linear_maps import LinearMaps
from expunge.store import canonical
from expunge.training.recipe import train_model
from oracles import dense
from toys import toy_net


def norms(model: nn.Module, shape: tuple[int, ...], composed: bool = False) -> dict[str, float]:
    """σ₁ of every convolution and linear layer by the SVD of its matrix."""
    layers = affine_layers(model, shape, composed=composed)
    layers = [layer for layer in layers if any(p.ndim > 1 for p in layer.module.parameters())]
    return {layer.name: torch.linalg.matrix_norm(dense(layer.module, layer.input_shape), 2).item() for layer in layers}


def network(seed: int = 0, batchnorm: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(6) if batchnorm else nn.Identity()
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)
    )
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.ndim > 1 else 1)
        if batchnorm:
            norm.running_var.uniform_(0.2, 3.0)
            norm.weight.uniform_(0.5, 3.0)
    return model.eval()


SHAPE = (3, 8, 8)


@pytest.mark.parametrize("bound", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("batchnorm", ["apart", "composed"])
def test_a_clipped_model_keeps_the_bound(bound, batchnorm):
    model = network()
    before = copy.deepcopy(model.state_dict())
    clipped = clip_model(model, bound, input_shape=SHAPE, batchnorm=batchnorm)
    largest = norms(clipped, SHAPE, batchnorm == "composed")
    assert max(largest.values()) <= bound * 1.02 * (1 + 1e-4)
    assert max(largest.values()) >= 0.9 * bound  # brought down to the bound, not below it
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    for name, value in clipped.state_dict().items():
        if "running" in name or "bias" in name or "num_batches" in name:
            assert torch.equal(value, before[name]), name


def test_a_large_bound_changes_nothing():
    model = network()
    clipped = clip_model(model, 1e6, input_shape=SHAPE)
    assert all(torch.equal(v, clipped.state_dict()[name]) for name, v in model.state_dict().items())


def test_clipping_twice_is_clipping_once():
    once = clip_model(network(), 1.0, input_shape=SHAPE)
    twice = clip_model(once, 1.0, input_shape=SHAPE)
    assert all(torch.equal(v, twice.state_dict()[name]) for name, v in once.state_dict().items())


def test_smaller_values_stay_where_they_are():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(40, 40, bias=False))
    u, _ = torch.linalg.qr(torch.randn(40, 40))
    v, _ = torch.linalg.qr(torch.randn(40, 40))
    values = torch.cat([torch.tensor([5.0, 4.0, 3.0]), torch.linspace(0.9, 0.1, 37)])
    with torch.no_grad():
        layer[0].weight.copy_(u @ torch.diag(values) @ v.T)
    found = torch.linalg.svdvals(clip_model(layer, 1.0, input_shape=(40,))[0].weight.detach())
    assert found[:3] == pytest.approx([1.0] * 3, abs=0.02)
    assert found[3:] == pytest.approx(values[3:].tolist(), abs=1e-3)


def test_it_changes_less_than_rescaling():
    model, shape = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), (8, 10, 10)
    torch.manual_seed(0)
    nn.init.normal_(model[0].weight, std=0.3)
    largest, weight = norms(model, shape)["0"], model[0].weight.detach()
    clipped = clip_model(model, 0.8 * largest, input_shape=shape)[0].weight.detach()
    assert (clipped - weight).norm() < 0.7 * (0.2 * weight).norm()


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("batchnorm", ["apart", "composed"])
def test_the_bound_holds_after_training(batchnorm):
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.rand(32, *SHAPE), torch.randint(4, (32,))
    with Clip(max_norm=0.7, every=3, batchnorm=batchnorm).attach(model, optimizer, SHAPE):
        for _ in range(20):
            step(model, optimizer, x, y)
    assert max(norms(model, SHAPE, batchnorm == "composed").values()) <= 0.7 * 1.02 * (1 + 1e-4)
    assert model.training
    weight = model[0].weight.clone()
    model[0].weight.data.mul_(10)
    for _ in range(4):
        step(model, optimizer, x, y)
    assert model[0].weight.norm() > 5 * weight.norm()  # detached: nothing clips any more


def test_neither_gradients_nor_the_optimiser_nor_the_generators_change():
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    control = Clip(max_norm=0.5, every=1).attach(model, optimizer, SHAPE)
    x, y = torch.rand(8, *SHAPE), torch.randint(4, (8,))
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    gradients, running = [p.grad.clone() for p in model.parameters()], model[1].running_mean.clone()
    generator = torch.get_rng_state()
    optimizer.step()
    nn.functional.cross_entropy(model(x), y).backward()  # gradients accumulate over the clip
    momentum = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all(torch.equal(m, g) for m, g in zip(momentum, gradients, strict=True))
    assert all(not torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True) if g.any())
    assert torch.equal(generator, torch.get_rng_state())
    assert not torch.equal(running, model[1].running_mean)  # moved by the second pass alone
    control.finish()


def test_the_state_continues():
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = torch.rand(16, *SHAPE), torch.randint(4, (16,))
    control = Clip(max_norm=0.8, every=4).attach(model, optimizer, SHAPE)
    for _ in range(6):
        step(model, optimizer, x, y)
    state = copy.deepcopy((model.state_dict(), control.state_dict()))
    other = network().train()
    again = torch.optim.SGD(other.parameters(), lr=0.05)
    continued = Clip(max_norm=0.8, every=4).attach(other, again, SHAPE)
    other.load_state_dict(state[0])
    continued.load_state_dict(state[1])
    for _ in range(6):
        step(model, optimizer, x, y)
        step(other, again, x, y)
    assert all(torch.equal(v, other.state_dict()[name]) for name, v in model.state_dict().items())
    small = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    fewer = Clip().attach(small, torch.optim.SGD(small.parameters(), lr=0.1), SHAPE)
    with pytest.raises(ConfigError, match="same architecture"):
        fewer.load_state_dict(control.state_dict())


def test_an_error_inside_the_block_detaches():
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt), Clip(max_norm=0.5, every=1).attach(model, optimizer, SHAPE) as control:
        raise KeyboardInterrupt
    step(model, optimizer, torch.rand(8, *SHAPE), torch.randint(4, (8,)))
    assert control.steps == 0


def test_shared_layers_and_several_sizes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(12, 12)
            self.tied = nn.Linear(12, 12)
            self.tied.weight = self.fc.weight
            nn.init.normal_(self.conv.weight)

        def forward(self, x):
            x = nn.functional.max_pool2d(self.conv(self.conv(x)), 4)
            return self.tied(self.fc(self.conv(x).flatten(1)))

    torch.manual_seed(0)
    clipped = clip_model(Twice(), 0.5, input_shape=SHAPE)
    found = norms(clipped, SHAPE)
    assert set(found) == {"conv", "fc", "tied"}
    assert len(spectrum(clipped, SHAPE)) == 4  # the convolution at two sizes
    assert max(spectrum(clipped, SHAPE).norms.values()) <= 0.5 * 1.021
    assert clipped.tied.weight is clipped.fc.weight


@pytest.mark.parametrize("control", [Clip(every=1), Rescale(), GradientClip(every=1)], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("n_inputs", [1, 3])
def test_layers_with_fewer_inputs_than_vectors_are_followed(control, n_inputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(n_inputs, 60), nn.ReLU(), nn.Linear(60, 4))
    with torch.no_grad():
        model[1].weight.mul_(5)
    optimizer, before = torch.optim.SGD(model.parameters(), lr=0.1), norms(model, (n_inputs, 1, 1))["1"]
    with control.attach(model, optimizer, (n_inputs, 1, 1)):
        for _ in range(3):
            step(model, optimizer, torch.rand(8, n_inputs, 1, 1), torch.randint(4, (8,)))
    promised = 0.9 * before if isinstance(control, GradientClip) else 1.02 * (1 + 1e-4)  # which lowers, but promises no bound
    assert norms(model, (n_inputs, 1, 1))["1"] <= promised


def test_frozen_layers():
    model = network()
    model[0].weight.requires_grad_(False)
    with pytest.raises(ModelError, match=r"0 are frozen .* requires_grad=True"):
        clip_model(model, 0.5, input_shape=SHAPE)
    before = model[0].weight.clone()
    clipped = clip_model(model, 1.1 * norms(model, SHAPE)["0"], input_shape=SHAPE)
    assert torch.equal(clipped[0].weight, before)


def test_bad_models_and_settings():
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="max_norm"):
            Clip(max_norm=bad)
    with pytest.raises(ConfigError, match="batchnorm"):
        Clip(batchnorm="together")
    with pytest.raises(ModelError, match="input_shape"):
        clip_model(network(), 1.0, input_shape=(1, 8, 8))
    with pytest.raises(ModelError, match="convolution or linear layer"):
        Clip().attach(nn.Sequential(nn.BatchNorm2d(3)), torch.optim.SGD(nn.BatchNorm2d(3).parameters()), SHAPE)
    computed = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(192, 4)))
    with pytest.raises(ModelError, match="remove_parametrizations"):
        clip_model(computed, 1.0, input_shape=SHAPE)


def test_a_recipe_clips(digits):
    train = digits[0].subset(range(200))
    model = train_model(toy_net, train, Recipe(epochs=2, lr=0.05, clip=Clip(max_norm=0.6, every=2)), device="cpu")
    assert max(norms(model, train.shape).values()) <= 0.6 * 1.02 * (1 + 1e-4)


def test_recipes_without_a_control_keep_their_keys():
    assert "clip" not in canonical(Recipe())
    assert '"class":"Clip"' in canonical(Recipe(clip=Clip()))
    assert "clip" not in canonical(AMUN())


def test_amun_keeps_the_bound(digits):
    train = digits[0].subset(range(200))
    clip = Clip(max_norm=0.9, every=2)
    model = train_model(toy_net, train, Recipe(epochs=2, lr=0.05, clip=clip), device="cpu")
    forgotten = AMUN(epochs=2, attack=NearestDDN(steps=10), clip=clip)(model, forget_random(train, 8), device="cpu")
    assert max(norms(forgotten, train.shape).values()) <= 0.9 * 1.02 * (1 + 1e-4)
    with pytest.raises(ConfigError, match="mask_ratio"):
        AMUN(clip=clip, mask_ratio=0.5)


@pytest.mark.parametrize("batchnorm", ["apart", "composed"])
def test_statistics_are_taken_anew_without_touching_a_singular_value(batchnorm, memorised):
    model, split, _ = memorised
    images = split.train.fetch(torch.arange(len(split.train)))
    accuracy = lambda m: (m(images).argmax(1) == split.train.labels).float().mean().item()  # noqa: E731
    shape = split.train.shape
    bound = 0.4 * max(norms(model, shape, batchnorm == "composed").values())
    stale = clip_model(model, bound, input_shape=shape, batchnorm=batchnorm)
    fresh = clip_model(model, bound, input_shape=shape, batchnorm=batchnorm, images=images)
    assert accuracy(fresh) > accuracy(stale)
    assert max(norms(fresh, shape, batchnorm == "composed").values()) <= bound * 1.02 * (1 + 1e-4)
    hidden = fresh[0](images)
    torch.testing.assert_close(fresh[1].running_mean, hidden.mean((0, 2, 3)))
    assert torch.equal(fresh[1].running_var, model[1].running_var) == (batchnorm == "composed")


def test_weights_that_are_not_finite():
    for value in (float("nan"), 1e30):
        model = network()
        model[0].weight.data.fill_(value)
        with pytest.raises(ModelError, match="finite"):
            clip_model(model, 1.0, input_shape=SHAPE)


def test_layers_of_low_rank():
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 60), nn.Linear(60, 60, bias=False))
    with torch.no_grad():
        narrow[3].weight.copy_(torch.randn(60, 2) @ torch.randn(2, 60))
    clipped = clip_model(narrow, 0.1, input_shape=(1, 2, 2))
    assert max(norms(clipped, (1, 2, 2)).values()) <= 0.1 * 1.02 * (1 + 1e-4)


def test_the_first_steps_are_followed_closely_and_the_others_every_so_often():
    assert [step for step in range(1, 130) if Clip(every=50).due(step)] == [1, 2, 4, 8, 16, 32, 50, 100]
    assert all(Clip(every=1).due(step) for step in range(1, 20))
    assert [step for step in range(1, 130) if GradientClip(every=50).due(step)] == [50, 100]


@pytest.mark.parametrize("rounds", [1, 3])
def test_right_after_a_clip_the_bound_holds_even_if_its_rounds_did_not_reach_it(rounds):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    conv.weight.data.mul_(20)
    control = Clip(rounds=rounds)
    with torch.no_grad():
        control.act(affine_layers(conv, (8, 10, 10)), {})
    assert 0.9 <= singular_values(conv, (8, 10, 10)).values[0] <= 1.05


def test_products_of_rounded_maps_are_near_and_keep_the_type_of_the_vectors():
    torch.manual_seed(0)
    maps = LinearMaps([nn.Conv2d(4, 6, 3, stride=2, padding=1)], (4, 9, 9))
    x = torch.randn(1, 3, 4, 9, 9)
    rough, exact = maps.rounded(torch.bfloat16).gram(x), maps.gram(x)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert (rough - exact).norm() < 0.02 * exact.norm()
    assert maps.rounded(torch.float32) is maps and maps.numbers["weight"].dtype == torch.float32


def test_a_cpu_does_one_layer_at_a_time():
    layers = affine_layers(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)), (3, 6, 6))
    assert [len(group) for group in grouped(layers)] == [1, 1]


def test_layers_side_by_side_as_on_a_gpu_are_clipped_as_one_by_one():
    torch.manual_seed(0)
    convs = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]
    for conv, size in zip(convs, (1, 8, 20), strict=True):  # one is within the bound already, and one needs more rounds than the other
        conv.weight.data.mul_(size / singular_values(conv, (4, 8, 8)).values[0])
    together = copy.deepcopy(convs)
    layers = [affine_layers(conv, (4, 8, 8))[0] for conv in together]
    with torch.no_grad():
        Clip(rounds=3).end(layers, {})
    for k, (a, b) in enumerate(zip(convs, together, strict=True)):
        with torch.no_grad():
            Clip(rounds=3).end(affine_layers(a, (4, 8, 8)), {})
        assert 0.97 <= singular_values(b, (4, 8, 8)).values[0] <= 1.02 * (1 + 1e-3)
        assert k or torch.equal(a.weight, b.weight)
