"""Fully convolutional networks for semantic segmentation (Long et al. 2015), on dilated residual networks.

The backbone's last two stages dilate instead of striding (Yu & Koltun 2016): the logits are computed on a grid of 8
pixels and upsampled bilinearly. Parameter names and arithmetic are those of torchvision's fcn_resnet50 and
fcn_resnet101, so that their published checkpoints load unchanged.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.resnet import Backbone, BasicBlock, Bottleneck, conv3x3, initialise

STRIDE_8 = (False, True, True)  # stages 3 and 4 dilate: a grid of 8 pixels rather than of 32


class Segmenter(nn.Module):
    """Images (N,3,H,W) to logits (N,num_classes,H,W)."""

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N,3,H,W) to logits and auxiliary logits, both (N,num_classes,H,W).

        Raises ValueError where the network was built without its auxiliary head.
        """
        raise NotImplementedError


class FCN(Segmenter):
    """A backbone and a convolutional head: images (N,3,H,W) to logits (N,num_classes,H,W).

    With `aux_loss`, a second head on layer3 helps the training of the lower stages; inference does not compute it.
    """

    def __init__(self, backbone: Backbone, num_classes: int, aux_loss: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = head(backbone.out_channels, num_classes)
        self.aux_classifier = head(backbone.layer3_channels, num_classes) if aux_loss else None

    def forward(self, images: Tensor) -> Tensor:
        _, layer4 = self.backbone.features(images)
        return upsample(self.classifier(layer4), images)

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.aux_classifier is None:
            raise ValueError("This FCN has no auxiliary head: build it with aux_loss=True.")
        layer3, layer4 = self.backbone.features(images)
        return upsample(self.classifier(layer4), images), upsample(self.aux_classifier(layer3), images)


def fcn_resnet50(num_classes: int = 21, aux_loss: bool = True) -> FCN:
    """FCN on ResNet-50, output stride 8: images (N,3,H,W) to logits (N,num_classes,H,W)."""
    return FCN(Backbone(Bottleneck, (3, 4, 6, 3), replace_stride_with_dilation=STRIDE_8), num_classes, aux_loss)


def fcn_resnet101(num_classes: int = 21, aux_loss: bool = True) -> FCN:
    """FCN on ResNet-101, output stride 8: images (N,3,H,W) to logits (N,num_classes,H,W)."""
    return FCN(Backbone(Bottleneck, (3, 4, 23, 3), replace_stride_with_dilation=STRIDE_8), num_classes, aux_loss)


def fcn_basic(
    num_classes: int = 21,
    widths: tuple[int, int, int, int] = (32, 64, 128, 256),
    layers: tuple[int, int, int, int] = (2, 2, 2, 2),
    aux_loss: bool = True,
) -> FCN:
    """A small FCN on basic blocks, output stride 8, to train from scratch: images (N,3,H,W) to (N,num_classes,H,W).

    Its receptive field is 451 pixels a side; on the same grid without dilation it would be 243.
    """
    backbone = Backbone(BasicBlock, layers, widths=widths, replace_stride_with_dilation=STRIDE_8)
    return FCN(backbone, num_classes, aux_loss)


class ContextFCN(Segmenter):
    """Shallow FCN with a large receptive field, to train from scratch: images (N,3,H,W) to (N,num_classes,H,W).

    Two strided convolutions and `layer1` work on a grid of 4 pixels, for detail. `layer2` goes to a grid of 8, where
    the blocks of `context`, one for each of `dilations`, aggregate context (Yu & Koltun 2016, section 3). Their
    features are upsampled and concatenated with the detail before the head, like the skips of Long et al. 2015 (section
    4.2): a pole is two pixels wide.
    """

    def __init__(
        self, num_classes: int, widths: tuple[int, int, int], dilations: tuple[int, ...], aux_loss: bool
    ) -> None:
        super().__init__()
        fine, middle, wide = widths
        self.conv1 = conv3x3(3, fine, stride=2)
        self.bn1 = nn.BatchNorm2d(fine)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(fine, fine, stride=2)
        self.bn2 = nn.BatchNorm2d(fine)
        self.layer1 = BasicBlock(fine, fine)
        self.layer2 = nn.Sequential(BasicBlock(fine, middle, stride=2), BasicBlock(middle, middle))
        sizes = (middle, *(wide for _ in dilations))
        self.context = nn.Sequential(
            *(
                BasicBlock(before, wide, 1, (dilation, dilation))
                for before, dilation in zip(sizes, dilations, strict=False)
            )
        )
        self.reduce = nn.Conv2d(wide, fine, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(fine)
        self.join = conv3x3(2 * fine, fine)
        self.bn4 = nn.BatchNorm2d(fine)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(fine, num_classes, kernel_size=1)
        self.aux_classifier = nn.Conv2d(wide, num_classes, kernel_size=1) if aux_loss else None
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        detail, context = self.features(images)
        return upsample(self.joined(detail, context), images)

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.aux_classifier is None:
            raise ValueError("This FCN has no auxiliary head: build it with aux_loss=True.")
        detail, context = self.features(images)
        return upsample(self.joined(detail, context), images), upsample(self.aux_classifier(context), images)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N,3,H,W) to detail (N,fine,H/4,W/4) and context (N,wide,H/8,W/8), sizes rounded up."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        detail = self.layer1(x)
        return detail, self.context(self.layer2(detail))

    def joined(self, detail: Tensor, context: Tensor) -> Tensor:
        """Both maps to logits (N,num_classes,H/4,W/4)."""
        x = upsample(self.relu(self.bn3(self.reduce(context))), detail)
        x = self.relu(self.bn4(self.join(torch.cat([detail, x], dim=1))))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


def fcn_context(
    num_classes: int = 21,
    widths: tuple[int, int, int] = (40, 64, 96),
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 1),
    aux_loss: bool = True,
) -> ContextFCN:
    """The small FCN of this repository: images (N,3,H,W) to logits (N,num_classes,H,W), for any H and W from 8 up.

    The receptive field of the last feature map is 1,119 pixels a side; without dilation, on the same grid and with the
    same parameters, it would be 287.
    """
    return ContextFCN(num_classes, widths, dilations, aux_loss)


def head(in_channels: int, num_classes: int) -> nn.Sequential:
    channels = in_channels // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(channels, num_classes, kernel_size=1),
    )


def upsample(logits: Tensor, images: Tensor) -> Tensor:
    # The size is read from the images at run time: a number here would be frozen into the exported graph.
    return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
