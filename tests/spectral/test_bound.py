"""The bound on the network: exact where the truth is known, never below a Jacobian or a finite difference, and no number where nothing is known."""

import copy
import math
import re
import threading
import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn import functional

from expunge.errors import ModelError
from expunge.models.architecture import ARCHITECTURES, Architecture
from expunge.rng import fork
from expunge.spectral.bound import Bound, lipschitz_bound

TOLERANCE = 1 + 1e-9  # everything here is float64


class Apply(nn.Module):
    """A function as a network, with parts and constants that it may use."""

    def __init__(self, function, *parts: nn.Module, **constants: Tensor):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)
        for name, constant in constants.items():
            self.register_buffer(name, constant)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.fixture(autouse=True)
def _float64_and_a_seed():
    torch.set_default_dtype(torch.float64)
    with fork(0):
        yield
    torch.set_default_dtype(torch.float32)


def jacobian_norm(model: nn.Module, image: Tensor) -> float:
    jacobian = jacrev(lambda x: model(x[None]).flatten())(image).flatten(1)
    return torch.linalg.matrix_norm(jacobian, 2).item()


def exact(module: nn.Module, shape: tuple[int, ...]) -> float | None:
    """The spectral norm of a convolution from its explicit matrix."""
    return jacobian_norm(module, torch.zeros(shape)) if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) else None


def coarse(module: nn.Module, shape: tuple[int, ...]) -> float | None:
    """More than the spectral norm of a convolution of any size: each weight is in one window at each offset."""
    return module.weight.norm().item() * math.sqrt(math.prod(module.kernel_size)) if isinstance(module, nn.Conv2d) else None


def nothing(module: nn.Module, shape: tuple[int, ...]) -> None:
    return None


def assert_bounds(model: nn.Module, shape: tuple[int, ...], norms=exact, n: int = 5) -> float:
    """The bound, after comparing it with Jacobians at random images and with differences between images near and far."""
    bound = lipschitz_bound(model, shape, norms)
    assert bound.reason == "" and bound.value is not None
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for _ in range(n):
        a, step = 2 * torch.randn(shape), torch.randn(shape)
        assert jacobian_norm(model, a) <= bound.value * TOLERANCE
        for size in (1e-3, 1.0, 10.0):
            b = a + size * step
            assert (model(a[None]) - model(b[None])).norm() <= bound.value * (a - b).norm() * TOLERANCE
    return bound.value


def trained_bn(n: int) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(n)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.2, 3)
    nn.init.normal_(bn.weight)
    return bn


# Exact where the truth is known


def test_one_linear_layer_has_its_spectral_norm():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    assert assert_bounds(net, (3, 2, 2), nothing) == pytest.approx(torch.linalg.matrix_norm(net[1].weight, 2).item())


def test_a_chain_has_the_product_and_relus_cost_nothing():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )
    product = exact(net[0], (2, 6, 6)) * exact(net[2], (4, 6, 6)) * torch.linalg.matrix_norm(net[5].weight, 2).item()
    assert assert_bounds(net, (2, 6, 6)) == pytest.approx(product)


def test_a_shortcut_adds_one_and_not_a_factor():
    inner = nn.Conv2d(2, 2, 3, padding=1)
    net = Apply(lambda self, x: x + self.parts[0](x), inner)
    assert assert_bounds(net, (2, 5, 5)) == pytest.approx(1 + exact(inner, (2, 5, 5)))


def test_a_shortcut_of_the_identity_is_tight():
    assert assert_bounds(Apply(lambda self, x: x + x), (1, 2, 2)) == 2


def test_a_layer_that_is_called_at_two_sizes_has_two_norms():
    conv = nn.Conv2d(1, 1, 3, padding=1)
    net = Apply(lambda self, x: self.parts[0](functional.max_pool2d(self.parts[0](x), 2)), conv)
    assert assert_bounds(net, (1, 6, 6)) == pytest.approx(exact(conv, (1, 6, 6)) * exact(conv, (1, 3, 3)))


