"""All-CNN-C: only convolutions; stride 2 in place of pooling.

Paper: Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR 2015 workshop, arXiv:1412.6806. Unlearning papers
since Golatkar et al. (2020) add batch normalisation and drop the dropout; so does `all_cnn`. `all_cnn_plain` has neither.
Departure: the last 1×1 convolution has no ReLU, so the mean after it can be taken first, and it becomes a linear layer.
1.37 M parameters, 281 M multiply-adds (562 MFLOP by torch.utils.flop_counter) forward at 32×32.
"""

from torch import nn

from .layers import GlobalAverage, conv_bn_relu, initialise

LAYERS = ((96, 3, 1), (96, 3, 1), (96, 3, 2), (192, 3, 1), (192, 3, 1), (192, 3, 2), (192, 3, 1), (192, 1, 1))  # (width, kernel, stride)


def all_cnn(n_classes: int, in_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    """All-CNN-C with batch normalisation, as in the unlearning literature."""
    return _build(n_classes, in_channels, batch_norm=True)


def all_cnn_plain(n_classes: int, in_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    """All-CNN-C as published, without batch normalisation (and without dropout)."""
    return _build(n_classes, in_channels, batch_norm=False)


def _build(n_classes: int, in_channels: int, batch_norm: bool) -> nn.Module:
    layers, width = [], in_channels
    for next_width, kernel, stride in LAYERS:
        layers.append(conv_bn_relu(width, next_width, kernel=kernel, stride=stride, batch_norm=batch_norm))
        width = next_width
    return initialise(nn.Sequential(*layers, GlobalAverage(), nn.Linear(width, n_classes)))
