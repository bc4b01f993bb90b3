import asyncio
import json
import select
import socket
from collections.abc import Iterator

import pytest

from service.telemetry.access_log import AccessLog


class Reader:
    """Reads what is written to ``descriptor``, and sees what was written at a time. It stays open for as long as the
    process lives: what is held back to the end must not go to whoever has its number by then."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.descriptor = other.detach()

    def read(self) -> list[bytes]:
        written = []
        while select.select([self._socket], [], [], 0)[0]:
            written.append(self._socket.recv(1 << 20))
        return written

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


async def _read(reader: Reader) -> list[bytes]:
    """What has been written by the time that something has."""
    async with asyncio.timeout(30):
        while not (written := reader.read()):
            await asyncio.sleep(0.01)
    return written


async def test_lines_that_come_soon_after_one_another_are_written_together(reader: Reader) -> None:
    log = AccessLog(reader.descriptor)
    for number in range(3):
        log.write({"path": "/Ω", "status": number})
    (written,) = await _read(reader)
    lines = [json.loads(line) for line in written.splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == [("/Ω", 0), ("/Ω", 1), ("/Ω", 2)]
    log.write({"status": 3})
    assert len(await _read(reader)) == 1, "it goes on"


async def test_a_line_is_never_written_in_pieces(reader: Reader) -> None:
    log = AccessLog(reader.descriptor)
    for number in range(100):
        log.write({"path": "/" + "x" * (7 * number % 200), "status": number})
    early = reader.read()
    assert early, "more than a pipe keeps whole is not held back"
    written = early + await _read(reader)
    assert all(piece.endswith(b"\n") and len(piece) <= select.PIPE_BUF for piece in written)
    assert [json.loads(line)["status"] for line in b"".join(written).splitlines()] == list(range(100))


async def test_where_nobody_reads_any_more_nothing_fails(reader: Reader) -> None:
    log = AccessLog(reader.descriptor)
    reader.close()
    for _ in range(100):
        log.write({"path": "x" * 200})
    log.flush()
    log.write({"path": "x"})


async def test_what_is_held_back_in_the_end_is_written_when_asked_for(reader: Reader) -> None:
    log = AccessLog(reader.descriptor)
    log.write({"status": 200})
    assert not reader.read()
    log.flush()
    assert json.loads(reader.read()[0])["status"] == 200
    log.flush()
    assert not reader.read()