def test_the_order_of_calls_and_their_shapes_reach_norms():
    calls = []

    def norms(module, shape):
        calls.append((type(module).__name__, shape))

    lipschitz_bound(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1)), (1, 4, 4), norms)
    assert calls == [("Sequential", (1, 4, 4)), ("Conv2d", (1, 4, 4)), ("Flatten", (2, 2, 2)), ("Linear", (8,))]


def test_a_norm_for_a_container_counts_for_all_of_it():
    block = nn.Sequential(nn.Linear(2, 2), nn.Softmax(1))
    net = nn.Sequential(nn.Flatten(), block, nn.ReLU())
    assert lipschitz_bound(net, (1, 1, 2), lambda module, shape: 7.0 if module is block else None) == Bound(7.0)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda self, x: 3 - x / 2, 0.5),
        (lambda self, x: -2 * x * self.c, 2 * 1.5),
        (lambda self, x: self.c * x, 1.5),
        (lambda self, x: x / self.c, 1 / 0.5),
        (lambda self, x: (x - self.c).mul_(3).add_(x), 4),
        (lambda self, x: torch.add(x, x, alpha=-3), 4),
        (lambda self, x: torch.cat([x, 2 * x], 1), math.sqrt(5)),
        (lambda self, x: torch.stack((x, x)), math.sqrt(2)),
        (lambda self, x: x.mean((2, 3)), 1 / 4),
        (lambda self, x: x.mean(dim=1, keepdim=True), 1 / math.sqrt(3)),
        (lambda self, x: x.sum(1), math.sqrt(3)),
        (lambda self, x: x.amax((2, 3)), 1),
        (lambda self, x: x.max(1).values, 1),
        (lambda self, x: torch.maximum(x, x), math.sqrt(2)),
        (lambda self, x: x.mean((2, 3), keepdim=True) + torch.zeros(1, 3, 4, 4), 1),  # broadcast 16 times: √16 / √16
        (lambda self, x: x + x.mean((2, 3), keepdim=True), 2),
        (lambda self, x: x[:, :1].expand(-1, 9, -1, -1), 3),
        (lambda self, x: x[:, :1] * self.c, 1.5 * math.sqrt(3)),
        (lambda self, x: x.repeat(1, 2, 2, 1), 2),
        (lambda self, x: functional.pad(x, (1, -1, 2, 0)), 1),
        (lambda self, x: functional.pad(x, (1, 1, 0, 0), mode="reflect"), math.sqrt(2)),
        (lambda self, x: functional.pad(x, (1, 1, 2, 0), mode="replicate"), math.sqrt(2) * math.sqrt(3)),
        (lambda self, x: x.flatten(1) @ self.matrix, 3),
        (lambda self, x: self.matrix.T @ x.reshape(1, 48, 1), 3),
        (lambda self, x: functional.linear(x.view(1, 48), self.matrix.T), 3),
        (lambda self, x: torch.where(self.c > 1, x, 0.0), 1),
        (lambda self, x: x.transpose(1, 3).contiguous().permute(0, 2, 1, 3).squeeze().unsqueeze(0).clone().detach().to(torch.float64), 1),
        (lambda self, x: x.chunk(3, 1)[1], 1),
        (lambda self, x: functional.dropout(x, 0.5, training=self.training), 1),
        (lambda self, x: functional.avg_pool2d(x, 2), 1 / 2),
        (lambda self, x: functional.adaptive_avg_pool2d(x, 1), 1 / 4),
        (lambda self, x: functional.max_pool2d(x, 2), 1),
        (lambda self, x: functional.max_pool2d(x, 3, 2, 1), 2),
        (lambda self, x: functional.max_pool2d(x, 4, 1), 1),  # one window only
        (lambda self, x: functional.max_pool2d(x, 2, 1, dilation=2), 2),
        (lambda self, x: functional.adaptive_max_pool2d(x, (2, 1)), 1),
        (lambda self, x: functional.adaptive_max_pool2d(x, 3), 2),  # windows of two that overlap
        (lambda self, x: torch.zeros(1, 2) + 1, 0),
        (lambda self, x: x.data.neg().mT, 1),
        (lambda self, x: torch.zeros_like(x).add_(x).add_(x.new_ones(1)), 1),
    ],
)  # fmt: skip
def test_constants_of_functions(function, expected):
    net = Apply(function, c=torch.tensor([1.5, -0.5, 1.0])[:, None, None], matrix=torch.eye(48, 4) * 3)
    assert assert_bounds(net, (3, 4, 4), n=2) == pytest.approx(expected)


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3, 1), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d((3, 2), 2, (1, 0), ceil_mode=True), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(2, 3, ceil_mode=True), nn.AdaptiveAvgPool2d((3, 5)), nn.AdaptiveAvgPool2d((None, 2)),
    ],
    ids=str,
)  # fmt: skip
def test_average_pools_have_their_exact_norm(pool):
    assert assert_bounds(pool, (2, 7, 8)) == pytest.approx(jacobian_norm(pool, torch.zeros(2, 7, 8)))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pools_count_the_windows_of_the_busiest_pixel(kernel, stride, dilation, ceil_mode):
    pool = nn.MaxPool1d(kernel, stride, kernel // 2, dilation, ceil_mode=ceil_mode)
    images = torch.eye(40)[:, None]  # one bright pixel each, which is the maximum of every window that it is in
    reached = pool(images).clamp(min=0).sum((1, 2)).max().item()
    assert lipschitz_bound(pool, (1, 40), nothing).value == pytest.approx(math.sqrt(reached))


@pytest.mark.parametrize(
    ("activation", "slope"),
    [
        (nn.ReLU(), 1), (nn.ReLU6(), 1), (nn.LeakyReLU(0.1), 1), (nn.LeakyReLU(2.0), 2), (nn.Tanh(), 1), (nn.Sigmoid(), 0.25), (nn.Hardtanh(), 1),
        (nn.ELU(), 1), (nn.ELU(1.7), 1.7), (nn.CELU(2.0), 1), (nn.SELU(), 1.7581), (nn.Softplus(), 1), (nn.Softplus(3.0), 1), (nn.GELU(), 1.1289),
        (nn.GELU("tanh"), 1.129), (nn.SiLU(), 1.09984), (nn.Mish(), 1.0885), (nn.Hardswish(), 1.5), (nn.Hardsigmoid(), 1 / 6), (nn.Softsign(), 1),
        (nn.PReLU(), 1), (nn.PReLU(init=-3.0), 3), (nn.LogSigmoid(), 1), (nn.Softshrink(), 1), (nn.Tanhshrink(), 1), (nn.Identity(), 1), (nn.Dropout(), 1),
        (nn.ReLU(inplace=True), 1), (nn.ELU(1.7, inplace=True), 1.7), (nn.LeakyReLU(2.0, inplace=True), 2),
    ],
    ids=str,
)  # fmt: skip
def test_activations_have_their_steepest_slope(activation, slope):
    bound = lipschitz_bound(nn.Sequential(nn.Flatten(), activation.double()), (1, 1, 1), nothing).value
    x = torch.linspace(-30, 30, 600_001)
    with torch.no_grad():
        y = activation.eval()(x.clone())
    steepest = (y.diff() / x.diff()).abs().max().item()
    assert bound == pytest.approx(slope, abs=1e-4)
    assert steepest * (1 - 1e-6) <= bound <= steepest * 1.001  # differences of rounded numbers, 1e-4 apart


# Networks


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_of_the_registry_has_a_bound(name):
    model = Architecture(name, 4, (3, 8, 8), (0.5,) * 3, (0.25,) * 3)().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    assert_bounds(model, (3, 8, 8), coarse, n=1)


def test_torchvisions_resnet_counts_its_overlapping_pool():
    model = torchvision.models.resnet18(num_classes=10)
    with_overlap = assert_bounds(model, (3, 8, 8), coarse, n=1)
    model.maxpool = nn.MaxPool2d(1, 2)  # the same sizes without overlap
    assert with_overlap == pytest.approx(2 * lipschitz_bound(model, (3, 8, 8), coarse).value)


def test_a_linear_network_with_shortcuts_is_never_underrated():
    parts = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), trained_bn(3)), nn.Conv2d(2, 3, 1), nn.ConvTranspose2d(3, 2, 2, 2)
    net = Apply(lambda self, x: torch.cat([self.parts[2](self.parts[0](x) - self.parts[1](x)), functional.pad(x, (0, 4, 0, 4))], 1), *parts)
    assert_bounds(net, (2, 4, 4))


