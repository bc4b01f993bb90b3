"""A sound: bytes -> float32 (T,), mono, at the rate that is asked for."""

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from service.errors import CorruptMedia, MediaTooLarge
from service.media import Check, Limits, never
from service.media.container import check_codec, check_duration, declared_seconds, open_container

# What an uncompressed sound takes: for each byte, and each sample at the rate that is asked for.
_SECONDS, _SECONDS_A_BYTE, _SECONDS_A_SAMPLE = 5e-4, 4e-9, 22e-9
_OTHER_BYTES = 512  # before the samples, and behind: FFmpeg compares each tag with all others, a second for 400 kB
_UNCOMPRESSED = {b"\x01\x00", b"\x03\x00"}  # WAVE_FORMAT_PCM, WAVE_FORMAT_IEEE_FLOAT
_MIN_RATE_HZ, _MAX_RATE_HZ = 4_000, 192_000  # below and above lies no recording, only a forged header


def decode_audio(data: bytes, limits: Limits, *, sample_rate_hz: int, check: Check = never) -> NDArray[np.float32]:
    """The first audio stream as (T,) float32, full scale -1 to 1, channels averaged, at ``sample_rate_hz``.

    Raises ``UnsupportedMedia``; ``MediaTooLarge`` for too many seconds or channels; ``CorruptMedia``, also for a file
    without an audio stream, without a single sample, or with samples that are not finite.
    """
    with open_container(data, "audio", limits) as container:
        if not container.streams.audio:
            raise CorruptMedia("the file holds no audio stream")
        stream = container.streams.audio[0]
        _check_header(stream, limits)
        check_duration(declared_seconds(container), limits)
        blocks = list(_blocks(container, stream, limits, sample_rate_hz, check))
    if not blocks:
        raise CorruptMedia("the file holds no audio samples")
    sound = np.concatenate(blocks)
    if not np.isfinite(sound).all():
        raise CorruptMedia("the sound holds samples that are not finite")
    return np.clip(sound, -1, 1, out=sound)  # full scale, which floating-point files may exceed without end


def decoding_seconds(data: bytes, *, sample_rate_hz: int) -> float:
    """About how long ``decode_audio`` takes at most, of an uncompressed WAV that by its header is little but samples;
    infinite of everything else: there is no telling before it is decoded."""
    if len(data) < 36 or data[12:16] != b"fmt " or data[20:22] not in _UNCOMPRESSED:
        return math.inf
    channels, rate_hz, bits = (int.from_bytes(data[at:end], "little") for at, end in ((22, 24), (24, 28), (34, 36)))
    if not (channels and rate_hz and bits and _hardly_but_samples(data)):
        return math.inf
    samples = len(data) * 8 / (bits * channels) / rate_hz * sample_rate_hz
    return _SECONDS + len(data) * _SECONDS_A_BYTE + samples * _SECONDS_A_SAMPLE


def _hardly_but_samples(data: bytes) -> bool:
    """By the chunks of a RIFF file: a name and a length each, padded to an even one."""
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
    container: av.container.InputContainer, stream: av.AudioStream, limits: Limits, sample_rate_hz: int, check: Check
) -> Iterator[NDArray[np.float32]]:
    """Mono blocks at the wanted rate. Channels are averaged here: FFmpeg's own mix to mono would be 3 dB louder."""
    resampler: Graph | None = None
    kind: tuple[str, str, int] | None = None
    samples = 0  # counted whole: sums of seconds round, and would refuse a sound of exactly MAX_SECONDS
    for frame in container.decode(stream):
        check()
        samples += frame.samples
        check_duration(samples / (frame.sample_rate or stream.rate), limits)
        if resampler is None:
            kind, resampler = _kind(frame), _resampler(frame, sample_rate_hz)
        if _kind(frame) != kind:
            raise CorruptMedia("the sound changes its rate, its channels or its coding on the way")
        yield from _resampled(resampler, frame)
    if resampler is not None:
        yield from _resampled(resampler, None)


def _kind(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _resampler(frame: av.AudioFrame, sample_rate_hz: int) -> Graph:
    """For sounds like ``frame``, in the caller's thread: PyAV's AudioResampler starts one per core for each sound, for
    longer than a spoken word takes. Interleaved: with eight planes, PyAV 18 reads past the list of their pointers, and
    the process may die of it."""
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
