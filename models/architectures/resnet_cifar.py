"""Residual networks for 32x32 pictures (He et al. 2015, section 4.2), and the plain networks of that comparison."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.resnet import conv3x3, initialise


class CifarBlock(nn.Module):
    """Two 3x3 convolutions; with `residual`, a shortcut without parameters (section 3.3, option A)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, *, residual: bool = True) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.added_channels = channels - in_channels
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x) if self.residual else None
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return torch.relu(x if shortcut is None else x + shortcut)

    def shortcut(self, x: Tensor) -> Tensor:
        """The input (N,C,H,W) on the output's grid: every `stride`-th pixel, the added channels zero."""
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.added_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.added_channels))
        return x


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of `blocks` blocks at strides 1, 2 and 4, average pooling and one linear layer."""

    def __init__(self, blocks: int, num_classes: int, width: int, *, residual: bool = True) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(width, width, blocks, stride=1, residual=residual)
        self.layer2 = stage(width, 2 * width, blocks, stride=2, residual=residual)
        self.layer3 = stage(2 * width, 4 * width, blocks, stride=2, residual=residual)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        x = self.avgpool(x).flatten(1)
        logits: Tensor = self.fc(x)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Images (N,3,H,W) to the last feature map (N,4*width,H/4,W/4), sizes rounded up."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer1(x)
        x = self.layer2(x)
        features: Tensor = self.layer3(x)
        return features


def resnet_cifar(depth: int = 20, num_classes: int = 10, width: int = 16, residual: bool = True) -> CifarResNet:
    """ResNet-`depth` for small pictures (He et al. 2015, section 4.2): images (N,3,H,W) to logits (N,num_classes).

    `depth` counts the layers with weights: 6n+2 for n blocks a stage. `residual=False` makes the plain network of the
    same depth and the same parameters. Raises ValueError for any other depth.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth is {depth}, but must be 6n+2 with n >= 1: 8, 14, 20, 32, 44, 56, 110, ...")
    return CifarResNet(blocks, num_classes, width, residual=residual)


def stage(in_channels: int, channels: int, blocks: int, stride: int, residual: bool) -> nn.Sequential:
    first = CifarBlock(in_channels, channels, stride, residual=residual)
    others = (CifarBlock(channels, channels, residual=residual) for _ in range(1, blocks))
    return nn.Sequential(first, *others)
