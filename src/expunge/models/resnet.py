"""Residual networks for small images: a 3×3 first convolution with stride 1 and no max-pool, so that 32×32 images keep their detail.

Paper: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385. Layers are named as in torchvision.
ResNet-9 is the short one of the DAWNBench entries (Page, "How to train your ResNet", 2018).

| name | parameters (10 classes, colour) | multiply-adds forward at 32×32 | FLOPs by torch.utils.flop_counter |
|---|---|---|---|
| resnet18 | 11.17 M | 555 M | 1111 M |
| resnet9 | 6.57 M | 379 M | 759 M |
| resnet_small | 0.70 M | 35 M | 70 M |
| resnet_tiny | 0.31 M | 16 M | 32 M |

The plain ones have no BatchNorm, so that a bound on the layers bounds the network (Ebrahimpour-Boroojeny et al. 2024, arXiv:2402.16017): blocks whose
shortcut has a convolution return the mean of their two branches, so that with layers of norm 1 only the other blocks can double a difference.
"""

from torch import Tensor, nn

from .layers import conv_bn_relu, global_average, initialise


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int, batchnorm: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=not batchnorm)
        self.bn1 = nn.BatchNorm2d(n_out) if batchnorm else nn.Identity()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=not batchnorm)
        self.bn2 = nn.BatchNorm2d(n_out) if batchnorm else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        self.scale = 1.0
        if stride != 1 or n_in != n_out:
            conv = nn.Conv2d(n_in, n_out, 1, stride, bias=not batchnorm)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(n_out)) if batchnorm else conv
            self.scale = 1.0 if batchnorm else 0.5

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.downsample(x)
        return self.relu(out if self.scale == 1 else out * self.scale)


class ResNet(nn.Module):
    """Four stages of basic blocks; each stage after the first halves the image and doubles the width."""

    def __init__(self, n_blocks: tuple[int, int, int, int], width: int, n_classes: int, in_channels: int, batchnorm: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=not batchnorm)
        self.bn1 = nn.BatchNorm2d(width) if batchnorm else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, n_blocks[0], 1, batchnorm)
        self.layer2 = _stage(width, 2 * width, n_blocks[1], 2, batchnorm)
        self.layer3 = _stage(2 * width, 4 * width, n_blocks[2], 2, batchnorm)
        self.layer4 = _stage(4 * width, 8 * width, n_blocks[3], 2, batchnorm)
        self.fc = nn.Linear(8 * width, n_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(global_average(x))


class Residual(nn.Module):
    """x + f(x), where f is two convolutions of the same width."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(conv_bn_relu(width, width), conv_bn_relu(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def resnet18(n_classes: int, in_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    """ResNet-18 for small images: widths 64-128-256-512."""
    return ResNet((2, 2, 2, 2), 64, n_classes, in_channels)


def resnet_small(n_classes: int, in_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    """ResNet-18 with widths 16-32-64-128: a sixteenth of its work, for machines with a few cores."""
    return ResNet((2, 2, 2, 2), 16, n_classes, in_channels)


def resnet_tiny(n_classes: int, in_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    """`resnet_small` with one block in each stage instead of two: half of its work again."""
    return ResNet((1, 1, 1, 1), 16, n_classes, in_channels)


def resnet18_plain(n_classes: int, in_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    """`resnet18` without BatchNorm."""
    return ResNet((2, 2, 2, 2), 64, n_classes, in_channels, batchnorm=False)


def resnet_tiny_plain(n_classes: int, in_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    """`resnet_tiny` without BatchNorm."""
    return ResNet((1, 1, 1, 1), 16, n_classes, in_channels, batchnorm=False)


def resnet9(n_classes: int, in_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    """ResNet-9: four convolutions with two residual pairs, widths 64-128-256-512, maximum over the last feature map."""
    pool = nn.MaxPool2d(2)
    net = nn.Sequential(
        conv_bn_relu(in_channels, 64),
        nn.Sequential(conv_bn_relu(64, 128), pool, Residual(128)),
        nn.Sequential(conv_bn_relu(128, 256), pool),
        nn.Sequential(conv_bn_relu(256, 512), pool, Residual(512)),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(512, n_classes),
    )
    return initialise(net)


def _stage(n_in: int, n_out: int, n_blocks: int, stride: int, batchnorm: bool) -> nn.Sequential:
    rest = (BasicBlock(n_out, n_out, 1, batchnorm) for _ in range(n_blocks - 1))
    return nn.Sequential(BasicBlock(n_in, n_out, stride, batchnorm), *rest)
