"""The controls that Clip is compared with: what each claims, against singular values of explicit matrices."""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from expunge.data.images import ImageData
from expunge.errors import ConfigError, ModelError
from expunge.rng import fork
from expunge.spectral.alternatives import GradientClip, Rescale, SpectralNorm
from expunge.spectral.control import SpectralControl
from expunge.spectral.fourier import FFTClip, GramRescale, gram_bound
from expunge.training.recipe import Recipe, train_model
from toys import toy_net

CONTROLS = [SpectralNorm, Rescale, FFTClip, GramRescale, GradientClip]
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    with fork(0):
        yield


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )  # fmt: skip


INPUTS = {"0": (1, 8, 8), "3": (6, 8, 8), "6": (128,)}  # of the layers of `net`


def large(model: nn.Module, factor: float = 4.0) -> nn.Module:
    """With weights so large that every layer is above the bound."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(factor)
    return model


def explicit(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The layer's matrix, column by column, in float64."""
    layer = copy.deepcopy(layer).double().eval()
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (layer(basis) - layer(torch.zeros_like(basis))).flatten(1).T


def norm(layer: nn.Module, shape: tuple[int, ...]) -> float:
    return torch.linalg.matrix_norm(explicit(layer, shape), 2).item()


def norms(model: nn.Module) -> dict[str, float]:
    return {name: norm(model.get_submodule(name), shape) for name, shape in INPUTS.items()}


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int = 5, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        images, labels = torch.rand(16, *SHAPE, generator=generator), torch.randint(5, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def attached_to(layer: nn.Module, control: SpectralControl, shape: tuple[int, ...], times: int = 1) -> nn.Module:
    """The layer after the control has acted so many times, without training: attaching counts as one."""
    model = nn.Sequential(copy.deepcopy(layer))
    attached = control.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), shape)
    for _ in range(times - 1):
        attached._do(control.act)
    return model[0]


# What all of them do


@pytest.mark.parametrize("control", CONTROLS)
def test_leaves_plain_weights_under_the_same_names_in_the_same_parameters(control):
    model = large(net())
    keys, parameters, types = list(model.state_dict()), list(model.parameters()), [type(m) for m in model]
    optimizer = optimizer_of(model)
    with control(max_norm=0.8).attach(model, optimizer, SHAPE):
        steps(model, optimizer)
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model] == types
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize("control", CONTROLS)
def test_weights_are_trained_while_attached_and_the_optimizer_goes_on_after(control):
    model = large(net())
    optimizer, parameters = optimizer_of(model), [model.get_submodule(name).weight for name in INPUTS]
    with control(max_norm=0.8).attach(model, optimizer, SHAPE):
        before = [p.detach().clone() for p in parameters]
        steps(model, optimizer, 1)
        assert all(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    assert all(torch.isfinite(p).all() and p.requires_grad and p.is_leaf for p in model.parameters())
    after = [p.detach().clone() for p in parameters]
    steps(model, optimizer, 1)
    assert len(optimizer.state) == len(list(model.parameters()))
    assert all(not torch.equal(p, a) for p, a in zip(parameters, after, strict=True))


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), "1"])
def test_refuses_a_bound_that_is_not_positive(control, bad):
    with pytest.raises(ConfigError, match="max_norm must be a number > 0; got"):
        control(max_norm=bad)


@pytest.mark.parametrize("control", CONTROLS)
def test_repr_is_its_recipe_and_the_global_generators_stay(control):
    assert repr(control(max_norm=0.5)).startswith(f"{control.__name__}(max_norm=0.5")
    model = net()
    before = torch.get_rng_state()
    control().attach(model, optimizer_of(model), SHAPE).finish()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_trains_by_a_recipe_and_the_same_seed_gives_the_same_bits(control, precision, digits):
    train = ImageData(digits[0].images[:48], digits[0].labels[:48], digits[0].classes)
    recipe = Recipe(epochs=1, batch_size=16, precision=precision, clip=control(max_norm=0.7))
    once, again = (train_model(toy_net, train, recipe, seed=0, device="cpu").state_dict() for _ in range(2))
    assert list(once) == list(toy_net().state_dict())
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("control", CONTROLS)
def test_channels_last_weights_give_the_same_numbers(control):
    models = [large(net()), large(net())]
    models[1].load_state_dict(models[0].state_dict())
    models[1].to(memory_format=torch.channels_last)
    for model in models:
        optimizer = optimizer_of(model)
        with control(max_norm=0.8).attach(model, optimizer, SHAPE):
            steps(model, optimizer, 3)
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # sums in another order, then three steps


