"""FFmpeg containers of sounds and clips, opened so that nothing but the given bytes is read."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import av
import av.container
import av.error
import av.logging

from service.errors import CorruptMedia, DeadlineExceeded, MediaTooLarge
from service.media import Limits
from service.media.formats import CLIPS, accepted_format

av.logging.set_level(None)  # FFmpeg would print what strangers' files make it say

_DEMUXERS = {
    "WAV": "wav",
    "FLAC": "flac",
    "OGG": "ogg",
    "MP3": "mp3",
    "AAC": "aac",
    "MP4": "mov",
    "Matroska": "matroska",
    "AVI": "avi",
    "GIF": "gif",
}


@contextmanager
def open_container(data: bytes, media: str, limits: Limits) -> Iterator[av.container.InputContainer]:
    """FFmpeg's view of ``data``, by the one demuxer that its magic bytes stand for.

    A playlist (HLS, ffconcat, SDP) is no format here, so what it names is never opened. Errors of FFmpeg inside the
    block become ``CorruptMedia``, or ``MediaTooLarge`` where its own guard on frame sizes refused.
    """
    format = accepted_format(data, media)
    demuxer = _DEMUXERS[format]
    options = {
        "format_whitelist": demuxer,
        "protocol_whitelist": "pipe",
        "max_pixels": str(limits.max_frame_pixels),
        "enable_drefs": "0",
    }
    if format == "WAV":  # FFmpeg would search the samples for other codings, for longer than a spoken word decodes
        options["probesize"] = "4096"
    try:
        with av.open(BytesIO(data), "r", format=demuxer, options=options, metadata_errors="ignore") as container:
            yield container
    except av.error.ArgumentError as error:  # what a frame above max_pixels raises
        if format not in CLIPS:
            raise CorruptMedia(f"the {format} file states what no sound has; it may be damaged") from error
        raise MediaTooLarge(
            f"a frame has no size, or more pixels than MAX_FRAME_PIXELS allows, {limits.max_frame_pixels}"
        ) from error
    except (av.error.FFmpegError, EOFError, ValueError, OverflowError) as error:
        raise CorruptMedia(f"the {format} file cannot be decoded; it may be truncated or damaged") from error


def check_codec(stream: av.AudioStream | av.VideoStream) -> None:
    """Raises ``CorruptMedia`` where FFmpeg knows no decoder; PyAV's stream then lacks most of its attributes."""
    if stream.codec_context is None:
        raise CorruptMedia(f"the {stream.type} in the file is in no known coding; the file may be damaged")


def check_duration(seconds: float, limits: Limits) -> None:
    if seconds > limits.max_seconds:
        raise MediaTooLarge(f"it lasts {seconds:.1f} seconds; MAX_SECONDS allows {limits.max_seconds:g}")


def declared_seconds(container: av.container.InputContainer) -> float:
    """Returns what the header claims, 0 if nothing: good for an early refusal alone."""
    return (container.duration or 0) / av.time_base


def check_deadline(deadline: float) -> None:
    """Raises ``DeadlineExceeded`` once ``deadline`` (monotonic seconds) has passed."""
    if time.monotonic() >= deadline:
        raise DeadlineExceeded("the deadline passed while the request was decoded")
