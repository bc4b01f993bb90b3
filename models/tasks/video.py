"""Training of ``video``: clips in a folder for each category."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from models import augment, figures
from models.figures import Picture
from models.graph import ServedVideoClassifier
from models.recipes import Recipe
from models.tasks.labelled import LabelledTask
from service.repository.card import VideoPreprocess
from service.tasks import video


class VideoTraining(LabelledTask):
    serving = video.VIDEO
    served = ServedVideoClassifier
    input_name = "clips"
    input_layout = "NTHWC"
    memory_format = torch.channels_last_3d  # a sixth to a quarter faster, on the CPU too
    # oneDNN's bfloat16 gradients of some 3D convolutions read uninitialised memory (torch 2.13): NaN.
    bfloat16_on_cpu = False

    def augment(
        self,
        samples: Tensor,
        targets: Tensor,
        recipe: Recipe,
        categories: tuple[str, ...],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        if recipe.flips_motion and categories == recipe.categories:
            samples, targets = augment.flip_motion(samples, targets, categories, generator)
        return augment.jitter_colours(samples, generator), targets

    def picture(self, sample: NDArray[Any], preprocess: VideoPreprocess) -> Picture:
        return figures.film_strip(sample)

    def picture_note(self, preprocess: VideoPreprocess) -> str:
        return f"first, middle and last frame of {preprocess.frames / preprocess.frame_rate_hz:g} s"


VIDEO = VideoTraining()
