import copy
import dataclasses

import pytest
import torch
from torch import nn

from expunge.data.images import ImageData
from expunge.data.split import forget_classes, forget_only
from expunge.errors import ModelError
from expunge.methods import ESC
from expunge.methods.esc import strongest_directions
from expunge.training.head import features_of
from expunge.training.inference import logits_of
from toys import toy_net


def erased(model, split, share):
    """The projection that ESC must do, from a singular value decomposition of the features: (d, d)."""
    features = features_of(model, model[-1], split.forget).double()
    basis = torch.linalg.svd(features.T)[0]
    k = int(share * len(basis))
    return basis[:, k:] @ basis[:, k:].T


@pytest.mark.parametrize("share", [0.015, 0.03, 0.05])
def test_the_weights_do_what_a_projection_of_the_features_would(memorised_class, share):
    model, split, test = memorised_class
    features, projection = features_of(model, model[-1], test).double(), erased(model, split, share)
    unlearned = ESC(share=share)(model, split)
    expected = features @ projection.T @ model[-1].weight.detach().double().T + model[-1].bias.detach().double()
    torch.testing.assert_close(logits_of(unlearned, test).double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(features_of(unlearned, unlearned[-1], test).double(), features)
    changed = [name for name, tensor in unlearned.state_dict().items() if not torch.equal(tensor, model.state_dict()[name])]
    assert changed == ["9.weight"]


def test_erasing_no_direction_changes_nothing_and_erasing_twice_is_erasing_once(memorised_class):
    model, split, _ = memorised_class
    assert torch.equal(ESC(share=0.0)(model, split)[-1].weight, model[-1].weight)
    once = ESC(share=0.03)(model, split)
    torch.testing.assert_close(ESC(share=0.03)(once, split)[-1].weight, once[-1].weight, atol=1e-6, rtol=0)
    projection = torch.eye(5, dtype=torch.float64) - (u := strongest_directions(torch.randn(9, 5), 0.4)) @ u.T
    torch.testing.assert_close(projection @ projection, projection, atol=1e-12, rtol=0)
    assert round(float(projection.trace())) == 3


def test_features_orthogonal_to_those_of_the_forget_set_keep_their_logits_to_1e_5():
    torch.manual_seed(0)
    images = torch.zeros(30, 1, 4, 4)
    images[:10, :, :2], images[10:, :, 2:] = torch.rand(10, 1, 2, 4), torch.rand(20, 1, 2, 4)  # the first class lives in the upper half
    data = ImageData(images, torch.arange(30).div(10, rounding_mode="floor"), ("a", "b", "c"))
    model, split = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), forget_classes(data, [0])
    unlearned = ESC(share=0.9)(model, split)
    torch.testing.assert_close(logits_of(unlearned, split.retain), logits_of(model, split.retain), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits_of(unlearned, split.forget), unlearned[1].bias.detach().expand(10, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("d", "share", "k"), [(96, 0.015, 1), (512, 0.015, 7), (768, 0.015, 11), (10, 0.015, 1), (10, 0.0, 0), (10, 0.5, 5)]
)
def test_the_number_of_directions_is_the_authors_but_never_rounded_down_to_none(d, share, k):
    torch.manual_seed(0)
    assert strongest_directions(torch.randn(2 * d, d), share).shape == (d, k)


def test_directions_in_which_there_are_no_features_stay():
    torch.manual_seed(0)
    features = torch.randn(3, 20)
    basis = strongest_directions(features, 0.5)
    assert basis.shape == (20, 3)
    torch.testing.assert_close(features.double() @ basis @ basis.T, features.double(), atol=1e-6, rtol=0)


def test_a_training_mode_model_gives_the_same_result_and_keeps_its_batchnorm_statistics(memorised_class):
    # The authors' code leaves the model in training mode while it collects features.
    model, split, _ = memorised_class
    training = copy.deepcopy(model).train()
    result = ESC()(training, split)
    assert torch.equal(result[-1].weight, ESC()(model, split)[-1].weight) and torch.equal(result[1].running_mean, model[1].running_mean)


def test_the_class_leaves_the_answers_and_the_features_still_hold_it(memorised_class):
    model, split, test = memorised_class
    unlearned = ESC(share=0.015)(model, forget_only(split.forget, [3]))
    kept = test.labels != 3
    right = logits_of(unlearned, test).argmax(1) == test.labels
    assert right[~kept].float().mean() < 0.1 and right[kept].float().mean() > 0.6


def test_a_last_layer_that_may_not_change_is_refused(memorised_class):
    _, split, _ = memorised_class
    frozen = toy_net()
    frozen[-1].weight.requires_grad_(False)
    parametrised = toy_net()
    nn.utils.parametrizations.weight_norm(parametrised[-1])
    for model in (frozen, parametrised):
        with pytest.raises(ModelError, match="may change"):
            ESC()(model, split)


def test_colour_and_several_classes(digits):
    torch.manual_seed(0)
    train = dataclasses.replace(digits[0], images=digits[0].images[:200].expand(-1, 3, -1, -1), labels=digits[0].labels[:200])
    split = forget_classes(train, [3, 5])
    unlearned = ESC()(toy_net(3), split)
    assert logits_of(unlearned, split.forget).isfinite().all()
