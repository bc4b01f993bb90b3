"""Request bodies -> media bytes and parameters: raw, multipart or JSON, and never more of it than is allowed."""

import asyncio
import base64
import binascii
import functools
import json
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any, NamedTuple

from pydantic import ValidationError
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, parse_options_header
from starlette.datastructures import QueryParams
from starlette.requests import Request

from service.errors import BodyTimeout, BodyTooLarge, EmptyBody, InvalidParameter, MalformedBody
from service.settings import Settings
from service.tasks.task import Parameters

_JSON_IN_THREAD = 256 * 1024  # bytes from which parsing would hold the event loop for milliseconds
_MAX_FIELDS = 32  # of a multipart body
_MAX_FIELD_BYTES = 1024


class Upload(NamedTuple):
    filename: str  # the client's word: echoed, and used for nothing else
    data: bytes


class Body(NamedTuple):
    uploads: list[Upload]
    parameters: dict[str, Any]  # those of the JSON or multipart form


async def read(request: Request, settings: Settings, *, raw: bool = False) -> Body:
    """Reads a body in any of its three forms, or as ``raw`` bytes whatever its content type says.

    Raises ``EmptyBody``, ``MalformedBody``, ``BodyTooLarge``, ``BodyTimeout``, or ``InvalidParameter`` for a part or a
    JSON key that has no meaning; ``starlette.requests.ClientDisconnect`` if the client left.
    """
    try:
        async with asyncio.timeout(settings.body_timeout_ms / 1000):
            return await _read(request, settings, "" if raw else request.headers.get("content-type", ""))
    except TimeoutError:
        raise BodyTimeout(settings.body_timeout_ms) from None


async def _read(request: Request, settings: Settings, stated: str) -> Body:
    content_type = stated.partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        return await _multipart(request, stated, settings)
    body = b"".join([chunk async for chunk in counted(request, settings.max_body_bytes)])
    if content_type != "application/json" or not body:
        return Body([Upload("", body)], {})
    if len(body) < _JSON_IN_THREAD:
        return _json(body)
    return await asyncio.to_thread(_json, body)


async def counted(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """Yields the body as it comes. Raises ``BodyTooLarge`` before more than ``max_bytes`` are held."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise BodyTooLarge(f"the body has {declared} bytes; MAX_BODY_BYTES allows {max_bytes}")
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise BodyTooLarge(f"the body has more than the {max_bytes} bytes that MAX_BODY_BYTES allows")
        yield chunk


async def _multipart(request: Request, content_type: str, settings: Settings) -> Body:
    form = _Form(settings)
    try:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        parser = FormParser(
            "multipart/form-data", form.on_field, form.on_file, form.on_end, boundary, config=form.config
        )
        async for chunk in counted(request, settings.max_body_bytes):
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise MalformedBody(f"the multipart body cannot be read: {error}") from error
    if not form.ended:
        raise MalformedBody("the multipart body ends before its last boundary")
    if not form.uploads:
        raise EmptyBody("the multipart body holds no file; send the media as parts named 'file'")
    return Body(form.uploads, form.parameters)


class _Form:
    """Collects the parts of a multipart body: files named 'file', and fields, which are parameters."""

    def __init__(self, settings: Settings) -> None:
        self._max_files = settings.max_files
        # Files stay in memory, never on disk: the body's bytes are counted.
        self.config = {"MAX_MEMORY_FILE_SIZE": settings.max_body_bytes + 1, "UPLOAD_ERROR_ON_BAD_CTE": True}
        self.uploads: list[Upload] = []
        self.parameters: dict[str, Any] = {}
        self.ended = False

    def on_field(self, field: Field) -> None:
        name, value = _text(field.field_name), _text(field.value)
        if name == "file":
            raise MalformedBody("the part 'file' is a field, not a file; give it a filename (curl: -F file=@PATH)")
        if name in self.parameters:
            raise InvalidParameter(f"the parameter {name[:80]!r} is given twice")
        if len(value) > _MAX_FIELD_BYTES or len(self.parameters) >= _MAX_FIELDS:
            raise BodyTooLarge(
                f"a form may hold {_MAX_FIELDS} fields of {_MAX_FIELD_BYTES} bytes each beside its files"
            )
        self.parameters[name] = value

    def on_file(self, file: File) -> None:
        name = _text(file.field_name)
        if name != "file":
            raise InvalidParameter(f"the multipart part {name[:80]!r} has no meaning; media come as parts named 'file'")
        if len(self.uploads) >= self._max_files:
            raise BodyTooLarge(f"the body has more than the {self._max_files} files that MAX_FILES allows")
        content = file.file_object
        assert isinstance(content, BytesIO)
        self.uploads.append(Upload(_text(file.file_name), content.getvalue()))

    def on_end(self) -> None:
        self.ended = True


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _json(body: bytes) -> Body:
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
    return Body([Upload("", data)], {name: value for name, value in parameters.items() if value is not None})


def parse_parameters(kind: type[Parameters], query: bytes, in_body: dict[str, Any], max_timeout_ms: int) -> Parameters:
    """Validates the query string and the body's parameters together; where both give one, the body's counts.

    Raises ``InvalidParameter``, which names it.
    """
    if in_body:
        return _parsed(kind, query, in_body, max_timeout_ms)
    return _from_query(kind, query, max_timeout_ms)


@functools.lru_cache(64)  # most requests ask for what others have asked for, and can share it: it is frozen
def _from_query(kind: type[Parameters], query: bytes, max_timeout_ms: int) -> Parameters:
    return _parsed(kind, query, {}, max_timeout_ms)


def _parsed(kind: type[Parameters], query_string: bytes, in_body: dict[str, Any], max_timeout_ms: int) -> Parameters:
    query = QueryParams(query_string)
    names = [name for name, _ in query.multi_items()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidParameter(f"the parameter {twice[:80]!r} is given twice")
    for name, value in in_body.items():
        field = kind.model_fields.get(name)
        if (
            isinstance(value, bool) and field is not None and field.annotation is not bool
        ):  # pydantic takes it as 0 or 1
            raise InvalidParameter(f"{name[:80]!r} cannot be {str(value).lower()}")
    try:
        parameters = kind.model_validate({**query, **in_body})
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