@pytest.mark.parametrize("control", [Rescale, FFTClip, GramRescale, GradientClip])
def test_layers_within_the_bound_keep_every_bit(control):
    model = net()
    before = copy.deepcopy(model.state_dict())
    control(max_norm=100.0).attach(model, optimizer_of(model), SHAPE).finish()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("control", CONTROLS)
def test_frozen_layers_and_batchnorm_are_left(control):
    model = large(net())
    model[3].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    control(max_norm=0.5).attach(model, optimizer_of(model), SHAPE).finish()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "6.weight"}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_checkpoint_in_the_middle_continues_to_the_same_weights(control):
    def begin():
        with fork(3):
            model = large(net())
        optimizer = optimizer_of(model)
        return model, optimizer, control(max_norm=0.8, **({} if control is SpectralNorm else {"every": 2})).attach(model, optimizer, SHAPE)

    model, optimizer, attached = begin()
    steps(model, optimizer, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), attached.state_dict()))
    steps(model, optimizer, 3, seed=1)
    attached.finish()
    resumed, optimizer, attached = begin()
    for part, state in zip((resumed, optimizer, attached), saved, strict=True):
        part.load_state_dict(state)
    steps(resumed, optimizer, 3, seed=1)
    attached.finish()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True))


# SpectralNorm


def test_spectral_norm_is_that_of_torch():
    ours, theirs = net(), net()
    theirs.load_state_dict(ours.state_dict())
    for name in INPUTS:
        with fork(0):
            parametrizations.spectral_norm(theirs.get_submodule(name))
    optimizers = [optimizer_of(ours), optimizer_of(theirs)]
    attached = SpectralNorm(max_norm=1.0).attach(ours, optimizers[0], SHAPE)
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        steps(model, optimizer)
    for name in INPUTS:
        weights = [m.get_submodule(name).parametrizations.weight.original for m in (ours, theirs)]
        assert torch.equal(*weights)
    attached.finish()
    theirs.train()
    for name in INPUTS:
        layer = theirs.get_submodule(name)
        for _ in range(15):  # as many as ours does at the end
            layer.weight  # noqa: B018
        theirs.eval()
        torch.testing.assert_close(ours.get_submodule(name).weight, layer.weight, rtol=0, atol=0)
        theirs.train()


def test_spectral_norm_scales_the_reshaped_kernels_norm_to_c_from_both_sides():
    for factor in (0.1, 4.0):
        model = large(net(), factor)
        optimizer = optimizer_of(model)
        with SpectralNorm(max_norm=0.5).attach(model, optimizer, SHAPE):
            steps(model, optimizer)
        for name in INPUTS:
            matrix = model.get_submodule(name).weight.detach().flatten(1)
            assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(0.5, rel=0.01)  # 15 power iterations and more


def test_spectral_norm_bounds_the_convolution_itself_only_up_to_the_kernels_size():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    left = attached_to(conv, SpectralNorm(), (1, 12, 12))
    assert 2.5 < norm(left, (1, 12, 12)) <= 3.0


def test_spectral_norm_of_a_model_in_eval_mode_iterates_no_further():
    model = net().eval()
    SpectralNorm().attach(model, optimizer_of(model), SHAPE)
    images = torch.rand(4, *SHAPE)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))


def test_a_module_called_at_two_sizes_is_normalised_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(16, 2)

        def forward(self, x):
            return self.last(self.conv(nn.functional.max_pool2d(self.conv(x), 2)).flatten(1))

    model = Twice()
    keys = list(model.state_dict())
    attached = SpectralNorm().attach(model, optimizer_of(model), SHAPE)
    assert len(model.conv.parametrizations.weight) == 1
    attached.finish()
    assert list(model.state_dict()) == keys


def test_spectral_norm_refuses_two_layers_that_share_a_weight():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1))
    model[1].weight = model[0].weight
    with pytest.raises(ModelError, match="each weight must belong to one layer; got one that 0 and 1 share"):
        SpectralNorm().attach(model, optimizer_of(model), SHAPE)
    assert not parametrize.is_parametrized(model[0])


def test_spectral_norm_can_be_abandoned_and_leaves_what_was_computed():
    model, control = large(net()), SpectralNorm(max_norm=0.5)
    optimizer = optimizer_of(model)
    attached = control.attach(model, optimizer, SHAPE)
    steps(model, optimizer)
    images = torch.rand(4, *SHAPE)
    with torch.no_grad():
        before = model.eval()(images)
        for group, memory in zip(attached.groups, attached.memories, strict=True):
            control.abandon(group, memory)
        assert not any(parametrize.is_parametrized(m) for m in model.modules())
        assert torch.equal(model(images), before)


