"""bytes -> samples -> outputs -> answer, by the service's own code: what every contestant runs, inside of its own
HTTP and its own batching. The limit runs it without either.

It needs numpy, Pillow, PyAV, zlib-ng, pydantic and ONNX Runtime, so that it runs in the peers' environments as well.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from service.engines.onnxruntime import Engine, Outputs
from service.media import Limits
from service.media.audio import decode_audio
from service.media.image import decode_image
from service.media.samples import Region, Windows, audio_windows, decoded_shorter_side, image_sample, video_windows
from service.media.video import decode_video
from service.repository.card import AudioPreprocess, ImagePreprocess, ModelCard
from service.tasks import answers as postprocess

TOP_K = 5
_LIMITS = Limits()
Answer = list[dict[str, Any]]  # [{"label", "score"}], of a segmenter with "mask"


@dataclass(frozen=True)
class Setup:
    """What a contestant is told: the folder of the model, where to listen on 127.0.0.1, how many processes may compute
    at once, and how many samples may share a batch."""

    model: Path
    port: int
    workers: int
    max_batch: int

    def environment(self) -> dict[str, str]:
        return {f"BENCH_{name.upper()}": str(value) for name, value in vars(self).items()}

    @classmethod
    def read(cls) -> Self:
        """From the environment. Raises ``KeyError`` where there is none."""
        number = {name: int(os.environ[f"BENCH_{name.upper()}"]) for name in ("port", "workers", "max_batch")}
        return cls(model=Path(os.environ["BENCH_MODEL"]), **number)


class Prepared(NamedTuple):
    """One request's samples, all of one shape, and what its answer needs to know of the media."""

    samples: Sequence[NDArray[np.generic]]
    windows: Windows | None = None  # of a sound or clip
    region: Region | None = None  # of a picture
    size: tuple[int, int] = (0, 0)  # (height, width) of the picture that was sent


class Stages:
    """One model on one CPU thread."""

    def __init__(self, folder: Path) -> None:
        self.card = ModelCard.model_validate_json((folder / "card.json").read_bytes())
        self._engine = Engine(self.card, (folder / "model.onnx").read_bytes(), device="cpu", threads=1)

    def prepare(self, data: bytes) -> Prepared:
        """Raises the service's refusals for what is not the card's media."""
        spec = self.card.preprocess
        if isinstance(spec, ImagePreprocess):
            picture = decode_image(data, _LIMITS, shorter_side=decoded_shorter_side(spec))
            sample, region = image_sample(picture.image, spec)
            return Prepared([sample], region=region, size=picture.size)
        if isinstance(spec, AudioPreprocess):
            windows = audio_windows(decode_audio(data, _LIMITS, sample_rate_hz=spec.sample_rate_hz), spec)
        else:
            frames = decode_video(data, _LIMITS, frame_rate_hz=spec.frame_rate_hz, shorter_side=spec.shorter_side)
            windows = video_windows(frames, spec)
        return Prepared(windows.samples, windows=windows)

    def infer(self, requests: Sequence[Prepared]) -> list[list[Outputs]]:
        """Each request's outputs, one a sample; samples of one shape run together, whomever they belong to."""
        rows: dict[tuple[int, ...], list[tuple[int, NDArray[np.generic]]]] = defaultdict(list)
        for number, request in enumerate(requests):
            for sample in request.samples:
                rows[sample.shape].append((number, sample))
        outputs: list[list[Outputs]] = [[] for _ in requests]
        for batch in rows.values():
            for (number, _), output in zip(batch, self._engine.run([sample for _, sample in batch]), strict=True):
                outputs[number].append(output)
        return outputs

    def answer(self, request: Prepared, outputs: Sequence[Outputs]) -> Answer:
        if request.windows is None and self.card.task == "segment":
            assert request.region is not None
            mask, confidence = np.asarray(outputs[0][0], np.uint8), np.asarray(outputs[0][1], np.float32)
            found = postprocess.segments(mask, confidence, request.region, request.size, self.card, 0.0)
            return [segment.model_dump() for segment in found]
        rows = np.stack([output[0] for output in outputs]).astype(np.float32)
        probabilities = rows[0] if request.windows is None else postprocess.whole(rows, request.windows)
        return cast(Answer, postprocess.predictions(probabilities, self.card.categories, TOP_K))

    def answers(self, bodies: Sequence[bytes]) -> list[Answer]:
        """All stages, for a server that hands over a batch of bodies."""
        requests = [self.prepare(body) for body in bodies]
        return [self.answer(*pair) for pair in zip(requests, self.infer(requests), strict=True)]