def test_branches_that_share_a_storage_stay_apart():
    net = Apply(lambda self, x: (x * 1).view(1, -1).mul_(10).sum(1) + x.sum((1, 2, 3)))
    assert assert_bounds(net, (1, 2, 2)) == pytest.approx(22)


def test_normalize_in_front_counts():
    model = Architecture("small", 3, (1, 8, 8), (0.5,), (0.25,))().double()
    assert lipschitz_bound(model, (1, 8, 8), coarse).value == pytest.approx(4 * lipschitz_bound(model[1], (1, 8, 8), coarse).value)


# Compositions


def composed_exactly(first: nn.Module, second: nn.Module, shape: tuple[int, ...]) -> float | None:
    if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
        return jacobian_norm(nn.Sequential(first, second).eval(), torch.zeros(shape))
    return None


@pytest.mark.parametrize("norms", [exact, nothing])
def test_batch_norm_after_a_convolution_counts_with_it(norms):
    net = nn.Sequential(nn.Sequential(nn.Conv2d(2, 4, 3)), nn.Identity(), trained_bn(4))  # the very output, though modules lie between
    together = composed_exactly(net[0][0], net[2], (2, 5, 5))
    bound = lipschitz_bound(net, (2, 5, 5), norms, composed=composed_exactly)
    assert bound.value == pytest.approx(together)
    assert together < lipschitz_bound(net, (2, 5, 5), exact).value


