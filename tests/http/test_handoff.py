import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.http.handoff import LARGEST, Handover

Taken = asyncio.Queue[tuple[socket.socket, bytes]]


def _mailbox(folder: Path, index: int) -> tuple[Handover, Taken]:
    taken = Taken()
    return Handover(folder, index, lambda *what: taken.put_nowait(what)), taken


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    client, connection = socket.socketpair()
    yield client, connection
    client.close()
    connection.close()


@pytest.mark.parametrize("size", [0, 1, 70_000, 256_000, LARGEST])  # uvloop reads up to 256,000 bytes at a time
async def test_the_other_gets_the_connection_and_what_was_read_of_it(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket], size: int
) -> None:
    client, connection = pair
    received = bytes(range(256)) * (size // 256 + 1)
    (mine, _), (theirs, taken) = _mailbox(tmp_path, 0), _mailbox(tmp_path, 1)
    assert mine.give(1, connection.fileno(), received[:size])
    connection.close()
    same, read = await asyncio.wait_for(taken.get(), 5)
    client.sendall(b"a question")
    assert same.recv(100) == b"a question"
    same.sendall(b"an answer")
    assert client.recv(100) == b"an answer"
    same.close()
    assert client.recv(100) == b""  # nobody holds it any more
    assert read == received[:size]
    mine.close()
    theirs.close()


async def test_nothing_is_given_that_does_not_fit(tmp_path: Path, pair: tuple[socket.socket, socket.socket]) -> None:
    mailbox, taken = _mailbox(tmp_path, 0)
    assert not mailbox.give(0, pair[1].fileno(), bytes(LARGEST + 1))
    await asyncio.sleep(0.05)
    assert taken.empty()
    mailbox.close()


async def test_nothing_is_given_to_who_is_not_there(tmp_path: Path, pair: tuple[socket.socket, socket.socket]) -> None:
    (mine, _), (theirs, _) = _mailbox(tmp_path, 0), _mailbox(tmp_path, 1)
    assert not mine.give(2, pair[1].fileno(), b"")
    theirs.close()  # as if it had died: its file remains
    assert not mine.give(1, pair[1].fileno(), b"")
    again, taken = _mailbox(tmp_path, 1)
    assert mine.give(1, pair[1].fileno(), b"")
    (await asyncio.wait_for(taken.get(), 5))[0].close()
    again.close()
    mine.close()


async def test_who_reads_nothing_is_given_no_more_than_a_few(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    (mine, _), (theirs, taken) = _mailbox(tmp_path, 0), _mailbox(tmp_path, 1)
    given = 0
    while given < 10_000 and mine.give(1, pair[1].fileno(), bytes(50_000)):  # without a turn of the event loop
        given += 1
    assert 0 < given < 10_000
    for _ in range(given):
        (await asyncio.wait_for(taken.get(), 5))[0].close()
    mine.close()
    theirs.close()


async def test_a_folder_whose_name_is_too_long_is_an_os_error(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    with pytest.raises(OSError, match="too long"):
        Handover(folder, 0, lambda *what: None)
