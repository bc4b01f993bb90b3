"""What /docs says of the task routes: ``inputs`` reads their bodies, not FastAPI, so they are described here."""

from typing import Any

from service.errors import REFUSALS
from service.http.middleware import PROBLEM_JSON
from service.media.formats import ACCEPTED
from service.repository.card import MEDIA_OF_TASK, Task
from service.schemas import Parameters, Prediction, Problem, Results, Segment, Timeline

SUMMARY = "Convolutional networks for pictures, sound and video."
SUMMARIES: dict[Task, str] = {
    "classify": "What is in a picture",
    "segment": "What is in every pixel of a picture",
    "audio": "What is in a sound",
    "video": "What is in a clip",
}
_ANSWERS: dict[Task, Any] = {
    "classify": list[Prediction] | Results,
    "segment": list[Segment] | Results,
    "audio": list[Prediction] | Timeline | Results,
    "video": list[Prediction] | Timeline | Results,
}


def request(task: Task, parameters: type[Parameters]) -> dict[str, Any]:
    """The three forms of the body, and the query's parameters."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    schema = parameters.model_json_schema()
    json_form = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {"type": "string", "format": "byte", "description": "the media in base64"},
            "parameters": schema,
        },
    }
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    multipart = {"type": "object", "required": ["file"], "properties": {"file": files}}
    return {
        "requestBody": {
            "required": True,
            "description": f"{ACCEPTED[MEDIA_OF_TASK[task]]}; recognised by the bytes, whatever the content type says",
            "content": {
                "application/octet-stream": binary,
                "multipart/form-data": {"schema": multipart},
                "application/json": {"schema": json_form},
            },
        },
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": _without_title(field)}
            for name, field in schema["properties"].items()
        ],
    }


def responses(task: Task) -> dict[int | str, dict[str, Any]]:
    """The answer, and every refusal by status."""
    by_status: dict[int | str, dict[str, Any]] = {200: {"model": _ANSWERS[task]}}
    if task == "segment":
        by_status[200]["content"] = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
    for error in REFUSALS.values():
        if error.status not in (405, 500):
            titles = [other.title for other in REFUSALS.values() if other.status == error.status]
            by_status[error.status] = {
                "description": "; ".join(titles),
                "content": {PROBLEM_JSON: {"schema": Problem.model_json_schema()}},
            }
    return by_status


def _without_title(field: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in field.items() if key != "title"}
