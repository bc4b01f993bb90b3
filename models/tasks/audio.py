"""Training of ``audio``: sounds in a folder for each category."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from models import augment, figures
from models.figures import Picture
from models.graph import ServedAudioClassifier
from models.recipes import Recipe
from models.tasks.labelled import LabelledTask
from service.repository.card import AudioPreprocess
from service.tasks import audio


class AudioTraining(LabelledTask):
    serving = audio.AUDIO
    served = ServedAudioClassifier
    input_name = "waveforms"
    input_dtype = "float32"
    input_layout = "NCT"

    def augment(
        self,
        samples: Tensor,
        targets: Tensor,
        recipe: Recipe,
        categories: tuple[str, ...],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        samples = augment.augment_sound(samples, generator)
        if recipe.mixup:
            return augment.mix_sounds(samples, targets, len(categories), generator, recipe.mixup)
        return samples, targets

    def picture(self, sample: NDArray[Any], preprocess: AudioPreprocess) -> Picture:
        return figures.spectrogram(sample[0], preprocess.sample_rate_hz)

    def picture_note(self, preprocess: AudioPreprocess) -> str:
        highest_khz = preprocess.sample_rate_hz / 2000
        return (
            f"spectrograms of {preprocess.window_seconds:g} s, time rightwards, 0 to {highest_khz:g} kHz upwards, "
            "80 dB from dark to bright"
        )


AUDIO = AudioTraining()
