"""Residual 1D network on waveforms: a learnable filter bank, then convolutions over time.

The first layer is initialised as a bank of Gabor filters along the mel scale (Zeghidour et al. 2021, "LEAF: a learnable
frontend for audio classification", section 3). Residual blocks (He et al. 2015) over time follow, whose channels begin
as the bands' energies. Stages 2 to 4 halve the grid; dilation (Yu & Koltun 2016) widens the receptive field without
coarsening it further.
"""

import math

import torch
from torch import Tensor, nn

from models.architectures.resnet import initialise

_KERNEL_SECONDS = 0.032
_HOP_SECONDS = 0.01
_LOWEST_HZ = 60.0
_FLOOR = 1e-3  # energy below which a band counts as silent; white noise of variance 1 has 1


class FilterBank(nn.Module):
    """Waveforms (N,1,T) to the logarithm of each band's energy, (N,bands,T/hop), rounded down; silence is 0."""

    def __init__(self, bands: int, rate_hz: int) -> None:
        super().__init__()
        self.hop = round(_HOP_SECONDS * rate_hz)
        around = round((_KERNEL_SECONDS - _HOP_SECONDS) * rate_hz / 2)  # samples before and after each hop
        self.conv1 = nn.Conv1d(1, 2 * bands, self.hop + 2 * around, self.hop, around, bias=False)
        self.bn1 = nn.BatchNorm1d(bands)

    def initialise(self, rate_hz: int) -> None:
        bank = gabor_filters(self.conv1.out_channels // 2, self.conv1.kernel_size[0], rate_hz)
        with torch.no_grad():
            self.conv1.weight.copy_(bank[:, None])

    def forward(self, waveforms: Tensor) -> Tensor:
        # float32 even where the convolution runs in bfloat16, whose logarithms would be coarse.
        energies = self.conv1(waveforms).float().square().unflatten(1, (-1, 2)).sum(dim=2)
        bands: Tensor = self.bn1(torch.log1p(energies / _FLOOR))
        return bands


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
    """Waveforms (N,1,T) to logits (N,num_classes), for any T from 10 ms up.

    The stages run at grids of 10, 20, 40 and 80 ms; ``layers`` counts their blocks.
    """

    def __init__(
        self,
        num_classes: int,
        rate_hz: int,
        bands: int,
        widths: tuple[int, int, int, int],
        layers: tuple[int, int, int, int],
        dilations: tuple[int, int, int, int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.filters = FilterBank(bands, rate_hz)
        self.layer1 = stage(bands, widths[0], layers[0], 1, dilations[0])
        self.layer2 = stage(widths[0], widths[1], layers[1], 2, dilations[1])
        self.layer3 = stage(widths[1], widths[2], layers[2], 2, dilations[2])
        self.layer4 = stage(widths[2], widths[3], layers[3], 2, dilations[3])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[3], num_classes)
        initialise(self)
        self.filters.initialise(rate_hz)

    def forward(self, waveforms: Tensor) -> Tensor:
        x = self.features(waveforms)
        x = x.mean(dim=2)
        logits: Tensor = self.fc(self.dropout(x))
        return logits

    def features(self, waveforms: Tensor) -> Tensor:
        """Waveforms (N,1,T) to the last feature map (N,C,T'): a position of T' is 80 ms."""
        x = self.filters(waveforms)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        features: Tensor = self.layer4(x)
        return features


def audio_cnn(
    num_classes: int = 10,
    rate_hz: int = 8000,
    bands: int = 48,
    widths: tuple[int, int, int, int] = (64, 96, 128, 160),
    layers: tuple[int, int, int, int] = (1, 2, 2, 1),
    dilations: tuple[int, int, int, int] = (1, 2, 2, 2),
    dropout: float = 0.2,
) -> AudioCNN:
    """The small audio network of this repository: waveforms (N,1,T) of ``rate_hz`` to logits (N,num_classes).

    Expects waveforms of about unit variance. The receptive field of the last feature map is 9,056 samples at 8 kHz,
    1.13 s; without dilation it would be 5,856, or 0.73 s.
    """
    return AudioCNN(num_classes, rate_hz, bands, widths, layers, dilations, dropout)


def gabor_filters(bands: int, length: int, rate_hz: int) -> Tensor:
    """(2 * bands, length): for each band a cosine and a sine under a Gaussian, of energy 1 together.

    Centres are evenly spaced on the mel scale (O'Shaughnessy 1987). A band is about as wide as the distance between
    centres, or as narrow as ``length`` allows.
    """
    ends = 2595 * torch.log10(1 + torch.tensor([_LOWEST_HZ, rate_hz / 2]) / 700)  # mel
    position = torch.linspace(0, 1, bands + 2)
    centres_hz = 700 * (10 ** (torch.lerp(ends[0], ends[1], position) / 2595) - 1)
    widths_hz = (centres_hz[2:] - centres_hz[:-2]) / 2
    deviations = (0.5 / widths_hz).clamp(max=length / rate_hz / 6)[:, None]  # of the Gaussians, in seconds
    times = ((torch.arange(length) - (length - 1) / 2) / rate_hz)[None]
    envelopes = torch.exp(-0.5 * (times / deviations).square())
    envelopes = envelopes / envelopes.square().sum(dim=1, keepdim=True).sqrt()
    phases = 2 * math.pi * centres_hz[1:-1, None] * times
    return torch.stack((envelopes * phases.cos(), envelopes * phases.sin()), dim=1).flatten(0, 1)


def stage(in_channels: int, channels: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    first = AudioBlock(in_channels, channels, stride, dilation)
    others = (AudioBlock(channels, channels, 1, dilation) for _ in range(1, blocks))
    return nn.Sequential(first, *others)


def projection(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv1d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm1d(channels))
