"""A request's body -> media bytes and parameters: raw, multipart or JSON, and never more of it than is allowed."""

import asyncio
import base64
import binascii
import functools
import json
import re
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from pydantic import ValidationError
from starlette.datastructures import Headers, QueryParams, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service.errors import BodyTimeout, BodyTooLarge, EmptyBody, InvalidParameter, MalformedBody
from service.http import connection as wire
from service.schemas import Parameters
from service.settings import Settings

_CHARSET = re.compile(r";\s*charset\*?\s*=[^;]*", re.IGNORECASE)
_JSON_IN_THREAD = 256 * 1024  # bytes from which parsing would hold the event loop for milliseconds


class Upload(NamedTuple):
    filename: str  # the client's word: echoed, and used for nothing else
    data: bytes


class Inputs(NamedTuple):
    uploads: list[Upload]
    parameters: dict[str, Any]  # those in the JSON form


async def read_inputs(request: Request, settings: Settings) -> Inputs:
    """Raises ``EmptyBody``, ``MalformedBody``, ``BodyTooLarge``, ``BodyTimeout``, or ``InvalidParameter`` for a part or
    a JSON key that has no meaning; ``starlette.requests.ClientDisconnect`` if the client left."""
    reading = _read(request, settings)
    if wire.whole(request.scope):
        return await reading
    try:
        async with asyncio.timeout(settings.body_timeout_ms / 1000):
            return await reading
    except TimeoutError:
        raise BodyTimeout(settings.body_timeout_ms) from None


async def _read(request: Request, settings: Settings) -> Inputs:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        return await _multipart(request, settings)
    body = await read_body(request, settings.max_body_bytes)
    if content_type != "application/json" or not body:
        return Inputs([Upload("", body)], {})
    if len(body) < _JSON_IN_THREAD:
        return _json(body)
    return await asyncio.to_thread(_json, body)


async def read_body(request: Request, max_bytes: int) -> bytes:
    if not wire.whole(request.scope):
        return b"".join([chunk async for chunk in counted(request, max_bytes)])
    body, _ = await _received(request)  # in one piece, which a generator would cost more than all else here
    _check_length(len(body), max_bytes)
    return body


async def counted(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises ``BodyTooLarge`` before more than ``max_bytes`` are held."""
    declared = request.headers.get("content-length", "")
    received, more = 0, True
    if declared.isdigit() and int(declared) > max_bytes:
        raise BodyTooLarge(f"the body has {declared} bytes; MAX_BODY_BYTES allows {max_bytes}")
    while more:
        chunk, more = await _received(request)
        received += len(chunk)
        _check_length(received, max_bytes)
        yield chunk


async def _received(request: Request) -> tuple[bytes, bool]:
    """What has come of the body since the last time, and whether there is more of it."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


def _check_length(received: int, max_bytes: int) -> None:
    if received > max_bytes:
        raise BodyTooLarge(f"the body has more than the {max_bytes} bytes that MAX_BODY_BYTES allows")


class _InMemoryParser(MultiPartParser):
    """Starlette's, but its files never spill to disk: their size is bounded by the count of the body's bytes."""

    spool_max_size = 1 << 62


async def _multipart(request: Request, settings: Settings) -> Inputs:
    # Names are UTF-8. A charset of the client's choice would be any codec of Python's, with whatever it raises.
    headers = Headers({"content-type": _CHARSET.sub("", request.headers["content-type"])})
    body = counted(request, settings.max_body_bytes)
    parser = _InMemoryParser(headers, body, max_files=settings.max_files, max_fields=8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise BodyTooLarge(
                f"the body has more than the {settings.max_files} files that MAX_FILES allows"
            ) from error
        raise MalformedBody(f"the multipart body cannot be read: {error.message}") from error
    try:
        return Inputs([await _upload(name, part) for name, part in form.multi_items()] or _no_file(), {})
    finally:
        await form.close()


async def _upload(name: str, part: UploadFile | str) -> Upload:
    if name != "file":
        raise InvalidParameter(f"the multipart part {name[:80]!r} has no meaning; media come as parts named 'file'")
    if isinstance(part, str):
        raise MalformedBody("the part 'file' is a field, not a file; give it a filename (curl: -F file=@PATH)")
    return Upload(part.filename or "", await part.read())


def _no_file() -> list[Upload]:
    raise EmptyBody("the multipart body holds no part; send the media as parts named 'file'")


def _json(body: bytes) -> Inputs:
    """``{"inputs": "<base64>", "parameters": {…}}``"""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedBody("the body is said to be JSON, and is not") from error
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), str):
        raise MalformedBody('JSON must be {"inputs": "<the media in base64>", "parameters": {…}}')
    if unknown := sorted(set(content) - {"inputs", "parameters"}):
        raise InvalidParameter(f"the JSON key {unknown[0][:80]!r} has no meaning; there are 'inputs' and 'parameters'")
    parameters = content.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise InvalidParameter("'parameters' must be a JSON object")
    try:
        data = base64.b64decode(content["inputs"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedBody("'inputs' is not base64") from error
    return Inputs([Upload("", data)], {name: value for name, value in parameters.items() if value is not None})


def parse_parameters(kind: type[Parameters], query: bytes, in_json: dict[str, Any], max_timeout_ms: int) -> Parameters:
    """Query string and JSON together; what both give, the JSON decides. Raises ``InvalidParameter`` with the name."""
    if in_json:
        return _parsed(kind, query, in_json, max_timeout_ms)
    return _from_query(kind, query, max_timeout_ms)


@functools.lru_cache(64)  # most requests ask for what others have asked for, and can share it: it is frozen
def _from_query(kind: type[Parameters], query: bytes, max_timeout_ms: int) -> Parameters:
    return _parsed(kind, query, {}, max_timeout_ms)


def _parsed(kind: type[Parameters], query_string: bytes, in_json: dict[str, Any], max_timeout_ms: int) -> Parameters:
    query = QueryParams(query_string)
    names = [name for name, _ in query.multi_items()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidParameter(f"the parameter {twice[:80]!r} is given twice")
    for name, value in in_json.items():
        if isinstance(value, bool) and name not in ("overlay", "windows"):
            raise InvalidParameter(f"{name[:80]!r} cannot be {str(value).lower()}")
    try:
        parameters = kind.model_validate({**query, **in_json})
    except ValidationError as error:
        raise InvalidParameter(_explained(error, kind)) from error
    if parameters.timeout_ms is not None and parameters.timeout_ms > max_timeout_ms:
        raise InvalidParameter(f"'timeout_ms' is {parameters.timeout_ms}; TIMEOUT_MS allows {max_timeout_ms}")
    return parameters


def _explained(error: ValidationError, kind: type[Parameters]) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])[:80] if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"there is no parameter {name!r} here; there are {', '.join(kind.model_fields)}"
    return f"{name!r} is {str(first['input'])[:80]!r}: {first['msg']}"
