"""Fully convolutional networks for semantic segmentation (Long et al. 2015), on dilated residual networks.

The backbone's last two stages dilate instead of striding (Yu & Koltun 2016): the logits are computed on a grid of 8
pixels and upsampled bilinearly. Parameter names and arithmetic are those of torchvision's fcn_resnet50 and
fcn_resnet101, so that their published checkpoints load unchanged.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.resnet import Backbone, BasicBlock, Bottleneck

STRIDE_8 = (False, True, True)  # stages 3 and 4 dilate: a grid of 8 pixels rather than of 32


class FCN(nn.Module):
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
        """Images (N,3,H,W) to logits and auxiliary logits, both (N,num_classes,H,W).

        Raises ValueError where the network was built without its auxiliary head.
        """
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
    """A small FCN on basic blocks, output stride 8, to train from scratch: images (N,3,H,W) to (N,num_classes,H,W)."""
    backbone = Backbone(BasicBlock, layers, widths=widths, replace_stride_with_dilation=STRIDE_8)
    return FCN(backbone, num_classes, aux_loss)


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
