"""VGG-19 with batch normalisation for small images: sixteen 3×3 convolutions, the mean of the last feature map, one linear layer.

Paper: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, arXiv:1409.1556.
Departures, as usual for 32×32 images: one linear layer in place of three, no dropout. 20.04 M parameters, 398 M multiply-adds
(796 MFLOP by torch.utils.flop_counter) forward at 32×32.
"""

from torch import nn

from .layers import GlobalAverage, conv_bn_relu, initialise

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # (width, convolutions) before each max-pool


def vgg19(n_classes: int, in_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    """VGG-19-BN; images of 32×32 end as one 512-vector, larger ones are averaged to one."""
    layers: list[nn.Module] = []
    width = in_channels
    for next_width, n_convolutions in STAGES:
        for _ in range(n_convolutions):
            layers.append(conv_bn_relu(width, next_width))
            width = next_width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # rounds up, so that images below 32×32 are never pooled to nothing
    return initialise(nn.Sequential(*layers, GlobalAverage(), nn.Linear(width, n_classes)))
