"""LogitsOnly: the logits of a model that answers with more, and a way back to the model itself."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from expunge.data.images import ImageData
from expunge.data.split import forget_samples
from expunge.errors import ModelError
from expunge.methods import FineTune
from expunge.models.normalize import with_normalize
from expunge.models.outputs import LogitsOnly
from expunge.training.inference import logits_of
from toys import toy_net


class Answering(nn.Module):
    """A model as those of transformers are: what it gives is made of the logits by `answer`."""

    def __init__(self, answer):
        super().__init__()
        self.net, self.answer = toy_net(n_classes=3), answer

    def forward(self, pixel_values):
        return self.answer(self.net(pixel_values))


def in_an_object(logits):
    return SimpleNamespace(loss=None, logits=logits)


@pytest.fixture
def data():
    torch.manual_seed(0)
    return ImageData(torch.randint(256, (12, 1, 8, 8), dtype=torch.uint8), torch.arange(12) % 3, tuple("abc"))


@pytest.mark.parametrize("answer", [in_an_object, lambda logits: logits], ids=["object", "tensor"])
def test_the_logits_are_those_of_the_model(answer, data):
    model = Answering(answer).eval()
    assert torch.equal(logits_of(LogitsOnly(model), data), logits_of(model.net, data))


@pytest.mark.parametrize(
    "answer", [lambda logits: (logits,), lambda logits: {"logits": logits}, lambda logits: SimpleNamespace(logits=None)]
)
def test_an_output_without_logits_is_refused(answer, data):
    with pytest.raises(ModelError, match=r"has them as \.logits; got (tuple|dict|SimpleNamespace)"):
        logits_of(LogitsOnly(Answering(answer)), data)


def test_without_it_the_error_names_it(data):
    with pytest.raises(ModelError, match=r"got SimpleNamespace\. Wrap it: expunge\.LogitsOnly\(model\)"):
        logits_of(Answering(in_an_object), data)


def test_the_model_inside_keeps_its_class_and_names_and_gets_the_unlearned_weights(data):
    own = Answering(in_an_object).eval()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    model = with_normalize(LogitsOnly(own), [0.5], [0.25])
    unlearned = FineTune(epochs=1, batch_size=4)(model, forget_samples(data, [0, 1]))[1].model
    assert type(unlearned) is Answering and list(unlearned.state_dict()) == list(before)
    assert all(torch.equal(own.state_dict()[name], value) for name, value in before.items())
    assert any(not torch.equal(unlearned.state_dict()[name], value) for name, value in before.items())


def test_wrapping_keeps_the_mode_of_every_layer():
    own = Answering(in_an_object)
    own.net[1].eval()
    assert LogitsOnly(own).training and own.net[0].training and not own.net[1].training
    assert not LogitsOnly(own.eval()).training


@pytest.mark.parametrize(
    "error", [ValueError("image size (8*8) doesn't match"), AssertionError("image size (8*8) doesn't match"), AssertionError()]
)
def test_the_libraries_own_refusals_of_an_image_become_one_error(error, data):
    def refuse(logits):
        raise error

    with pytest.raises(ModelError, match=r"float32 images of shape \(1, 8, 8\); got: (image size|AssertionError)"):
        logits_of(Answering(refuse), data)
