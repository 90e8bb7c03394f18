"""A torchvision model and a data set of one's own that normalises and augments, unmodified.

python examples/own_model_and_data.py FOLDER      # an image folder as FOLDER/CLASS/image.png, for torchvision's ImageFolder
"""

import sys

import torchvision
from torchvision import transforms

import expunge

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(folder: str, side: int = 32, epochs: int = 3) -> tuple[expunge.Samples, expunge.Split]:
    # The transform that many training scripts have: it crops, mirrors and normalises.
    transform = transforms.Compose([
        transforms.Resize((side, side)),
        transforms.RandomCrop(side, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    dataset = torchvision.datasets.ImageFolder(folder, transform)

    # expunge needs the image itself, in [0, 1]: it takes off crop, mirror and normalisation, and crops and mirrors by itself while training.
    train = expunge.from_dataset(dataset)
    print(train)

    # The network expects normalised images, so that normalisation becomes its first layer.
    network = torchvision.models.resnet18(num_classes=len(train.classes))
    model = expunge.with_normalize(network, MEAN, STD)
    expunge.sgd(model, train, epochs=epochs, lr=0.02, batch_size=16)

    split = expunge.forget_samples(train, [0, 1, 2])
    unlearned = expunge.AMUN(epochs=2, batch_size=16, attack=expunge.NearestDDN(steps=20))(model, split)
    own = unlearned[1]  # the ResNet alone, as it was passed in: normalised images to logits
    print(type(own).__name__, "without", len(split.forget), "images")
    return train, split


if __name__ == "__main__":
    main(sys.argv[1])