@pytest.mark.skipif(not hasattr(SpectralControl, "abandon"), reason="control.py does not call abandon yet")
def test_an_error_inside_the_block_leaves_plain_weights():
    model = net()
    with pytest.raises(KeyboardInterrupt), SpectralNorm().attach(model, optimizer_of(model), SHAPE):
        raise KeyboardInterrupt
    assert list(model.state_dict()) == list(net().state_dict())


# Rescale


def test_rescale_brings_the_true_norm_to_c_after_every_step():
    model = large(net())
    optimizer = optimizer_of(model)
    with Rescale(max_norm=0.5).attach(model, optimizer, SHAPE):
        assert all(value == pytest.approx(0.5, rel=1e-3) for value in norms(model).values())
        for _ in range(5):
            steps(model, optimizer, 1)
            assert all(value <= 0.5 * 1.01 for value in norms(model).values())  # few products, from a warm start
    assert all(value <= 0.5 * 1.001 for value in norms(model).values())


def test_rescale_divides_by_one_number():
    model = large(net())
    before = copy.deepcopy(model.state_dict())
    sigma = norms(model)
    Rescale(max_norm=0.5).attach(model, optimizer_of(model), SHAPE)
    for name in INPUTS:
        torch.testing.assert_close(
            model.get_submodule(name).weight.detach(), before[f"{name}.weight"] * (0.5 / sigma[name]), rtol=1e-3, atol=1e-6
        )


# FFTClip


EXACT = [
    (nn.Conv2d(3, 4, 1), (3, 5, 5)),
    (nn.Conv2d(3, 4, 1, stride=2), (3, 6, 6)),
    (nn.Conv2d(2, 3, 5, padding="same", padding_mode="circular"), (2, 5, 5)),
    (nn.Conv2d(4, 6, 1, groups=2), (4, 3, 3)),
    (nn.Conv1d(2, 3, 7, padding="same", padding_mode="circular"), (2, 7)),
    (nn.ConvTranspose2d(4, 3, 1), (4, 3, 3)),
    (nn.Linear(7, 5), (7,)),
]


@pytest.mark.parametrize(("layer", "shape"), EXACT, ids=[str(layer) for layer, _ in EXACT])
def test_fft_clip_is_the_clipping_of_the_matrix_where_nothing_is_cut(layer, shape):
    layer = large(copy.deepcopy(layer))
    u, s, vh = torch.linalg.svd(explicit(layer, shape), full_matrices=False)
    c = s.median().item()  # half of them above, half below
    left = attached_to(layer, FFTClip(max_norm=c), shape)
    torch.testing.assert_close(explicit(left, shape), (u * s.clamp(max=c)) @ vh, rtol=0, atol=1e-5 * s[0].item())
    assert torch.equal(left.bias, layer.bias)


def test_fft_clip_of_a_stride_is_exact_for_wrapped_images_and_full_kernels():
    """torch pads at most once around: 4 outputs from windows of 8 on an image of 8 + 7."""
    conv = nn.Conv2d(2, 3, 8, stride=2, bias=False)
    wrapped = nn.Sequential(nn.CircularPad2d((0, 7, 0, 7)), conv)
    u, s, vh = torch.linalg.svd(explicit(wrapped, (2, 8, 8)), full_matrices=False)
    left = attached_to(conv, FFTClip(max_norm=s.median().item()), (2, 8, 8))
    wrapped = nn.Sequential(wrapped[0], left)
    torch.testing.assert_close(explicit(wrapped, (2, 8, 8)), (u * s.clamp(max=s.median())) @ vh, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"stride": 2}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"stride": 3}, {"padding": 1, "stride": (1, 2)}]
)
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_fft_clip_of_other_convolutions_comes_down_towards_c(kind, options):
    layer = large(kind(4, 4, 3, **options))
    before = norm(layer, (4, 6, 6))
    c = before / 4
    values = [norm(attached_to(layer, FFTClip(max_norm=c), (4, 6, 6), times), (4, 6, 6)) for times in (1, 10)]
    assert values[1] <= values[0] <= 0.7 * before
    assert values[1] <= 1.25 * c


# GramRescale


