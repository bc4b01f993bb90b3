"""``/video``: what is in a clip."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.media import DecodeCost, Limits, video
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

    def decode_spec(self, preprocess: VideoPreprocess, parameters: WindowParameters) -> VideoSpec:
        return VideoSpec(preprocess.frame_rate_hz, preprocess.shorter_side)

    def decode_cost(self, data: bytes, spec: VideoSpec, limits: Limits) -> DecodeCost:
        return video.decode_cost(data, spec, limits)

    def decode(self, data: bytes, spec: VideoSpec, limits: Limits, deadline: float) -> Iterator[NDArray[np.uint8]]:
        return video.decode(data, spec, limits, deadline)

    def prepare(self, blocks: Iterable[NDArray[np.uint8]], preprocess: VideoPreprocess) -> Prepared:
        return prepared_windows(video_windows(np.concatenate(list(blocks)), preprocess))


VIDEO = VideoTask()