@pytest.mark.parametrize("between", [nn.ReLU(inplace=True), nn.ReLU(), nn.MaxPool2d(2)], ids=str)
def test_batch_norm_after_something_else_counts_alone(between):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), between, trained_bn(4))
    assert lipschitz_bound(net, (2, 5, 5), exact, composed=composed_exactly) == lipschitz_bound(net, (2, 5, 5), exact)


def test_the_smaller_of_pair_and_product_counts():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), trained_bn(4))

    def norms(module, shape):
        return 2.0 if isinstance(module, nn.Conv2d | nn.BatchNorm2d) else None

    assert lipschitz_bound(net, (2, 5, 5), norms, composed=lambda first, second, shape: 3.0 if shape == (2, 5, 5) else None).value == 3
    assert lipschitz_bound(net, (2, 5, 5), norms, composed=lambda first, second, shape: 5.0).value == 4


# No number where nothing is known


def through_data(x: Tensor) -> Tensor:
    y = x * 1
    y.data = 100 * x
    return y


def through_rows(x: Tensor) -> Tensor:
    y = x * 1
    for row in y[0]:
        row.mul_(100)
    return y


def through_a_constant(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape)
    y.view(-1).add_(100 * x.flatten())
    return x + y


def through_out(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape)
    torch.mul(x, 100, out=y)
    return x + y


def through_copy(x: Tensor) -> Tensor:
    return x + torch.zeros(x.shape).copy_(100 * x)


def through_items(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape)
    y[:, 0] = 100 * x[:, 0]
    return x + y


def through_set(x: Tensor) -> Tensor:
    return x + torch.zeros(1).set_(100 * x)


def through_another_thread(x: Tensor) -> Tensor:
    y = x * 1
    thread = threading.Thread(target=lambda: y.mul_(100))  # modes see one thread only
    thread.start()
    thread.join()
    return y


def through_a_swap(x: Tensor) -> Tensor:
    y, z = x * 1, x * 100
    torch.utils.swap_tensors(y, z)
    return y


