"""Bodies, read in this process: in any pieces, cut off anywhere, damaged anyhow."""

import base64
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect, Request

from service.errors import BodyTooLarge, EmptyBody, InvalidParameter, MalformedBody, ServiceError
from service.http.body import Body, read
from service.settings import Settings
from tests.http.asgi import Call

PICTURE = b"\x89PNG\r\n\x1a\n--\r\n-- and lines that begin like a boundary"
SETTINGS = Settings()


def _part(disposition: str, content: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"Content-Disposition: form-data; {disposition}", *headers])
    return b"--x\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


def _file(content: bytes = PICTURE, name: str = "a.png") -> bytes:
    return _part(f'name="file"; filename="{name}"', content, "Content-Type: image/png").replace(
        b"\r\n--x\r\n and", b"*"
    )


def _field(name: str, value: str) -> bytes:
    return _part(f'name="{name}"', value.encode())


END = b"--x--\r\n"
FORM = _field("top_k", "3") + _file() + _field("model", "tiny") + _file(b"second", "b.png") + END


async def _read(
    body: bytes, *, pieces: Sequence[bytes] = (), content_type: str = "multipart/form-data; boundary=x", **limits: int
) -> Body:
    call = Call("/classify", headers=[(b"content-type", content_type.encode())], body=pieces or [body])
    return await read(Request(call.scope, call.receive), SETTINGS.model_copy(update=limits))


async def test_a_form_holds_files_in_order_and_parameters() -> None:
    form = await _read(FORM)
    assert [upload.filename for upload in form.uploads] == ["a.png", "b.png"]
    assert [upload.data for upload in form.uploads] == [PICTURE, b"second"]
    assert form.parameters == {"top_k": "3", "model": "tiny"}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
async def test_a_form_may_come_in_any_pieces(size: int) -> None:
    pieces = [FORM[start : start + size] for start in range(0, len(FORM), size)]
    assert await _read(b"", pieces=pieces) == await _read(FORM)


async def test_a_form_that_ends_early_is_malformed_wherever_it_ends() -> None:
    for end in range(len(FORM) - len(b"--\r\n")):
        with pytest.raises(MalformedBody, match="multipart"):
            await _read(FORM[:end])
    assert await _read(FORM[:-2]) == await _read(FORM), "the last line end may be missing (RFC 2046, section 5.1.1)"


async def test_a_damaged_form_is_refused_or_read_and_never_breaks() -> None:
    generator = random.Random(0)
    for _ in range(1000):
        damaged = bytearray(FORM)
        for _ in range(generator.randrange(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            form = await _read(bytes(damaged))
        except ServiceError as error:
            assert error.status in (400, 413, 422)
        else:
            assert form.uploads


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "7bit", "binary", "8bit"])
async def test_a_part_may_state_its_transfer_encoding(encoding: str) -> None:
    content = {"base64": b"cGljdHVyZQ==", "quoted-printable": b"pict=75re"}.get(encoding, b"picture")
    part = _part('name="file"; filename="a"', content, f"Content-Transfer-Encoding: {encoding}")
    assert (await _read(part + END)).uploads[0].data == b"picture"


@pytest.mark.parametrize("encoding", ["base64", "rot13"])
async def test_a_part_that_cannot_be_decoded_is_malformed(encoding: str) -> None:
    part = _part('name="file"; filename="a"', b"*** no ***", f"Content-Transfer-Encoding: {encoding}")
    with pytest.raises(MalformedBody):
        await _read(part + END)


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data;x"]
)
async def test_a_form_needs_a_boundary(content_type: str) -> None:
    with pytest.raises(MalformedBody):
        await _read(FORM, content_type=content_type)


async def test_a_form_without_a_file_is_empty() -> None:
    with pytest.raises(EmptyBody):
        await _read(_field("top_k", "3") + END)
    with pytest.raises(EmptyBody):
        await _read(END)


async def test_the_media_must_be_a_file() -> None:
    with pytest.raises(MalformedBody, match="filename"):
        await _read(_field("file", "text") + END)


async def test_a_file_of_another_name_has_no_meaning() -> None:
    with pytest.raises(InvalidParameter, match="'image'"):
        await _read(_part('name="image"; filename="a"', b"picture") + END)


async def test_a_field_given_twice_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="'top_k' is given twice"):
        await _read(_field("top_k", "1") + _file() + _field("top_k", "2") + END)


async def test_fields_are_few_and_short() -> None:
    many = b"".join(_field(f"name-{number}", "x") for number in range(33))
    for fields in (many, _field("model", "x" * 1025)):
        with pytest.raises(BodyTooLarge, match="32 fields of 1024 bytes"):
            await _read(fields + _file() + END)


async def test_files_are_few() -> None:
    with pytest.raises(BodyTooLarge, match="MAX_FILES"):
        await _read(_file() * 3 + END, max_files=2)


async def test_no_more_is_read_than_the_limit_allows() -> None:
    pieces = [FORM[:100], FORM[100:200], *[b"more"] * 10]
    call = Call("/", headers=[(b"content-type", b"multipart/form-data; boundary=x")], body=pieces)
    with pytest.raises(BodyTooLarge, match="MAX_BODY_BYTES"):
        await read(Request(call.scope, call.receive), Settings(max_body_bytes=150))
    assert call.received == 2
    declared = Call("/", headers=[(b"content-length", b"151")], body=pieces)
    with pytest.raises(BodyTooLarge, match="151 bytes"):
        await read(Request(declared.scope, declared.receive), Settings(max_body_bytes=150))
    assert declared.received == 0


async def test_a_client_that_leaves_is_no_malformed_form() -> None:
    call = Call("/", headers=[(b"content-type", b"multipart/form-data; boundary=x")])
    with pytest.raises(ClientDisconnect):
        await read(Request(call.scope, call.receive), SETTINGS)


async def test_large_files_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError):
        tempfile.mkstemp()
    large = random.Random(0).randbytes(3_000_000)
    pieces = [b"--x\r\n", _part('name="file"; filename="a"', large)[5:], _field("top_k", "1" * 1000), END]
    form = await _read(b"", pieces=pieces)
    assert form.uploads[0].data == large


async def test_json_may_be_large() -> None:
    large = random.Random(0).randbytes(3_000_000)
    body = json.dumps({"inputs": base64.b64encode(large).decode(), "parameters": {"top_k": 1, "model": None}}).encode()
    read_back = await _read(body, content_type="application/json")
    assert read_back.uploads[0].data == large and read_back.parameters == {"top_k": 1}


@pytest.mark.parametrize("content_type", ["", "image/png", "application/x-www-form-urlencoded", "nonsense"])
async def test_all_else_is_the_media_itself(content_type: str) -> None:
    assert await _read(FORM, content_type=content_type) == await _read(b"", pieces=[FORM], content_type="")
    assert (await _read(FORM, content_type=content_type)).uploads[0].data == FORM
