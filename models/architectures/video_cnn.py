"""Residual networks with 3D convolutions for clips (Tran et al. 2018, "A closer look at spatiotemporal convolutions").

Parameter names and arithmetic are those of torchvision's r3d_18, so that its published checkpoint loads unchanged.
"""

import torch
from torch import Tensor, nn

from models.architectures.resnet import initialise


class VideoBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut: (N,C,T,H,W) to (N,channels,T/stride,H/stride,W/stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            conv3x3x3(in_channels, channels, stride), nn.BatchNorm3d(channels), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(conv3x3x3(channels, channels), nn.BatchNorm3d(channels))
        self.downsample = projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x)
        x = self.conv2(x)
        return torch.relu(x + shortcut)


class VideoResNet(nn.Module):
    """Clips (N,3,T,H,W) to logits (N,num_classes): R3D (Tran et al. 2018, section 3).

    `layers` counts the blocks of the four stages, `widths` their channels. Space is strided by 2 in the stem; space and
    time are strided by 2 in each stage but the first.
    """

    def __init__(self, num_classes: int, widths: tuple[int, int, int, int], layers: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, widths[0], kernel_size=(3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.layer1 = stage(widths[0], widths[0], layers[0], stride=1)
        self.layer2 = stage(widths[0], widths[1], layers[1], stride=2)
        self.layer3 = stage(widths[1], widths[2], layers[2], stride=2)
        self.layer4 = stage(widths[2], widths[3], layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        initialise(self)

    def forward(self, clips: Tensor) -> Tensor:
        x = self.features(clips)
        x = self.avgpool(x).flatten(1)
        logits: Tensor = self.fc(x)
        return logits

    def features(self, clips: Tensor) -> Tensor:
        """Clips (N,3,T,H,W) to the last feature map (N,C,T/8,H/16,W/16), sizes rounded up."""
        x = self.stem(clips)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        features: Tensor = self.layer4(x)
        return features


def r3d_18(num_classes: int = 400) -> VideoResNet:
    """R3D-18 (Tran et al. 2018, table 1): clips (N,3,T,H,W) to logits (N,num_classes)."""
    return VideoResNet(num_classes, (64, 128, 256, 512), (2, 2, 2, 2))


def video_cnn(
    num_classes: int = 10,
    widths: tuple[int, int, int, int] = (16, 32, 64, 128),
    layers: tuple[int, int, int, int] = (1, 1, 1, 1),
) -> VideoResNet:
    """A small R3D to train from scratch: clips (N,3,T,H,W) to logits (N,num_classes)."""
    return VideoResNet(num_classes, widths, layers)


def stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = VideoBlock(in_channels, channels, stride)
    others = (VideoBlock(channels, channels) for _ in range(1, blocks))
    return nn.Sequential(first, *others)


def conv3x3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)


def projection(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv3d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm3d(channels))
