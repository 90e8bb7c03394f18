"""Pieces that the network families share."""

from typing import TypeVar

from torch import Tensor, nn

NetT = TypeVar("NetT", bound=nn.Module)


def conv_bn_relu(n_in: int, n_out: int, *, kernel: int = 3, stride: int = 1, batch_norm: bool = True) -> nn.Sequential:
    """A convolution that keeps the image's size (at stride 1), batch normalisation unless told otherwise, and ReLU."""
    conv = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=not batch_norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(n_out)] if batch_norm else []), nn.ReLU(inplace=True))


def global_average(x: Tensor) -> Tensor:
    """The mean of each feature map: (N, C, H, W) → (N, C), for any H and W."""
    return x.mean(dim=(2, 3))


class GlobalAverage(nn.Module):
    """`global_average` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return global_average(x)


def initialise(net: NetT) -> NetT:
    """Draws every convolution's weights as He et al. (2015, arXiv:1502.01852), keeping the variance through ReLUs; biases start at 0."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net
