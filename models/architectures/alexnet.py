"""AlexNet (Krizhevsky et al. 2012; one column, as in Krizhevsky 2014): five convolutions, three linear layers.

Parameter names and arithmetic are torchvision's, so that its published checkpoint loads unchanged.
"""

from torch import Tensor, nn


class AlexNet(nn.Module):
    """Convolutions, pooling to a fixed grid, linear layers: images (N,3,H,W) to logits (N,num_classes)."""

    def __init__(self, features: nn.Sequential, grid: int, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        x = self.avgpool(x).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits


def alexnet(num_classes: int = 1000, dropout: float = 0.5) -> AlexNet:
    """AlexNet (Krizhevsky et al. 2012, section 3.5) for images (N,3,224,224); any H and W from 63 pixels up will do."""
    features = nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )
    return AlexNet(features, 6, head(256 * 6 * 6, 4096, num_classes, dropout))


def alexnet_cifar(num_classes: int = 10, dropout: float = 0.5, hidden: int = 256) -> AlexNet:
    """The same five convolutions for images (N,3,32,32): no stride in the first, narrower throughout.

    The three overlapping poolings (Krizhevsky et al. 2012, section 3.4) are padded: 32 pixels become a 4x4 grid.
    """
    features = nn.Sequential(
        nn.Conv2d(3, 48, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        nn.Conv2d(48, 96, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        nn.Conv2d(96, 192, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(192, 128, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(128, 128, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )
    return AlexNet(features, 4, head(128 * 4 * 4, hidden, num_classes, dropout))


def head(in_features: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(in_features, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes),
    )
