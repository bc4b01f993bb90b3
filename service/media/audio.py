"""Sounds: bytes -> float32 (T,), mono, at the rate that is asked for."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from service.errors import CorruptMedia, MediaTooLarge
from service.media import NO_DEADLINE, DecodeCost, Limits
from service.media.container import check_codec, check_deadline, check_duration, declared_seconds, open_container

_BLOCK_SECONDS = 1.0
# Seconds of an uncompressed sound: per byte, and per sample at the rate that is asked for.
_SECONDS, _SECONDS_A_BYTE, _SECONDS_A_SAMPLE = 5e-4, 4e-9, 22e-9
_OTHER_BYTES = 512  # before the samples, and behind: FFmpeg compares each tag with all others, a second for 400 kB
_UNCOMPRESSED = {b"\x01\x00", b"\x03\x00"}  # WAVE_FORMAT_PCM, WAVE_FORMAT_IEEE_FLOAT
_MIN_RATE_HZ, _MAX_RATE_HZ = 4_000, 192_000  # below and above lies no recording, only a forged header


@dataclass(frozen=True)
class AudioSpec:
    sample_rate_hz: int


def decode(
    data: bytes, spec: AudioSpec, limits: Limits, deadline: float = NO_DEADLINE
) -> Iterator[NDArray[np.float32]]:
    """Yields the first audio stream in blocks (T,) float32, full scale -1 to 1, channels averaged, at the spec's rate.

    Raises ``UnsupportedMedia``; ``MediaTooLarge`` for too many seconds or channels; ``CorruptMedia``, also for a file
    without an audio stream, without a single sample, or with samples that are not finite.
    """
    empty = True
    with open_container(data, "audio", limits) as container:
        if not container.streams.audio:
            raise CorruptMedia("the file holds no audio stream")
        stream = container.streams.audio[0]
        _check_header(stream, limits)
        check_duration(declared_seconds(container), limits)
        for block in _joined(_blocks(container, stream, limits, spec.sample_rate_hz, deadline), spec.sample_rate_hz):
            if not np.isfinite(block).all():
                raise CorruptMedia("the sound holds samples that are not finite")
            empty = False
            yield np.clip(block, -1, 1, out=block)  # full scale, which floating-point files may exceed without end
    if empty:
        raise CorruptMedia("the file holds no audio samples")


def decode_cost(data: bytes, spec: AudioSpec, limits: Limits) -> DecodeCost:
    """Estimates an uncompressed WAV that by its header is little but samples."""
    return DecodeCost(_wav_seconds(data, spec.sample_rate_hz), limits)


def _wav_seconds(data: bytes, sample_rate_hz: int) -> float:
    if len(data) < 36 or data[12:16] != b"fmt " or data[20:22] not in _UNCOMPRESSED:
        return math.inf
    channels, rate_hz, bits = (int.from_bytes(data[at:end], "little") for at, end in ((22, 24), (24, 28), (34, 36)))
    if not (channels and rate_hz and bits and _hardly_but_samples(data)):
        return math.inf
    samples = len(data) * 8 / (bits * channels) / rate_hz * sample_rate_hz
    return _SECONDS + len(data) * _SECONDS_A_BYTE + samples * _SECONDS_A_SAMPLE


def _joined(blocks: Iterator[NDArray[np.float32]], sample_rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """Joins FFmpeg's short frames to blocks of a second or more."""
    held: list[NDArray[np.float32]] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) >= _BLOCK_SECONDS * sample_rate_hz:
            yield np.concatenate(held)
            held = []
    if joined := [block for block in held if len(block)]:
        yield np.concatenate(joined)


def _hardly_but_samples(data: bytes) -> bool:
    """Reads the chunks of a RIFF file: a name and a length each, padded to an even one."""
    at = 12
    while at + 8 <= min(len(data), _OTHER_BYTES):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if name == b"data":
            return at + length + _OTHER_BYTES >= len(data)
        at += length + length % 2
    return False


def _check_header(stream: av.AudioStream, limits: Limits) -> None:
    check_codec(stream)
    if not _MIN_RATE_HZ <= stream.rate <= _MAX_RATE_HZ:
        raise CorruptMedia(f"the sample rate is {stream.rate} Hz; {_MIN_RATE_HZ} to {_MAX_RATE_HZ} Hz can be decoded")
    if stream.channels > limits.max_channels:
        raise MediaTooLarge(f"it has {stream.channels} channels; MAX_CHANNELS allows {limits.max_channels}")


def _blocks(
    container: av.container.InputContainer, stream: av.AudioStream, limits: Limits, sample_rate_hz: int, deadline: float
) -> Iterator[NDArray[np.float32]]:
    """Mono blocks at the wanted rate. Channels are averaged here: FFmpeg's own mix to mono would be 3 dB louder."""
    resampler: Graph | None = None
    kind: tuple[str, str, int] | None = None
    samples = 0  # counted whole: sums of seconds round, and would refuse a sound of exactly MAX_SECONDS
    for frame in container.decode(stream):
        check_deadline(deadline)
        samples += frame.samples
        check_duration(samples / (frame.sample_rate or stream.rate), limits)
        if resampler is None:
            kind, resampler = _kind(frame), _resampler(frame, sample_rate_hz)
        if _kind(frame) != kind:
            raise CorruptMedia("the sound changes its rate, its channels or its coding midway")
        yield from _resampled(resampler, frame)
    if resampler is not None:
        yield from _resampled(resampler, None)


def _kind(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _resampler(frame: av.AudioFrame, sample_rate_hz: int) -> Graph:
    """Makes a resampler for sounds like ``frame`` that runs in the caller's thread.

    PyAV's AudioResampler starts a thread per core for each sound, which takes longer than a spoken word. The output is
    interleaved: with eight planes PyAV 18 reads past the list of their pointers, and the process may die of it.
    """
    format, layout, rate = _kind(frame)
    graph = Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add_abuffer(format=format, layout=layout, sample_rate=rate, time_base=frame.time_base),
        graph.add("aformat", sample_fmts="flt", channel_layouts=layout, sample_rates=str(sample_rate_hz)),
        graph.add("abuffersink"),
    ).configure()
    return graph


def _resampled(resampler: Graph, frame: av.AudioFrame | None) -> Iterator[NDArray[np.float32]]:
    resampler.push(frame)
    with suppress(BlockingIOError, EOFError):  # all that there is so far, and at all
        while True:
            yield _mono(cast(av.AudioFrame, resampler.pull()))


def _mono(frame: av.AudioFrame) -> NDArray[np.float32]:
    interleaved = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
    if frame.layout.nb_channels == 1:
        return interleaved[:, 0].astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused at the end
        mono: NDArray[np.float32] = interleaved.mean(axis=1, dtype=np.float32)
    return mono
