"""Training of ``classify``: pictures in a folder for each category."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import augment
from models.figures import Picture
from models.graph import ServedClassifier
from models.recipes import Recipe
from models.tasks.labelled import LabelledTask
from service.repository.card import ImagePreprocess
from service.tasks import classify


class ClassifyTraining(LabelledTask):
    serving = classify.CLASSIFY
    served = ServedClassifier
    input_name = "images"
    input_layout = "NHWC"
    memory_format = torch.channels_last  # a sixth to a quarter faster, on the CPU too

    def resized(self, side: int) -> ImagePreprocess:
        return ImagePreprocess(resize="crop", sizes=((side, side),), shorter_side=side)

    def check_recipe(self, recipe: Recipe) -> None:
        """One view and six are both served."""

    def wrap(self, network: nn.Module, recipe: Recipe) -> ServedClassifier:
        served = ServedClassifier(network)
        served.views = recipe.views
        return served

    def augment(
        self,
        samples: Tensor,
        targets: Tensor,
        recipe: Recipe,
        categories: tuple[str, ...],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        samples = augment.flip_and_shift(samples, generator, pad=max(samples.shape[1:3]) // 8)
        if recipe.cut_out:
            samples = augment.cut_out(samples, generator, recipe.cut_out)
        return samples, targets

    def picture(self, sample: NDArray[Any], preprocess: ImagePreprocess) -> Picture:
        return sample

    def picture_note(self, preprocess: ImagePreprocess) -> str:
        return "as the network sees them, {1}x{0} pixels".format(*preprocess.sizes[0])


CLASSIFY = ClassifyTraining()
