"""Training of ``series``: its graph, a tiny network, its recipe, and how a report draws a series."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from models.figures import Picture
from models.graph import Served
from models.recipes import Recipe, Source
from models.tasks.labelled import LabelledTask
from tests.fifth_task.serving import SERIES as SERVING
from tests.fifth_task.serving import SeriesPreprocess

LENGTH = 64
_PICTURE_HEIGHT = 48


class ServedSeries(Served):
    """(N, 1, T) float32 -> probabilities (N, C); each series is scaled to mean 0 and standard deviation 1."""

    def prepare(self, batch: Tensor) -> Tensor:
        centred = batch - batch.mean(dim=2, keepdim=True)
        return centred / (centred.square().mean(dim=2, keepdim=True).sqrt() + 1e-6)


class SeriesCNN(nn.Module):
    """Series (N, 1, T) -> logits (N, num_classes)."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, width, 7, stride=2, padding=3),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, 7, stride=2, padding=3),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )
        self.fc = nn.Linear(width, num_classes)

    def forward(self, series: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(series).mean(dim=2))
        return logits


def series_cnn(num_classes: int = 3, width: int = 16) -> SeriesCNN:
    return SeriesCNN(num_classes, width)


class SeriesTraining(LabelledTask):
    serving = SERVING
    served = ServedSeries
    input_name = "series"
    input_dtype = "float32"
    input_layout = "NCT"
    architectures = {"series_cnn": series_cnn}
    recipes = (
        Recipe(
            name="series",
            task="series",
            description="Whether a series rises, falls or is noise.",
            architecture="series_cnn",
            preprocess=SeriesPreprocess(length=LENGTH),
            source=Source("shapes", "shapes of series", "made in a test", "MIT"),
            epochs=12,
            batch_size=16,
            optimizer="adamw",
            peak_rate=2e-2,
            weight_decay=1e-2,
            average_decay=0.9,
        ),
    )

    def picture(self, sample: NDArray[Any], preprocess: SeriesPreprocess) -> Picture:
        """Columns as high as the numbers, white on black."""
        low, high = sample.min(), max(sample.max(), sample.min() + 1e-6)
        heights = (sample[0] - low) / (high - low) * _PICTURE_HEIGHT
        filled = np.arange(_PICTURE_HEIGHT)[::-1, None] < heights
        return np.repeat(filled[..., None], 3, axis=2).astype(np.uint8) * 255

    def picture_note(self, preprocess: SeriesPreprocess) -> str:
        return f"{preprocess.length} numbers, from the lowest to the highest"


SERIES = SeriesTraining()
