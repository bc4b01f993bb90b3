"""Graphs around networks: normalisation before the network, softmax or argmax after it.

Training (by ``prepare``), evaluation and export use the same module, so that the three cannot differ.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Means and standard deviations of ImageNet's and Kinetics-400's colours, in 0..255, as torchvision's weights expect.
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
KINETICS_MEAN = (0.43216 * 255, 0.394666 * 255, 0.37645 * 255)
KINETICS_STD = (0.22803 * 255, 0.22145 * 255, 0.216989 * 255)
_LOUDNESS_FLOOR = 1e-3  # added to a window's root mean square (full scale is 1), so that silence is not amplified


class Served(nn.Module):
    """A network between samples and a task's outputs. ``temperature`` divides the logits."""

    temperature: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("temperature", torch.tensor(1.0), persistent=False)

    def prepare(self, batch: Tensor) -> Tensor:
        """Samples as the service makes them -> the network's input, float."""
        raise NotImplementedError

    def logits(self, batch: Tensor) -> Tensor:
        """Samples -> logits before the temperature: (N, C), or (N, C, H, W)."""
        logits: Tensor = self.network(self.prepare(batch))
        return logits

    def forward(self, batch: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Samples -> the graph's outputs: for a classifier its probabilities (N, C)."""
        return F.softmax(self.logits(batch) / self.temperature, dim=1)


class ServedOnColours(Served):
    """Base of networks on RGB media, which are normalised per colour."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__(network)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def normalise(self, batch: Tensor) -> Tensor:
        """Channels last, 0 to 255, any dtype -> float of mean 0 and standard deviation 1."""
        return (batch.float() - self.mean) / self.std


class ServedClassifier(ServedOnColours):
    """(N, H, W, 3) uint8 -> probabilities (N, C).

    With ``views`` of 6 the logits are a weighted mean over six views of the picture (test-time augmentation): the
    picture and its mirror image, and at half the weight both shifted by one pixel up and left, and down and right
    (Jordan 2024, section 3.5; Krizhevsky et al. 2012, section 4.1, average ten views).
    """

    views = 1

    def prepare(self, batch: Tensor) -> Tensor:
        return self.normalise(batch).permute(0, 3, 1, 2)

    def logits(self, batch: Tensor) -> Tensor:
        if self.views == 1:
            return super().logits(batch)
        images = self.prepare(batch)
        height, width = images.shape[2:]
        wider = F.pad(images, (1, 1, 1, 1), mode="reflect")
        shifted = [wider[:, :, start : start + height, start : start + width] for start in (1, 0, 2)]
        views = torch.cat([view for images in shifted for view in (images, images.flip(3))])
        logits: Tensor = self.network(views)
        weights = torch.tensor([0.25, 0.25, 0.125, 0.125, 0.125, 0.125], device=logits.device)
        return (weights[:, None, None] * logits.float().reshape(6, -1, logits.shape[1])).sum(dim=0)


class ServedSegmenter(ServedOnColours):
    """(N, H, W, 3) uint8 -> each pixel's category (N, H, W) uint8 and its probability (N, H, W) float32."""

    def prepare(self, batch: Tensor) -> Tensor:
        return self.normalise(batch).permute(0, 3, 1, 2)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(batch) / self.temperature
        likeliest, index = logits.max(dim=1)
        # Softmax at the argmax alone: exp(max - logsumexp) avoids a map of probabilities per category.
        confidence = torch.exp(likeliest - torch.logsumexp(logits, dim=1))
        return index.to(torch.uint8), confidence


class ServedAudioClassifier(Served):
    """(N, 1, T) float32 waveforms -> probabilities (N, C); each window is scaled to the same loudness."""

    def prepare(self, batch: Tensor) -> Tensor:
        centred = batch - batch.mean(dim=2, keepdim=True)
        return centred / (centred.square().mean(dim=2, keepdim=True).sqrt() + _LOUDNESS_FLOOR)


class ServedVideoClassifier(ServedOnColours):
    """(N, T, H, W, 3) uint8 -> probabilities (N, C)."""

    def prepare(self, batch: Tensor) -> Tensor:
        return self.normalise(batch).permute(0, 4, 1, 2, 3)