class Hundredfold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return torch.ops.aten.mul(x, 100)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: x * x, "mul .* multiplies two tensors"),
        (lambda x: torch.zeros(1, 3, 4, 4).mul_(x), "mul_ .* overwrites the constant"),
        (lambda x: x / x, "div .* divides by a tensor"),
        (lambda x: 1 / x, "no known"),
        (lambda x: x / torch.zeros(1), "divides by 0"),
        (lambda x: x @ x.mT, "matmul .* multiplies two tensors"),
        (lambda x: x.softmax(1), "softmax in the_layer has no known Lipschitz constant"),
        (lambda x: functional.layer_norm(x, (4,)), "layer_norm"),
        (lambda x: functional.conv2d(x, torch.ones(1, 3, 1, 1)), "conv2d .* is a convolution whose spectral norm"),
        (functional.dropout, "dropout .* although the model is in eval mode"),
        (lambda x: functional.batch_norm(x, None, None, training=True), "batch_norm .* statistics of the batch"),
        (lambda x: functional.scaled_dot_product_attention(x, x, x), "scaled_dot_product_attention"),
        (lambda x: x.clamp(min=x.mean()), "clamp .* depend on the image"),
        (lambda x: x[:, [0, 0, 0]], "__getitem__ .* picks elements"),
        (lambda x: x.view(torch.int64), "view .* makes integers|view .* bits"),
        (lambda x: x.int().double(), "int"),
        (lambda x: (x > 0) * 5.0, "gt"),
        (lambda x: x * (x > 0), "gt"),
        (lambda x: x if x.mean() > 0 else 2 * x, "gt|__bool__"),
        (lambda x: x * x.max().item(), r"takes values out of a tensor \(item\)"),
        (lambda x: x + torch.tensor(x.numpy()), r"takes values out of a tensor \(numpy\)"),
        (lambda x: x + len(x.nonzero()), "nonzero"),
        (lambda x: functional.max_pool2d(x, 2, return_indices=True)[1].double(), "integers"),
        (lambda x: functional.avg_pool2d(x, 2, divisor_override=1), "divisor"),
        (lambda x: functional.softplus(x, 1, 1), "softplus .* jumps"),
        (lambda x: torch.ops.aten.mul(x, 100), "no known"),
        (Hundredfold.apply, "no known|out of sight"),
        (through_data, "sets|__set__|out of sight|writes"),
        (through_rows, "is a view|__iter__|takes values"),
        (through_a_constant, "is a view"),
        (through_out, "called with arguments|writes into"),
        (through_copy, "copy_"),
        (through_items, "__setitem__"),
        (through_set, "out of sight"),
        (through_another_thread, "out of sight"),
        (through_a_swap, "out of sight"),
        (lambda x: len(repr(x)) * x, "__repr__"),
    ],
)  # fmt: skip
def test_what_has_no_constant_gives_no_number_but_its_name(function, named):
    net = nn.Sequential()
    net.add_module("the_layer", Apply(lambda self, x: function(x)))
    bound = lipschitz_bound(net, (3, 4, 4), nothing)
    assert bound.value is None
    assert re.search(named, bound.reason), bound.reason


def test_tensors_from_out_of_sight_are_not_taken_for_constants():
    elsewhere = torch.ones(1)
    bound = lipschitz_bound(Apply(lambda self, x: x * elsewhere), (1, 2, 2), nothing)
    assert bound.value is None and "out of sight" in bound.reason


def test_scripted_code_runs_out_of_sight_and_says_so():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates scripts, but old ones are still loaded
        scripted = torch.jit.trace(lambda x: x * 100, torch.ones(1, 1, 2, 2))
    bound = lipschitz_bound(Apply(lambda self, x: x + scripted(x)), (1, 2, 2), nothing)
    assert bound.value is None and "out of sight" in bound.reason


def test_compiled_code_is_followed_eagerly():
    torch.compiler.reset()
    compiled = torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), backend="eager")
    weight = compiled._orig_mod[1].weight
    assert lipschitz_bound(compiled, (1, 2, 2), nothing).value == pytest.approx(torch.linalg.matrix_norm(weight, 2).item())


