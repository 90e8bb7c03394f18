import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import expunge
from expunge.data import mixture as mixture_module
from expunge.data.images import Augment, ImageData, relabel
from expunge.data.mixture import Mixture
from expunge.errors import ConfigError, DataError, MissingError, ModelError
from expunge.progress import listen
from expunge.rng import fork, permutation
from expunge.training.inference import check_model, logits_of
from expunge.training.loop import sgd
from expunge.training.objectives import cross_entropy
from expunge.training.recipe import Recipe, train_model
from expunge.training.saliency import saliency_mask
from expunge.training.schedules import Constant, Cosine, Step
from toys import Watched, toy_net

CPU = torch.device("cpu")


@pytest.fixture
def data():
    torch.manual_seed(0)
    return ImageData(torch.randint(256, (33, 1, 8, 8), dtype=torch.uint8), torch.arange(33) % 3, tuple("abc"), Augment(1, True))


@pytest.fixture
def net():
    torch.manual_seed(1)
    return toy_net(n_classes=3)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def moved(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_the_loop_is_plain_sgd(data, net):
    # The oracle: torch's own SGD, written out, in the same order.
    oracle = copy.deepcopy(net).train()
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for epoch in range(2):
        for positions in permutation(33, 5, epoch).split(11):
            loss = functional.cross_entropy(oracle(data.images[positions].float() / 255), data.labels[positions])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    sgd(net, data, epochs=2, lr=0.05, batch_size=11, weight_decay=1e-3, augment=False, precision="float32", seed=5)
    for ours, theirs in zip(net.parameters(), oracle.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5)  # channels-last sums in another order


def test_every_sample_is_visited_once_in_every_epoch_and_no_batch_has_one_sample(data, net):
    seen = []

    def objective(model, batch):
        seen.append(batch.ids.tolist())
        return cross_entropy(model, batch)

    sgd(net, data, objective, epochs=3, lr=0.01, batch_size=16)
    assert [len(ids) for ids in seen] == [16, 17] * 3  # 33 = 2 × 16 + 1: the odd one joins the last batch
    epochs = [seen[k] + seen[k + 1] for k in (0, 2, 4)]
    assert all(sorted(ids) == list(range(33)) for ids in epochs)
    assert epochs[0] != epochs[1]


def test_mixed_sets_keep_their_labels_sources_and_augmentation(data):
    plain = ImageData(data.images, (data.labels + 1) % 3, data.classes)
    for batch in Mixture([data, plain], CPU).epoch([torch.arange(66)], 0):
        assert torch.equal(batch.source, torch.tensor([0] * 33 + [1] * 33))
        assert torch.equal(batch.labels[33:], plain.labels) and torch.equal(batch.labels[:33], data.labels)
        assert torch.equal(batch.images[33:], data.images / 255)
        assert not torch.equal(batch.images[:33], batch.images[33:])
        assert torch.equal(batch.ids[:33], batch.ids[33:])


def test_a_batch_is_cropped_and_mirrored_as_drawn(data):
    # The oracle: slices of the padded images, one by one.
    positions = torch.tensor([4, 0, 31, 7])
    mixture = Mixture([data], CPU, seed=2)
    (drawn,) = mixture.drawn([positions], 5)
    for image, position, (_, _, _, down, right, mirrored) in zip(
        mixture.batch(drawn).images, positions, drawn.numbers.T.tolist(), strict=True
    ):
        window = functional.pad(data.images[position], (1, 1, 1, 1))[:, down : down + 8, right : right + 8]
        assert torch.equal(image, (window.flip(-1) if mirrored else window) / 255)
    many = next(Mixture([data], CPU, seed=2).drawn([torch.arange(33)] * 30, range(30)))
    assert {tuple(v.unique().tolist()) for v in many.numbers[3:]} == {(0, 1, 2), (0, 1)}


@pytest.mark.parametrize("at_once", [1, 20, 8192])
def test_batches_do_not_depend_on_how_many_are_drawn_at_once(at_once, data, monkeypatch):
    plain = ImageData(data.images.float() / 255, data.labels, data.classes)
    sets = [data.subset(range(9)), plain, relabel(data, torch.rand(33, 3))]
    order = permutation(75, 1).split(7)

    def batches():
        return list(Mixture(sets, CPU, seed=4).epoch(order, range(len(order))))

    expected = batches()
    monkeypatch.setattr(mixture_module, "DRAWN_AT_ONCE", at_once)
    for ours, theirs, positions in zip(batches(), expected, order, strict=True):
        assert all(torch.equal(getattr(ours, f), getattr(theirs, f)) for f in ("images", "labels", "ids", "source"))
        assert ours.source.tolist() == sorted(ours.source.tolist())
        assert len(positions) == len(ours.images)


def test_pixels_are_put_on_a_device_once_whoever_asks(data):
    somewhere = torch.device("meta")
    first = mixture_module._resident(data, somewhere)
    assert mixture_module._resident(data.subset([3, 5]).root, somewhere) is first
    assert first.device == somewhere


def test_data_that_stream_give_the_same_bits_as_data_in_memory(data, net):
    twin = copy.deepcopy(net)
    sgd(net, data, epochs=2, lr=0.1, batch_size=8, seed=0)
    sgd(twin, Watched(data), epochs=2, lr=0.1, batch_size=8, seed=0)
    assert not moved(net, state(twin))


def test_soft_labels_that_are_one_hot_are_hard_labels(data, net):
    twin = copy.deepcopy(net)
    soft = relabel(data, functional.one_hot(data.labels, 3).float())
    sgd(net, data, epochs=1, lr=0.1, batch_size=8, seed=0, precision="float32")
    sgd(twin, soft, epochs=1, lr=0.1, batch_size=8, seed=0, precision="float32")
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_hard_and_soft_labels_mix_in_one_batch(data, net):
    batch = next(Mixture([data, relabel(data, torch.full((33, 3), 1 / 3))], CPU).epoch([torch.tensor([1, 40])], 0))
    assert torch.allclose(batch.labels, torch.tensor([[0, 1, 0], [1 / 3] * 3]))


def test_masked_weights_do_not_move_at_all(data, net):
    mask = saliency_mask(net, data, 0.3)
    before = state(net)
    sgd(net, data, epochs=3, lr=0.1, batch_size=8, mask=mask, weight_decay=0.1)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter[~mask[name]], before[name][~mask[name]])
    assert any(not torch.equal(p[mask[n]], before[n][mask[n]]) for n, p in net.named_parameters())


