"""Residual networks for photographs (He et al. 2015, "Deep residual learning for image recognition").

Parameter names and arithmetic are torchvision's, so that its published checkpoints load unchanged. Stages 2 to 4 can
trade their stride for dilation (Yu & Koltun 2016), with either kind of block: same parameters where the width grows,
finer grid.
"""

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, figure 5 left).

    The stride is on the first convolution. `dilations` are those of the first and of the second; they differ only
    where a stage's stride was replaced, because what follows the stride is then computed on a finer grid.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1, dilations: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride, dilations[0])
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(channels, channels, 1, dilations[1])
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return torch.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2015, figure 5 right).

    The stride is on the 3x3 convolution rather than on the first 1x1 (torchvision's v1.5), and so is the only dilation:
    `dilations[0]`. The second one has nothing to act on; it is there so that both blocks are built alike.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1, dilations: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride, dilations[0])
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return torch.relu(x + shortcut)


Block = type[BasicBlock] | type[Bottleneck]


class Backbone(nn.Module):
    """The convolutional part of a ResNet: images to feature maps, no categories yet.

    `layers` counts the blocks of the four stages, `widths` their channels before the block's expansion.
    `replace_stride_with_dilation` says for stages 2, 3 and 4 whether they dilate instead of striding: each one that
    does halves the stride of the output grid, 32 pixels otherwise.
    """

    def __init__(
        self,
        block: Block,
        layers: tuple[int, int, int, int],
        *,
        widths: tuple[int, int, int, int] = (64, 128, 256, 512),
        replace_stride_with_dilation: tuple[bool, bool, bool] = (False, False, False),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.out_channels = widths[0]
        self.dilation = 1
        self.layer1 = self._stage(block, widths[0], layers[0], stride=1)
        self.layer2 = self._stage(block, widths[1], layers[1], stride=2, dilate=replace_stride_with_dilation[0])
        self.layer3 = self._stage(block, widths[2], layers[2], stride=2, dilate=replace_stride_with_dilation[1])
        self.layer3_channels = self.out_channels
        self.layer4 = self._stage(block, widths[3], layers[3], stride=2, dilate=replace_stride_with_dilation[2])
        initialise(self)

    def _stage(self, block: Block, channels: int, blocks: int, stride: int, dilate: bool = False) -> nn.Sequential:
        before = self.dilation
        if dilate:
            self.dilation, stride = before * stride, 1
        stage = nn.Sequential(block(self.out_channels, channels, stride, (before, self.dilation)))
        self.out_channels = channels * block.expansion
        for _ in range(1, blocks):
            stage.append(block(self.out_channels, channels, 1, (self.dilation, self.dilation)))
        return stage

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N,3,H,W) to the feature maps of the last two stages: layer3's (N,C3,H3,W3), layer4's (N,C4,H4,W4)."""
        x = self.stem(images)
        x = self.layer1(x)
        x = self.layer2(x)
        layer3 = self.layer3(x)
        layer4 = self.layer4(layer3)
        return layer3, layer4

    def stem(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        pooled: Tensor = self.maxpool(x)
        return pooled


class ResNet(Backbone):
    """A backbone, average pooling and one linear layer: images (N,3,H,W) to logits (N,num_classes)."""

    def __init__(
        self,
        block: Block,
        layers: tuple[int, int, int, int],
        num_classes: int = 1000,
        *,
        widths: tuple[int, int, int, int] = (64, 128, 256, 512),
        replace_stride_with_dilation: tuple[bool, bool, bool] = (False, False, False),
    ) -> None:
        super().__init__(block, layers, widths=widths, replace_stride_with_dilation=replace_stride_with_dilation)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.out_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        _, x = self.features(images)
        x = self.avgpool(x).flatten(1)
        logits: Tensor = self.fc(x)
        return logits


def resnet18(num_classes: int = 1000) -> ResNet:
    """ResNet-18 (He et al. 2015, table 1): images (N,3,H,W) to logits (N,num_classes)."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet34(num_classes: int = 1000) -> ResNet:
    """ResNet-34 (He et al. 2015, table 1): images (N,3,H,W) to logits (N,num_classes)."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """ResNet-50 (He et al. 2015, table 1): images (N,3,H,W) to logits (N,num_classes)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def resnet101(num_classes: int = 1000) -> ResNet:
    """ResNet-101 (He et al. 2015, table 1): images (N,3,H,W) to logits (N,num_classes)."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the grid's size but for its stride; without bias, as a batch norm follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut where the shape changes (He et al. 2015, section 3.3, option B), None where it does not."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def initialise(network: nn.Module) -> None:
    """Draw all convolutions so that gradients keep their variance (He et al. 2015, "Delving deep", section 2.2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