def test_an_unknown_function_off_the_path_to_the_logits_does_no_harm():
    net = Apply(lambda self, x: (x.softmax(1), 2 * x)[1])
    assert lipschitz_bound(net, (1, 2, 2), nothing) == Bound(2.0)


@pytest.mark.parametrize("function", [lambda self, x: (x, x), lambda self, x: {"logits": x}, lambda self, x: None])
def test_an_output_that_is_not_one_tensor_gives_a_reason(function):
    bound = lipschitz_bound(Apply(function), (1, 2, 2), nothing)
    assert bound.value is None and "must return one tensor; got" in bound.reason


@pytest.mark.parametrize("norm", [math.nan, math.inf, -1.0])
def test_a_norm_that_is_no_norm_gives_a_reason(norm):
    bound = lipschitz_bound(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2), lambda m, s: norm if isinstance(m, nn.Linear) else None
    )
    assert bound.value is None and "no finite number" in bound.reason


def test_what_other_hooks_do_to_an_output_is_followed():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    handle = net[0].register_forward_hook(lambda module, args, output: 10 * output)
    try:
        assert lipschitz_bound(net, (1, 2, 2), lambda m, s: 1.0 if isinstance(m, nn.Conv2d) else None) == Bound(10.0)
    finally:
        handle.remove()


def test_an_image_that_does_not_fit_is_an_error_with_a_remedy():
    with pytest.raises(ModelError, match=r"must take images of shape \(2, 4, 4\); got: .* Pass the"):
        lipschitz_bound(nn.Conv2d(3, 1, 1), (2, 4, 4), nothing)


# The model stays as it was


def test_batch_norm_is_evaluated_in_eval_mode_and_modes_come_back():
    net = nn.Sequential(trained_bn(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 2)).train()
    net[1].eval()
    before = copy.deepcopy(net.state_dict())
    bound = lipschitz_bound(net, (2, 2, 2), nothing)
    assert [module.training for module in net.modules()] == [True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    scale = (net[0].weight / (net[0].running_var + net[0].eps).sqrt()).abs().max().item()
    assert bound.value == pytest.approx(scale * torch.linalg.matrix_norm(net[3].weight, 2).item())


@pytest.mark.parametrize("fails", [False, True])
def test_modes_hooks_gradients_and_generators_come_back_also_after_an_error(fails):
    def function(self, x):
        if fails:
            raise RuntimeError("no")
        return self.parts[0](x) + torch.rand(1)

    net = Apply(function, nn.ReLU()).train()
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(ModelError):
            lipschitz_bound(net, (1, 2, 2), nothing)
    else:
        assert lipschitz_bound(net, (1, 2, 2), nothing) == Bound(1.0)
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), state)


def test_norms_may_run_the_module_that_they_are_asked_for():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3))
    table = {(m, s): exact(m, s) for m, s in ((net[0], (2, 6, 6)), (net[2], (3, 4, 4)))}
    expected = lipschitz_bound(net, (2, 6, 6), lambda module, shape: table.get((module, shape)))
    assert lipschitz_bound(net, (2, 6, 6), exact).value == pytest.approx(expected.value)


def test_the_bound_is_the_same_in_inference_mode():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    outside = lipschitz_bound(net, (1, 2, 2), nothing)
    with torch.inference_mode():
        assert lipschitz_bound(net, (1, 2, 2), nothing) == outside
        made_inside = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        assert lipschitz_bound(made_inside, (1, 2, 2), nothing).value is not None


@pytest.mark.parametrize(("name", "constant"), [("resnet18_plain", 2**5 / 4), ("resnet_tiny_plain", 2 / 4)])
def test_layers_of_norm_one_bound_a_network_without_batchnorm(name, constant):
    """Five identity blocks double (or one), three blocks with a projection are means, 4 × 4 average pooling quarters: 8 for the paper's ResNet-18."""
    net = Architecture(name, 10, (3, 32, 32), (0.5,) * 3, (1.0,) * 3)()
    found = lipschitz_bound(net, (3, 32, 32), lambda module, shape: 1.0 if isinstance(module, nn.Conv2d | nn.Linear) else None)
    assert found.value == pytest.approx(constant)