def test_parameters_that_the_mask_does_not_name_stay(data, net):
    before = state(net)
    sgd(net, data, epochs=1, lr=0.1, batch_size=8, mask={"9.bias": torch.ones(3, dtype=torch.bool)}, batchnorm="frozen")
    assert moved(net, before) == {"9.bias"}
    assert all(p.requires_grad for p in net.parameters())


def test_the_saliency_mask_takes_the_largest_gradients_over_the_whole_model(data, net):
    mask = saliency_mask(net, data, 0.25)
    net.eval()
    loss = functional.cross_entropy(net(data.images / 255), data.labels)
    gradients = torch.cat([g.abs().flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
    chosen = torch.cat([mask[n].flatten() for n, _ in net.named_parameters()])
    assert int(chosen.sum()) == round(0.25 * len(chosen))
    assert gradients[chosen].min() >= gradients[~chosen].max() - 1e-7
    assert all(m.all() for m in saliency_mask(net, data, 1).values())


@pytest.mark.parametrize(
    ("mode", "running", "affine"), [("train", True, True), ("frozen_statistics", False, True), ("frozen", False, False)]
)
def test_batchnorm_modes(data, net, mode, running, affine):
    before = state(net)
    sgd(net, data, epochs=1, lr=0.1, batch_size=8, batchnorm=mode)
    changed = moved(net, before)
    assert ("1.running_mean" in changed) == running and ("1.num_batches_tracked" in changed) == running
    assert ("1.weight" in changed) == affine
    assert "0.weight" in changed


def test_without_step_size_and_decay_only_batchnorm_statistics_move(data, net):
    before = state(net)
    sgd(net, data, epochs=1, lr=0, weight_decay=0, batch_size=8)
    assert all("running" in name or "tracked" in name for name in moved(net, before))


def test_one_sample_trains_through_batchnorm(data, net):
    before = state(net)
    sgd(net, data.subset([3]), epochs=2, lr=0.1)
    assert "0.weight" in moved(net, before) and "1.running_mean" not in moved(net, before)


def test_a_network_that_flattens_with_view_is_trained_contiguously(data):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(512, 3)

        def forward(self, x):
            return self.head(self.conv(x).view(len(x), -1))

    sgd(Flat(), data, epochs=1, lr=0.1)


def test_schedules_follow_their_formulas():
    assert [Step(every=2, gamma=0.5)(e, 10) for e in (0, 1.9, 2, 4)] == [1, 1, 0.5, 0.25]
    assert Constant()(7, 10) == 1
    cosine = Cosine(warmup=0.2)
    assert [round(cosine(e, 10), 6) for e in (0, 1, 2, 6, 10)] == [0, 0.5, 1, 0.5, 0]


def test_divergence_is_an_error_with_the_remedy(data, net):
    with pytest.raises(ModelError, match="diverged.*Lower lr"):
        sgd(net, data, epochs=5, lr=1e12, batch_size=8)


def test_bad_options_are_refused(data, net):
    with pytest.raises(ConfigError, match="epochs ≥ 0"):
        sgd(net, data, epochs=-1, lr=0.1)
    with pytest.raises(MissingError, match="did you mean 'frozen'"):
        sgd(net, data, epochs=1, lr=0.1, batchnorm="frozn")
    with pytest.raises(DataError, match="at least one sample"):
        sgd(net, [], epochs=1, lr=0.1)
    for p in net.parameters():
        p.requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter that may change"):
        sgd(net, data, epochs=1, lr=0.1)


def test_progress_reaches_the_listener_and_ends_at_the_total(data, net):
    seen = []
    with listen(seen.append):
        sgd(net, data, epochs=2, lr=0.1, batch_size=16, stage="toy")
    assert [(p.stage, p.done, p.total) for p in seen] == [("toy", k, 4) for k in (1, 2, 3, 4)]


def test_training_repeats_bit_for_bit_and_depends_on_the_seed(data):
    def build():
        return toy_net(n_classes=3)

    recipe = Recipe(epochs=2, batch_size=8)
    first, again, other = (state(train_model(build, data, recipe, seed=s, device="cpu")) for s in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_a_recipe_refuses_what_it_cannot_do():
    for bad in (
        {"epochs": 0},
        {"lr": 0},
        {"momentum": 1.0},
        {"batch_size": 1.5},
        {"precision": "half"},
        {"schedule": "cosine"},
        {"augment": 1},
    ):
        with pytest.raises(ConfigError, match=f"Recipe: {next(iter(bad))} must be"):
            Recipe(**bad)


def test_logits_are_those_of_eval_mode_in_float32_and_leave_the_model_alone(data, net):
    net.train()
    before = state(net)
    answers = logits_of(net, data, batch_size=7)
    assert net.training and not moved(net, before)
    net.eval()
    assert torch.allclose(answers, net(data.images / 255), atol=1e-5) and answers.dtype == torch.float32


def test_scores_do_not_depend_on_batch_mates(data, net):
    # Public inference code scored with BatchNorm in training mode, so that a score depended on its neighbours.
    assert torch.allclose(logits_of(net, data, batch_size=1), logits_of(net, data), atol=1e-5)


def test_a_model_that_answers_with_probabilities_or_noise_is_flagged(data, net):
    from expunge.errors import NondeterministicModel, ProbabilitiesNotLogits

    with pytest.warns(ProbabilitiesNotLogits, match="Leave out the last softmax"):
        check_model(nn.Sequential(net, nn.Softmax(1)), data)

    class Noisy(nn.Module):
        def forward(self, x):
            return torch.randn(len(x), 3)

    with fork(0), pytest.warns(NondeterministicModel):
        check_model(Noisy(), data)


def test_workers_that_read_ahead_change_no_bit(digits):
    few = digits[0].subset(range(40))
    models = []
    for n_workers in (0, 2):
        torch.manual_seed(0)
        model = toy_net()
        sgd(model, expunge.StreamedData(few, n_workers=n_workers), epochs=2, lr=0.1, batch_size=16, seed=3)
        models.append(model)
    resident = ImageData(few.images, few.labels, few.classes)
    torch.manual_seed(0)
    models.append(toy_net())
    sgd(models[2], resident, epochs=2, lr=0.1, batch_size=16, seed=3)
    assert not moved(models[0], state(models[1])) and not moved(models[0], state(models[2]))


def test_a_users_own_augmentation_depends_on_seed_epoch_and_sample_alone(digits):
    def noisy(image):
        return (image + torch.rand(1) * 0.1).clamp(0, 1)

    class Own(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            image, label = digits[0][i]
            return noisy(image), label

    data = expunge.StreamedData(digits[0].subset(range(12)), Own())
    mixture = Mixture([data], CPU, seed=1)
    together = next(mixture.epoch([torch.arange(12)], 0)).images
    alone = torch.cat([b.images for b in mixture.epoch(list(torch.arange(12).split(1)), 0)])
    assert torch.equal(together, alone) and not torch.equal(together, digits[0].fetch(torch.arange(12)))
    assert not torch.equal(together, next(mixture.epoch([torch.arange(12)], 1)).images)


def test_a_daemon_reads_data_itself(digits, monkeypatch):
    # Workers of a fleet are daemons, which may not have children: readers of their own made every training fail.
    from types import SimpleNamespace

    from expunge.data import mixture

    monkeypatch.setattr(mixture, "current_process", lambda: SimpleNamespace(daemon=True))
    monkeypatch.setattr(mixture, "DataLoader", lambda *a, num_workers, **k: iter([num_workers]))
    monkeypatch.setattr(Mixture, "_augmented", lambda self, parts, epoch: parts)
    data = expunge.StreamedData(digits[0].subset(range(4)), n_workers=2)
    assert list(Mixture([data], CPU).epoch([torch.arange(4)], 0)) == [0]


def test_a_model_for_other_images_is_an_error_with_the_remedy(data):
    with pytest.raises(ModelError, match=r"images of shape \(1, 8, 8\).*trained on"):
        check_model(toy_net(channels=3, n_classes=3), data)
    with pytest.raises(ModelError, match="weights in float32"):
        check_model(toy_net(n_classes=3).half(), data)


def test_scores_are_in_float32_inside_autocast_and_without_tf32(data, net):
    seen = []
    net.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before, expected = torch.backends.cudnn.conv.fp32_precision, logits_of(net, data)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits_of(net, data), expected)
    assert set(seen) == {"ieee"} and torch.backends.cudnn.conv.fp32_precision == before


def test_equal_gradients_enter_the_mask_by_position():
    dead = nn.Sequential(nn.Flatten(), nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 3))
    nn.init.constant_(dead[1].bias, -100)  # no unit is ever active, so that only the last bias has a gradient
    data = ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 0]), tuple("abc"))
    mask = saliency_mask(dead, data, 0.5)
    chosen = torch.cat([m.flatten() for m in mask.values()])
    n = int(chosen.sum())
    assert n == round(0.5 * len(chosen)) and chosen[-3:].all() and chosen[: n - 3].all()


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ConfigError, match="nesterov=True needs momentum"):
        Recipe(nesterov=True, momentum=0.0)


def test_divergence_in_the_very_last_step_is_an_error(data, net):
    with pytest.raises(ModelError, match="after the last step"):
        sgd(net, data, epochs=1, lr=1e38, batch_size=33, precision="float32", weight_decay=1e3)


def test_a_build_that_returns_one_model_twice_is_refused_and_leaves_it_alone(data, net):
    before = state(net)
    for build in (lambda: net, lambda: nn.Sequential(net)):
        with pytest.raises(ModelError, match="same weights twice"):
            train_model(build, data, Recipe(epochs=1), device="cpu")
    assert not moved(net, before)