LAYERS = [
    (nn.Conv2d(3, 5, 3, padding=1), (3, 6, 7)),
    (nn.Conv2d(3, 5, 3), (3, 6, 7)),
    (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 7, 6)),
    (nn.Conv2d(5, 3, 3, stride=3, padding=2), (5, 7, 7)),
    (nn.Conv2d(3, 5, 1, stride=2), (3, 7, 7)),
    (nn.Conv2d(2, 3, 3, dilation=2, padding=2), (2, 6, 6)),
    (nn.Conv2d(2, 3, 2, padding="same"), (2, 5, 5)),
    (nn.Conv2d(2, 3, 3, padding=4), (2, 4, 4)),
    (nn.Conv2d(2, 3, 3, padding=1), (2, 1, 1)),
    (nn.Conv2d(2, 3, (5, 1), padding=(2, 0), stride=(2, 1)), (2, 6, 4)),
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5)),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 5)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    (nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode="circular"), (2, 6, 5)),
    (nn.Conv2d(2, 3, 7, padding=3, padding_mode="circular"), (2, 4, 4)),
    (nn.Conv1d(2, 3, 3, padding=1, stride=2), (2, 9)),
    (nn.Conv3d(2, 2, 3, padding=1), (2, 3, 3, 3)),
    (nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), (3, 4, 4)),
    (nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1, groups=2), (4, 3, 3)),
    (nn.Linear(9, 6), (9,)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[f"{layer} {shape}" for layer, shape in LAYERS])
def test_gram_bound_is_above_the_norm_and_falls_with_iterations(layer, shape):
    for each in (copy.deepcopy(layer).double(), positive(layer).double()):
        exact = norm(each, shape)
        bounds = [gram_bound(each, shape, iterations=n) for n in (1, 2, 4, 6, 8, 12)]
        assert all(bound >= exact * (1 - 1e-12) for bound in bounds)  # float64
        assert all(a >= b * (1 - 1e-12) for a, b in itertools.pairwise(bounds))
        assert bounds[3] <= bounds[5] * 6 ** (1 / 128) * (1 + 1e-3)  # at most 6 singular values at a frequency


def positive(layer: nn.Module) -> nn.Module:
    """Its top vectors are flat, so that padding matters most."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.abs_()
    return layer


@pytest.mark.parametrize(("layer", "shape"), EXACT, ids=[str(layer) for layer, _ in EXACT])
def test_gram_bound_converges_to_the_norm_where_images_wrap_round(layer, shape):
    layer = copy.deepcopy(layer).double()
    assert gram_bound(layer, shape, iterations=14) == pytest.approx(norm(layer, shape), rel=1e-3)


def test_gram_bound_on_the_images_own_grid_would_be_too_small():
    """Why the grid is larger by the padding: a zero-padded row that alternates in sign fits into an odd image, and not round a wrapped one."""
    conv = nn.Conv1d(1, 1, 3, padding=1, bias=False).double()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[-1.0, 1.0, -1.0]]]))
    exact = norm(conv, (1, 3))
    wrapped = nn.Conv1d(1, 1, 3, padding=1, bias=False, padding_mode="circular").double()
    wrapped.load_state_dict(conv.state_dict())
    assert norm(wrapped, (1, 3)) < exact <= gram_bound(conv, (1, 3))


def test_gram_bound_neither_overflows_nor_vanishes():
    for factor in (1e-15, 1e15):
        conv = large(nn.Conv2d(3, 5, 3, padding=1), factor)
        assert norm(conv, (3, 6, 6)) <= gram_bound(conv, (3, 6, 6), iterations=12) * (1 + 1e-5) < float("inf")
    assert gram_bound(large(nn.Linear(3, 3), 0.0), 3) == 0


def test_gram_bound_refuses_what_it_has_no_bound_for():
    with pytest.raises(ModelError, match="must be a convolution or Linear; got BatchNorm2d"):
        gram_bound(nn.BatchNorm2d(3), (3, 4, 4))
    with pytest.raises(ConfigError, match="iterations must be an integer ≥ 1; got 0"):
        gram_bound(nn.Linear(3, 3), 3, iterations=0)
    with pytest.raises(ModelError, match="input_shape must be"):
        gram_bound(nn.Linear(3, 3), 4)
    for options in ({"padding_mode": "reflect", "padding": 1}, {"padding_mode": "circular", "padding": 2}):
        with pytest.raises(ModelError, match="the bound is known for zero padding"):
            gram_bound(nn.Conv2d(1, 1, 3, **options), (1, 5, 5))


def test_gram_rescale_refuses_before_it_changes_anything():
    model = large(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate")))
    before = model[0].weight.detach().clone()
    with pytest.raises(ModelError, match="the bound is known for zero padding"):
        GramRescale().attach(model, optimizer_of(model), SHAPE)
    assert torch.equal(model[0].weight, before)


def test_gram_rescale_holds_the_bound_and_not_far_below():
    model = large(net())
    optimizer = optimizer_of(model)
    with GramRescale(max_norm=0.5, every=1).attach(model, optimizer, SHAPE):
        for _ in range(5):
            steps(model, optimizer, 1)
            assert all(value <= 0.5 * (1 + 1e-5) for value in norms(model).values())
    for layer, shape in ((nn.Conv2d(6, 8, 3, padding=1), (6, 8, 8)), (nn.Linear(20, 10), (20,))):
        coarse, fine = (norm(attached_to(large(layer), GramRescale(max_norm=0.5, iterations=n), shape), shape) for n in (1, 8))
        assert 0.2 < coarse < 0.97 * fine
        assert fine > 0.45  # the rest is the difference between zeros and a wrapped image


# GradientClip


def authors(layer: nn.Module, shape: tuple[int, ...], c: float, n: int, lr: float) -> nn.Module:
    """Slow and literal: J = mean over batch and last axis of the sum over the other axes of (A((c/σ)v) − A'(v))²; n plain steps on the weight."""
    frozen, trained = copy.deepcopy(layer), copy.deepcopy(layer)
    _, s, vh = torch.linalg.svd(explicit(layer, shape))
    v = vh[0].reshape(1, *shape).to(layer.weight)
    zero = torch.zeros_like(v)
    for _ in range(n):
        trained.zero_grad()
        target = frozen((c / s[0].item()) * v) - frozen(zero)
        error = (target.detach() - (trained(v) - trained(zero))) ** 2
        loss = error.sum((1, 2)).mean() if error.ndim == 4 else error.sum(1).mean()  # a Linear has no last axis beside its features
        loss.backward()
        with torch.no_grad():
            trained.weight -= lr * trained.weight.grad
    return trained


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(1, 3, 3, padding=1), (1, 4, 5)),
        (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 3, 3)),
        (nn.ConvTranspose2d(2, 3, 3), (2, 3, 3)),
        (nn.Linear(12, 7), (12,)),
    ],
    ids=str,
)
def test_gradient_clip_takes_the_authors_steps(layer, shape, n):
    layer = large(copy.deepcopy(layer))
    c = 0.6 * norm(layer, shape)
    left = attached_to(layer, GradientClip(max_norm=c, steps=n, lr=0.2), shape)
    torch.testing.assert_close(left.weight, authors(layer, shape, c, n, 0.2).weight, rtol=1e-4, atol=1e-5)
    assert not torch.equal(left.weight, layer.weight)
    assert torch.equal(left.bias, layer.bias)


