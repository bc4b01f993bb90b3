"""``/video``: what is in a clip."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.media import video
from service.media.video import VideoSpec
from service.media.windows import video_windows
from service.repository.card import VideoPreprocess
from service.tasks.task import Prepared
from service.tasks.windows import WindowParameters, WindowTask, prepared_windows


class VideoTask(WindowTask):
    name = "video"
    summary = "What is in a clip"
    accepts = "MP4, MOV, WebM, MKV, AVI or GIF"
    sample = Path("samples/pan-left.mp4")
    preprocess = VideoPreprocess
    training = "models.tasks.video:VIDEO"
    decode, decode_cost = staticmethod(video.decode), staticmethod(video.decode_cost)

    def decode_spec(self, preprocess: VideoPreprocess, parameters: WindowParameters) -> VideoSpec:
        return VideoSpec(preprocess.frame_rate_hz, preprocess.shorter_side)

    def prepare(self, blocks: Iterable[NDArray[np.uint8]], preprocess: VideoPreprocess) -> Prepared:
        return prepared_windows(video_windows(np.concatenate(list(blocks)), preprocess))


VIDEO = VideoTask()
