import copy

import pytest
import torch
from torch import nn

from expunge.errors import ModelError
from expunge.models import architecture
from expunge.models.normalize import with_normalize
from expunge.rng import fork
from expunge.training.reinitialise import fresh_network, reinitialised, reset
from toys import toy_net


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).detach())[0, 1])


def test_every_layer_of_a_resnet_is_fresh_however_deep(digits):
    # A public "retrain" goes through the children of the outermost module alone, and so resets the last layer of a ResNet.
    torch.manual_seed(0)
    model = architecture("resnet18", digits[0])()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight), nn.init.uniform_(module.running_mean)
    before = copy.deepcopy(model.state_dict())
    with fork(1):
        fresh = reinitialised(model)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    matrices = [(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True) if a.ndim > 1]
    assert len(matrices) == 21 and all(abs(correlation(a, b)) < 0.2 and 0.3 < float((a.std() / b.std()).detach()) < 4 for a, b in matrices)
    norms = [m for m in fresh.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20 and all((m.weight == 1).all() and (m.running_mean == 0).all() and (m.running_var == 1).all() for m in norms)


def test_what_was_learnt_is_gone_and_the_seed_decides(memorised):
    model, split, _ = memorised
    with fork(1):
        first = reinitialised(model).eval()
    with fork(1):
        again = reinitialised(model).eval()
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    images = split.train.fetch(torch.arange(128))
    assert float((first(images).argmax(1) == split.train.labels).float().mean()) < 0.4


def test_the_normalisation_of_images_stays():
    model = with_normalize(toy_net(), (0.3,), (0.2,))
    fresh = reinitialised(model)
    kept = {name: value for name, value in model.named_buffers() if "mean" in name or "std" in name}
    assert kept and all(torch.equal(dict(fresh.named_buffers())[n], v) for n, v in kept.items() if not n.endswith("running_mean"))


def test_a_module_that_resets_its_children_has_the_last_word():
    class Zeroed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.scale = nn.Parameter(torch.full((3,), 7.0))

        def reset_parameters(self):
            nn.init.zeros_(self.inner.weight), nn.init.ones_(self.scale)

    fresh = reinitialised(nn.Sequential(Zeroed()))
    assert (fresh[0].inner.weight == 0).all() and (fresh[0].scale == 1).all()


def test_attention_is_reset_too():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2)
    fresh = reinitialised(model)
    assert not torch.equal(fresh.in_proj_weight, model.in_proj_weight)
    assert not torch.equal(fresh.out_proj.weight, model.out_proj.weight)


def test_a_parameter_that_nothing_resets_is_an_error_with_its_name_and_the_remedy():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.head = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

    with pytest.raises(ModelError, match="got Token without one. Give the class one that draws its weights"):
        reinitialised(nn.Sequential(Token()))
    # A weight that is computed from others: resetting it would do nothing.
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(ModelError, match="got [A-Z][A-Za-z]* without one"):
        reinitialised(normed)


def test_a_frozen_batchnorm_forgets_its_statistics_and_keeps_its_weights():
    norm = nn.BatchNorm1d(3).requires_grad_(False)
    norm.weight.fill_(5.0), norm.running_mean.fill_(7.0)
    reset([norm])
    assert (norm.running_mean == 0).all() and (norm.weight == 5).all()


def test_a_fresh_network_is_the_one_that_is_built_or_else_one_like_the_model(memorised):
    model, split, _ = memorised
    built = fresh_network(model, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), split.retain)
    assert [type(module) for module in built] == [nn.Flatten, nn.Linear]
    with fork(1):
        like = fresh_network(model, None, split.retain)
    assert like.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(ModelError, match=r"the 10 outputs of the model; got 11\. Pass the function"):
        fresh_network(model, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 11)), split.retain)
    with pytest.raises(ModelError, match="has not seen what is to be forgotten; got the model's own weights"):
        fresh_network(model, lambda: copy.deepcopy(model), split.retain)
    with pytest.raises(ModelError, match="must make a new model at every call"):
        fresh_network(model, lambda: model, split.retain)
