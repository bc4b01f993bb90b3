"""Clips: bytes -> uint8 (T, H, W, 3), RGB, upright, at the frame rate and size that are asked for."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import av
import numpy as np
from av.buffer import Buffer
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from service.errors import CorruptMedia, MediaTooLarge
from service.media import NO_DEADLINE, DecodeCost, Limits, mp4
from service.media.container import check_codec, check_deadline, check_duration, declared_seconds, open_container
from service.media.mp4 import Film

_BLOCK_FRAMES = 32
_MAX_ELONGATION = 4  # longer side over shorter; beyond, the frames for a small shorter side would fill the memory
_SLACK = 1e-3  # seconds; time stamps in milliseconds (Matroska) fall this far beside the frames' true times
_CODED_PIXELS = 31  # by which a side may grow: it is coded as a multiple of 16, or of 32
_LONGEST_LAST_FRAME = 1.0  # seconds; how long the last frame is shown rests on the header's word alone
# Seconds of a film: per byte, per frame and pixel of it, per pixel that is left of a frame when it is scaled, and per
# pixel of the answer, in which a frame may be several times.
_SECONDS, _SECONDS_A_BYTE, _SECONDS_A_FRAME, _SECONDS_A_PIXEL = 5e-4, 100e-9, 6e-5, 6e-9
_SECONDS_A_SCALED_PIXEL, _SECONDS_A_SHOWN_PIXEL = 4e-9, 1e-9


class _Shown(NamedTuple):
    """A frame, the second at which it appears, counted from the clip's first frame, and how long it claims to stay."""

    seconds: float
    duration: float
    frame: av.VideoFrame


@dataclass(frozen=True)
class VideoSpec:
    """Frames a second, and the shorter side of each in pixels."""

    frame_rate_hz: float
    shorter_side: int


def decode(data: bytes, spec: VideoSpec, limits: Limits, deadline: float = NO_DEADLINE) -> Iterator[NDArray[np.uint8]]:
    """Yields blocks (T, H, W, 3) uint8: what the clip shows at 0, 1, 2, … ``/ frame_rate_hz`` seconds.

    Frames are chosen by their time stamps: rates vary and header counts lie. Raises ``UnsupportedMedia``;
    ``MediaTooLarge`` for too many seconds, frames, or pixels a frame; ``CorruptMedia``, also without any frame.
    """
    with open_container(data, "video", limits) as container:
        if not container.streams.video:
            raise CorruptMedia("the file holds no video stream")
        stream = container.streams.video[0]
        check_codec(stream)
        stream.codec_context.options = {"max_pixels": str(limits.max_frame_pixels)}
        stream.codec_context.thread_count = 1  # parallelism is between requests; frame threads double the memory
        _check_frame_size(stream.codec_context.width, stream.codec_context.height, limits)
        check_duration(declared_seconds(container), limits)
        aspect = _pixel_aspect(stream)
        matrices: dict[int, bytes] = {}
        scaler = VideoReformatter()  # one for all frames, of which each would make its own
        held: list[NDArray[np.uint8]] = []
        shape: tuple[int, ...] | None = None
        for frame, ticks in _at_rate(_shown_frames(container, stream, limits, deadline), spec.frame_rate_hz):
            pixels = _pixels(frame, scaler, spec.shorter_side, aspect, matrices)
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise CorruptMedia("the clip changes its shape midway")
            for _ in range(ticks):
                held.append(pixels)
                if len(held) == _BLOCK_FRAMES:
                    yield np.stack(held)
                    held = []
    if shape is None:
        raise CorruptMedia("the file holds no video frames")
    if held:
        yield np.stack(held)


def decode_cost(data: bytes, spec: VideoSpec, limits: Limits) -> DecodeCost:
    """Estimates an MP4 that holds one H.264 film with a short index, under limits lowered to what the index claims."""
    if not (film := mp4.film(data)):
        return DecodeCost(math.inf, limits)
    return DecodeCost(film_seconds(film, spec), claimed_limits(film, limits))


def film_seconds(film: Film, spec: VideoSpec) -> float:
    shorter, longer = sorted((film.width, film.height))
    if not 0 < longer <= _MAX_ELONGATION * shorter:  # it is refused, or so it should be
        return math.inf
    scaled_pixels = spec.shorter_side**2 * longer / shorter
    shown = math.ceil((film.seconds + _LONGEST_LAST_FRAME) * spec.frame_rate_hz)
    of_a_frame = _SECONDS_A_FRAME + film.width * film.height * _SECONDS_A_PIXEL
    scaling = min(film.frames, shown) * _SECONDS_A_SCALED_PIXEL + shown * _SECONDS_A_SHOWN_PIXEL
    return _SECONDS + film.frame_bytes * _SECONDS_A_BYTE + film.frames * of_a_frame + scaled_pixels * scaling


