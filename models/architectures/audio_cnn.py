"""A residual network on waveforms, after Dai et al. 2017, "Very deep convolutional neural networks for raw waveforms".

The first layer is a filter bank to be learnt: wide kernels (10 ms at 8 kHz), wide strides, few further layers at that
rate (section 2 there). What follows are residual blocks as in its M34-res, but fewer, so that dilation (Yu & Koltun
2016) must make up for the receptive field.
"""

import torch
from torch import Tensor, nn

from models.architectures.resnet import initialise

STEM_KERNEL = 80  # samples: 10 ms at 8 kHz
STEM_STRIDE = 4  # samples, and the same again by pooling: the stages begin at a grid of 16 samples


class AudioBlock(nn.Module):
    """Two convolutions of 3 taps, the second one dilated, and a shortcut: (N,C,T) to (N,channels,T/stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm1d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm1d(channels)
        self.downsample = projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return torch.relu(x + shortcut)


class AudioCNN(nn.Module):
    """Waveforms (N,1,T) to logits (N,num_classes), for any T from 16 samples up.

    The four stages run at grids of 16, 32, 64 and 128 samples; `layers` counts their blocks.
    """

    def __init__(
        self,
        num_classes: int,
        widths: tuple[int, int, int, int],
        layers: tuple[int, int, int, int],
        dilations: tuple[int, int, int, int],
    ) -> None:
        super().__init__()
        padding = (STEM_KERNEL - STEM_STRIDE) // 2  # T samples in, T/4 out
        self.conv1 = nn.Conv1d(1, widths[0], STEM_KERNEL, STEM_STRIDE, padding, bias=False)
        self.bn1 = nn.BatchNorm1d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool1d(STEM_STRIDE)
        self.layer1 = stage(widths[0], widths[0], layers[0], 1, dilations[0])
        self.layer2 = stage(widths[0], widths[1], layers[1], 2, dilations[1])
        self.layer3 = stage(widths[1], widths[2], layers[2], 2, dilations[2])
        self.layer4 = stage(widths[2], widths[3], layers[3], 2, dilations[3])
        self.fc = nn.Linear(widths[3], num_classes)
        initialise(self)

    def forward(self, waveforms: Tensor) -> Tensor:
        x = self.features(waveforms)
        x = x.mean(dim=-1)
        logits: Tensor = self.fc(x)
        return logits

    def features(self, waveforms: Tensor) -> Tensor:
        """Waveforms (N,1,T) to the last feature map (N,C,T/128); T/16 is rounded down, the rest up."""
        x = self.stem(waveforms)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        features: Tensor = self.layer4(x)
        return features

    def stem(self, waveforms: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(waveforms)))
        pooled: Tensor = self.maxpool(x)
        return pooled


def audio_cnn(
    num_classes: int = 10,
    widths: tuple[int, int, int, int] = (48, 96, 128, 192),
    layers: tuple[int, int, int, int] = (2, 2, 2, 1),
    dilations: tuple[int, int, int, int] = (1, 2, 4, 4),
) -> AudioCNN:
    """The small audio network of this repository: waveforms (N,1,T) to logits (N,num_classes).

    Made for waveforms at 8 kHz with about unit variance. Each position of the last feature map hears 2,940 samples,
    368 ms at 8 kHz; without dilation it would be 1,276, or 160 ms.
    """
    return AudioCNN(num_classes, widths, layers, dilations)


def stage(in_channels: int, channels: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    first = AudioBlock(in_channels, channels, stride, dilation)
    others = (AudioBlock(channels, channels, 1, dilation) for _ in range(1, blocks))
    return nn.Sequential(first, *others)


def projection(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv1d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm1d(channels))
