"""``/audio``: what is in a sound."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.media import audio
from service.media.audio import AudioSpec
from service.media.windows import audio_windows
from service.repository.card import AudioPreprocess
from service.tasks.task import Prepared
from service.tasks.windows import WindowParameters, WindowTask, prepared_windows


class AudioTask(WindowTask):
    name = "audio"
    summary = "What is in a sound"
    accepts = "WAV, FLAC, OGG (Vorbis, Opus), MP3, M4A/AAC or WebM"
    sample = Path("samples/seven.wav")
    preprocess = AudioPreprocess
    max_batch_gpu = 128
    training = "models.tasks.audio:AUDIO"
    decode, decode_cost = staticmethod(audio.decode), staticmethod(audio.decode_cost)

    def decode_spec(self, preprocess: AudioPreprocess, parameters: WindowParameters) -> AudioSpec:
        return AudioSpec(preprocess.sample_rate_hz)

    def prepare(self, blocks: Iterable[NDArray[np.float32]], preprocess: AudioPreprocess) -> Prepared:
        return prepared_windows(audio_windows(np.concatenate(list(blocks)), preprocess))


AUDIO = AudioTask()