def claimed_limits(film: Film, limits: Limits) -> Limits:
    """``limits``, lowered to what ``film`` claims: what is larger is refused, and might not be by ``limits``."""
    pixels = (film.width + _CODED_PIXELS) * (film.height + _CODED_PIXELS)
    return replace(
        limits,
        max_frame_pixels=min(limits.max_frame_pixels, pixels),
        max_frames=min(limits.max_frames, film.frames),
        max_seconds=min(limits.max_seconds, film.seconds + _LONGEST_LAST_FRAME),
    )


def _check_frame_size(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_frame_pixels:
        raise MediaTooLarge(
            f"its frames are {width}x{height}, {width * height} pixels; "
            f"MAX_FRAME_PIXELS allows {limits.max_frame_pixels}"
        )


def _shown_frames(
    container: av.container.InputContainer, stream: av.VideoStream, limits: Limits, deadline: float
) -> Iterator[_Shown]:
    """Every frame in the order of showing, seconds counted from the first; limits hold for what really comes."""
    start: float | None = None
    seconds, duration = 0.0, 1 / float(stream.average_rate or 25)
    for count, frame in enumerate(container.decode(stream), start=1):
        check_deadline(deadline)
        _check_frame_size(frame.width, frame.height, limits)
        if count > limits.max_frames:
            raise MediaTooLarge(f"it has more than {limits.max_frames} frames, which MAX_FRAMES allows")
        if frame.time is not None:
            start = frame.time if start is None else start
            seconds = max(seconds, frame.time - start)  # a time stamp that runs backwards shows at once
        elif count > 1:
            seconds += duration
        if frame.duration and frame.time_base:
            duration = float(frame.duration * frame.time_base)
        check_duration(seconds, limits)
        yield _Shown(seconds, duration, frame)


def _at_rate(shown: Iterator[_Shown], frame_rate_hz: float) -> Iterator[tuple[av.VideoFrame, int]]:
    """The frames on the screen at a multiple of ``1 / frame_rate_hz`` seconds, and at how many of them each is."""
    ticks = 0
    current: _Shown | None = None
    for following in shown:
        if current is not None:
            until = max(ticks, math.ceil((following.seconds - _SLACK) * frame_rate_hz))
            if until > ticks:
                yield current.frame, until - ticks
            ticks = until
        current = following
    if current is not None:
        end = current.seconds + min(current.duration, _LONGEST_LAST_FRAME)
        last = math.ceil((end - _SLACK) * frame_rate_hz) - ticks
        if last > 0 or ticks == 0:
            yield current.frame, max(last, 1)


def _pixels(
    frame: av.VideoFrame, scaler: VideoReformatter, shorter_side: int, aspect: float, matrices: dict[int, bytes]
) -> NDArray[np.uint8]:
    """Square pixels, upright, the shorter side as asked for, by FFmpeg's area-averaging scaler.

    ``matrices`` are the clip's display matrices seen so far, by the rotation that PyAV makes of each.
    """
    width, height = frame.width * aspect, float(frame.height)
    if max(width, height) > _MAX_ELONGATION * min(width, height):
        raise MediaTooLarge(
            f"its frames are {frame.width}x{frame.height}; one side may be up to {_MAX_ELONGATION} times the other"
        )
    scale = shorter_side / min(width, height)
    scaled = scaler.reformat(
        frame,
        width=max(shorter_side, round(width * scale)),
        height=max(shorter_side, round(height * scale)),
        format="rgb24",
        interpolation="AREA",
        threads=1,  # it would start one per core
    )
    pixels: NDArray[np.uint8] = scaled.to_ndarray().astype(np.uint8, copy=False)
    # The small frame's side data, and not of every one: PyAV ties frames to them in a cycle, so that the memory of both
    # would stay until Python looks for garbage.
    if scaled.rotation not in matrices:
        matrix = scaled.side_data.get("DISPLAYMATRIX")
        matrices[scaled.rotation] = bytes(matrix) if isinstance(matrix, Buffer) else b""
    return np.ascontiguousarray(_upright(pixels, matrices[scaled.rotation]))


def _upright(pixels: NDArray[np.uint8], matrix: bytes) -> NDArray[np.uint8]:
    """Turned, and mirrored, as the display matrix has it (ISO/IEC 14496-12, section 6.2.2): a, b, u, c, d, v, …

    A point x to the right and y below moves to (a x + c y, b x + d y). Without a matrix it is upright already.
    """
    if not matrix:
        return pixels
    a, b, _, c, d = (int(value) for value in np.frombuffer(matrix, np.int32, count=5))
    if a * d < b * c:  # mirrored: left for right first, and what remains is a turn
        pixels, a, b = pixels[:, ::-1], -a, -b
    return np.rot90(pixels, -round(math.atan2(b, a) / (math.pi / 2)))


def _pixel_aspect(stream: av.VideoStream) -> float:
    """Width of a pixel over its height; what is missing or forged counts as square."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.25 <= aspect <= 4 else 1.0
