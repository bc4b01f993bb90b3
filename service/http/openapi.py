"""OpenAPI of the task routes, whose bodies FastAPI does not read, and so cannot describe."""

import functools
import operator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from service.errors import REFUSALS
from service.http.problems import PROBLEM_JSON, Problem
from service.tasks.task import JSON, Task

SUMMARY = "Convolutional networks for pictures, sound and video."

try:
    VERSION = version("convserve")
except PackageNotFoundError:  # served from a folder, as a Bento is
    VERSION = "0"

T = TypeVar("T")


class FileResult(BaseModel, Generic[T]):
    filename: str
    predictions: T


class FileError(BaseModel):
    filename: str
    error: Problem


class Results(BaseModel, Generic[T]):
    """The answer to several files."""

    results: list[FileResult[T] | FileError]


def request(task: Task) -> dict[str, Any]:
    """The three forms of the body, and the query's parameters."""
    binary = {"type": "string", "format": "binary"}
    schema = task.parameters.model_json_schema()
    json_form = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {"type": "string", "format": "byte", "description": "the media in base64"},
            "parameters": schema,
        },
    }
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "array", "items": binary}, **_parameters(schema)},
    }
    return {
        "requestBody": {
            "required": True,
            "description": f"{task.accepts}; recognised by the bytes, whatever the content type says",
            "content": {
                "application/octet-stream": {"schema": binary},
                "multipart/form-data": {"schema": form},
                JSON: {"schema": json_form},
            },
        },
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": field}
            for name, field in _parameters(schema).items()
        ],
    }


def responses(task: Task) -> dict[int | str, dict[str, Any]]:
    """The answer, and every refusal by status."""
    one_file: Any = functools.reduce(operator.or_, task.other_answers, task.answer)
    several: Any = Results.__class_getitem__(one_file)
    by_status: dict[int | str, dict[str, Any]] = {200: {"model": one_file | several}}
    if others := [media_type for media_type in task.media_types if media_type != JSON]:
        binary = {"schema": {"type": "string", "format": "binary"}}
        by_status[200]["content"] = dict.fromkeys(others, binary)
    for error in REFUSALS.values():
        if error.status not in (405, 500):
            titles = [other.title for other in REFUSALS.values() if other.status == error.status]
            by_status[error.status] = {
                "description": "; ".join(titles),
                "content": {PROBLEM_JSON: {"schema": Problem.model_json_schema()}},
            }
    return by_status


def _parameters(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in field.items() if key != "title"}
        for name, field in schema["properties"].items()
    }