def test_gradient_clip_brings_a_linear_down_at_once_and_leaves_its_other_values():
    layer = large(nn.Linear(12, 7))
    s = torch.linalg.svdvals(layer.weight.detach().double())
    c = s[1].item() * 1.01
    left = torch.linalg.svdvals(attached_to(layer, GradientClip(max_norm=c), (12,)).weight.detach().double())
    assert left[0].item() == pytest.approx(c + 0.3**5 * (s[0].item() - c), rel=1e-4)  # 1 − 2 λ = 0.3 of the error is left by each step
    torch.testing.assert_close(left[1:], s[1:], rtol=1e-4, atol=0)


def test_gradient_clip_brings_a_convolution_down_slowly():
    layer = large(nn.Conv2d(4, 4, 3, padding=1))
    c, before = 1.0, norm(layer, (4, 8, 8))
    values = [norm(attached_to(layer, GradientClip(max_norm=c), (4, 8, 8), times), (4, 8, 8)) for times in (1, 10, 40)]
    assert before > values[0] > values[1] > values[2] > 0.99
    assert values[2] < 1.2


def test_gradient_clip_enlarges_small_convolutions_if_two_sided_and_never_a_linear():
    for two_sided in (False, True):
        model = large(net(), 0.2)
        before = norms(model)
        attached = GradientClip(max_norm=1.0, two_sided=two_sided).attach(model, optimizer_of(model), SHAPE)
        for _ in range(12):
            attached._do(attached.control.act)
        after = norms(model)
        assert after["6"] == before["6"]
        assert all((after[name] > 0.8) == two_sided and (after[name] == before[name]) != two_sided for name in ("0", "3"))


def test_two_sided_leaves_what_is_just_below_c():
    conv = nn.Conv2d(1, 1, 1, bias=False)
    for value, moves in ((0.96, False), (0.94, True), (1.001, True)):
        nn.init.constant_(conv.weight, value)
        left = attached_to(conv, GradientClip(two_sided=True), (1, 4, 4))
        assert torch.equal(left.weight, conv.weight) != moves


def test_all_have_the_fields_that_a_training_loop_reads():
    for control in CONTROLS:
        made = control(max_norm=2.0)
        assert dataclasses.is_dataclass(made) and isinstance(made, SpectralControl)
        assert made.max_norm == 2.0 and made.every >= 1
