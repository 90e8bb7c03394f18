"""A small convolutional network that has learnt five hundred digits, and attacks set for their scale."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from expunge.attacks import ATTACKS, AdversarialSet, NearestAttack, NearestDDN, NearestFGSM, NearestL2PGD
from expunge.data.images import ImageData
from expunge.rng import fork

SCALED = {
    "nearest_l2_pgd": NearestL2PGD(eps_init=0.2, steps=12, batch_size=64),
    "nearest_ddn": NearestDDN(steps=20, batch_size=64),
    "nearest_fgsm": NearestFGSM(eps=0.02, steps=25, restarts=3, noise=0.05, batch_size=64),
}


@pytest.fixture(scope="session")
def few_digits() -> ImageData:
    images, labels = load_digits(return_X_y=True)
    return ImageData(
        torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)[:500] / 16, torch.tensor(labels)[:500], tuple("0123456789")
    )


@pytest.fixture(scope="session")
def trained(few_digits) -> nn.Module:
    """Shared by all tests, which must leave it alone: that is what an attack promises."""
    with fork(0):
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.1), nn.Linear(32 * 16, 10),
        )  # fmt: skip
        optimiser = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(12):
            for batch in torch.randperm(len(few_digits)).split(50):
                optimiser.zero_grad(set_to_none=True)
                functional.cross_entropy(model(few_digits.images[batch]), few_digits.labels[batch]).backward()
                optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return model.eval()


@pytest.fixture(scope="session")
def some(few_digits):
    return few_digits.subset(range(0, 500, 4))


@pytest.fixture(params=sorted(ATTACKS))
def attack(request) -> NearestAttack:
    return SCALED[request.param]


@pytest.fixture(scope="session")
def pgd_set(trained, some):
    return NearestL2PGD(eps_init=0.2, steps=20, batch_size=128)(trained, some)


@pytest.fixture
def linear_case():
    """A function: 40 images' distances to the border of a linear model's decision region in closed form, and what an attack finds."""

    def run(attack: NearestAttack, n_classes: int) -> tuple[torch.Tensor, AdversarialSet]:
        generator = torch.Generator().manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, n_classes))
        with torch.no_grad():
            for parameter, scale in ((model[1].weight, 1.0), (model[1].bias, 0.1)):
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            images = 0.5 + 0.02 * torch.randn(40, 1, 4, 4, generator=generator)  # near grey, so that the box is far
            logits = model(images).double()
        y = logits.argmax(1)
        weights = model[1].weight.detach().double()
        gaps, lengths = logits.gather(1, y[:, None]) - logits, (weights[y][:, None] - weights[None]).norm(dim=2)
        exact = torch.where(lengths > 0, gaps / lengths, torch.inf).min(1).values
        return exact, attack(model, ImageData(images, y, tuple("abcd")[:n_classes]))

    return run
