"""Residual networks that train fast on small pictures (Page 2018, "How to train your ResNet"), with the whitening and
the identity initialisation of Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU".

Each stage pools after its first convolution, so that its residual block works on a quarter of the pixels: processors
multiply wide layers on small grids most efficiently.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.resnet import conv3x3, initialise

PATCH = 2  # pixels: side of the patches that the stem whitens
_LEAST_VARIANCE = 5e-4  # added to a direction's variance, so that noise is not amplified (Jordan 2024, section 3.1)
_LOGIT_SCALE = 0.125  # Page 2018, part 4: the last layer learns at the others' rate


class FastStage(nn.Module):
    """A convolution, pooled by 2, and a residual block: (N,C,H,W) to (N,channels,H/2,W/2), sizes rounded down."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels)
        self.maxpool = nn.MaxPool2d(2)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv3x3(channels, channels)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.maxpool(self.conv1(x))))
        y = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(x + self.bn3(self.conv3(y)))


class FastResNet(nn.Module):
    """A whitening stem and three stages: images (N,3,H,W), at least 9 pixels a side, to logits (N,num_classes)."""

    def __init__(self, num_classes: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        directions = 3 * PATCH**2
        self.whiten = nn.Conv2d(3, 2 * directions, PATCH)
        self.whiten.weight.requires_grad_(False)
        self.layer1 = FastStage(2 * directions, widths[0])
        self.layer2 = FastStage(widths[0], widths[1])
        self.layer3 = FastStage(widths[1], widths[2])
        self.fc = nn.Linear(widths[2], num_classes, bias=False)
        initialise(self)
        for stage in (self.layer1, self.layer2, self.layer3):
            with torch.no_grad():  # the first filters are identities (Jordan 2024, section 3.2)
                weight = stage.conv1.weight
                nn.init.dirac_(weight[: weight.shape[1]])

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images).amax(dim=(2, 3))
        logits: Tensor = self.fc(x) * _LOGIT_SCALE
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Images (N,3,H,W) to the last feature map (N,C,H/8,W/8), sizes rounded down after one pixel is lost."""
        x = torch.relu(self.whiten(images))
        x = self.layer1(x)
        x = self.layer2(x)
        features: Tensor = self.layer3(x)
        return features

    @torch.no_grad()
    def initialise_from(self, images: Tensor) -> None:
        """Sets the stem's filters, which are not trained, to the directions in which 2x2 patches of ``images``
        (N,3,H,W) vary, each scaled to unit variance, and to their negatives (Jordan 2024, section 3.1)."""
        patches = F.unfold(images.float(), PATCH).transpose(1, 2).reshape(-1, 3 * PATCH**2)
        variances, directions = torch.linalg.eigh(torch.cov(patches.T))
        filters = (directions / (variances + _LEAST_VARIANCE).sqrt()).T.reshape(-1, 3, PATCH, PATCH)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        assert self.whiten.bias is not None
        nn.init.zeros_(self.whiten.bias)


def resnet_fast(num_classes: int = 10, widths: tuple[int, int, int] = (64, 128, 256)) -> FastResNet:
    """Ten convolutions and a linear layer for small pictures: images (N,3,32,32) to logits (N,num_classes)."""
    return FastResNet(num_classes, widths)
