"""Headers of MP4 films: boxes in boxes (ISO/IEC 14496-12), read without FFmpeg before anything is decoded."""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

Span = tuple[int, int]  # where a box's content begins and ends

_MAX_BOXES, _MAX_INDEX_BYTES = 16, 4096  # what is quickly decoded is as quickly described
_BESIDE_THE_INDEX = {b"ftyp", b"free", b"skip", b"wide", b"mdat"}

_BOX, _LENGTH = struct.Struct(">I4s"), struct.Struct(">Q")  # length with this, name; a length of 1 is written behind
_TIMES = struct.Struct(">B11xII")  # version, ticks in a second, ticks in all
_CODING = struct.Struct(">4xI4x4s24xHH")  # how many there are; of the first its name, width and height
_SIZES = struct.Struct(">4xII")  # the bytes of every frame, or 0 where a list of them follows; how many frames


class Film(NamedTuple):
    """The header's claims, which need not be true."""

    width: int
    height: int
    frames: int
    frame_bytes: int  # of all frames together
    seconds: float


def film(data: bytes) -> Film | None:
    """Reads an MP4 that holds one H.264 film with a short index; returns None for everything else."""
    try:
        return _film(data)
    except (ValueError, struct.error):  # a box is missing, is there twice, or is cut off
        return None


def _film(data: bytes) -> Film | None:
    boxes = list(islice(_boxes(data, (0, len(data))), _MAX_BOXES + 1))
    [(name, index)] = [box for box in boxes if box[0] not in _BESIDE_THE_INDEX]
    if name != b"moov" or len(boxes) > _MAX_BOXES or index[1] - index[0] > _MAX_INDEX_BYTES:
        return None
    media = _only(data, _only(data, index, b"trak"), b"mdia")
    table = _only(data, _only(data, media, b"minf"), b"stbl")
    version, ticks_in_a_second, ticks = _TIMES.unpack_from(data, _only(data, media, b"mdhd")[0])
    codings, coding, width, height = _CODING.unpack_from(data, _only(data, table, b"stsd")[0])
    if version or not ticks_in_a_second or (codings, coding) != (1, b"avc1"):
        return None
    start, end = _only(data, table, b"stsz")
    of_each, frames = _SIZES.unpack_from(data, start)
    start += _SIZES.size
    if of_each == 0:
        if end - start != 4 * frames:
            return None
        frame_bytes = sum(struct.unpack_from(f">{frames}I", data, start))
    else:
        frame_bytes = of_each * frames
    return Film(width, height, frames, frame_bytes, ticks / ticks_in_a_second)


def _only(data: bytes, span: Span, name: bytes) -> Span:
    """The one box of that name in ``span``. Raises ``ValueError``."""
    [found] = [content for other, content in _boxes(data, span) if other == name]
    return found


def _boxes(data: bytes, span: Span) -> Iterator[tuple[bytes, Span]]:
    """In order, each with its content. Raises ``ValueError`` or ``struct.error`` for one that ends where it should
    not."""
    start, end = span
    while start < end:
        length, name = _BOX.unpack_from(data, start)
        content = start + _BOX.size
        if length == 1:
            (length,) = _LENGTH.unpack_from(data, content)
            content += _LENGTH.size
        elif length == 0:  # all that is left
            length = end - start
        start += length
        if not content <= start <= end:
            raise ValueError("a box ends outside of the one around it")
        yield name, (content, start)
