"""Problem documents (RFC 9457): how a refusal is encoded."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Scope

from service.errors import BodyTimeout, BodyTooLarge, ServiceError
from service.http.state import BENTO_PREFIX
from service.telemetry.request import RequestContext, cost_headers, count_refusal

PROBLEM_JSON = "application/problem+json"


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


def problem(error: ServiceError, request_id: str) -> dict[str, Any]:
    return {
        "type": f"/problems/{error.slug}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "request_id": request_id,
    }


def refusal(error: ServiceError, scope: Scope, *, allow: Iterable[str] = ()) -> Response:
    """The response to a request that is refused, counted. ``allow`` lists the methods of a path that has others."""
    this = RequestContext.of(scope)
    count_refusal(this.endpoint, error.slug)
    document = problem(error, this.request_id)
    if this.endpoint.startswith(BENTO_PREFIX):  # where BentoML's own refusals have their text
        document["error"] = f"{error.title}: {error.detail}"
    response = Response(to_json(document), error.status, media_type=PROBLEM_JSON)
    headers = response.headers
    if this.model:
        headers["X-Model"] = this.model
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, (BodyTimeout, BodyTooLarge)):
        headers["Connection"] = "close"  # the rest of the body is not wanted
    if methods := ", ".join(allow):
        headers["Allow"] = methods
    if this.timer:
        response.raw_headers += cost_headers(this.timer.seconds, batch_size=0)
    return response
