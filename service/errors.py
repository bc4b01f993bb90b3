"""Refusals, with their HTTP status, in one table.

    request --read body--> bytes --decode--> media --infer--> outputs --finish--> answer
       |                    |                 |                 |
    NotFound           EmptyBody         UnsupportedMedia   QueueFull
    MethodNotAllowed   MalformedBody     CorruptMedia       DeadlineUnmeetable
    ModelNotFound      BodyTooLarge      MediaTooLarge      DeadlineExceeded
    InvalidParameter   BodyTimeout                          NotReady, InternalError

``detail`` tells the client what is wrong and what would be right. It never names a path of this machine.
"""

from typing import ClassVar


class ServiceError(Exception):
    """A refusal: ``slug`` names its problem type, ``status`` is its HTTP status, ``detail`` is for the client."""

    slug: ClassVar[str]
    status: ClassVar[int]
    title: ClassVar[str]

    def __init__(self, detail: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds


class EmptyBody(ServiceError):
    slug, status, title = "empty-body", 400, "The body is empty"

    def __init__(self, detail: str = "there is not a single byte; send the media's bytes") -> None:
        super().__init__(detail)


class MalformedBody(ServiceError):
    slug, status, title = "malformed-body", 400, "The multipart or JSON form of the body cannot be read"


class CorruptMedia(ServiceError):
    slug, status, title = "corrupt-media", 400, "The media cannot be decoded"


class NotFound(ServiceError):
    slug, status, title = "not-found", 404, "There is nothing at this path"


class ModelNotFound(ServiceError):
    slug, status, title = "model-not-found", 404, "No such model is loaded"


class TaskNotServed(ServiceError):
    slug, status, title = "task-not-served", 404, "No loaded model serves this route"


class MethodNotAllowed(ServiceError):
    slug, status, title = "method-not-allowed", 405, "This path does not answer to this method"


class BodyTimeout(ServiceError):
    slug, status, title = "body-timeout", 408, "The body came too slowly"

    def __init__(self, timeout_ms: int) -> None:
        super().__init__(f"the body was not complete after {timeout_ms} ms (BODY_TIMEOUT_MS)")


class BodyTooLarge(ServiceError):
    slug, status, title = "body-too-large", 413, "The body is larger than the limit"


class MediaTooLarge(ServiceError):
    slug, status, title = "media-too-large", 413, "The media is larger than a limit"


class UnsupportedMedia(ServiceError):
    slug, status, title = "unsupported-media", 415, "The bytes are in none of the accepted formats"


class InvalidParameter(ServiceError):
    slug, status, title = "invalid-parameter", 422, "A parameter is unknown or out of range"


class InternalError(ServiceError):
    slug, status, title = "internal-error", 500, "The service failed; this is a bug"


class NotReady(ServiceError):
    slug, status, title = "not-ready", 503, "The service is starting or stopping"


class QueueFull(ServiceError):
    slug, status, title = "queue-full", 503, "Too much work is waiting"


class DeadlineUnmeetable(ServiceError):
    slug, status, title = "deadline-unmeetable", 503, "The deadline cannot be met any more"


class DeadlineExceeded(ServiceError):
    slug, status, title = "deadline-exceeded", 504, "The deadline passed while the request waited"


REFUSALS: dict[str, type[ServiceError]] = {error.slug: error for error in ServiceError.__subclasses__()}


class ModelRefused(Exception):
    """A model in the repository that must not be served; ``model`` and ``reason`` are metric labels."""

    def __init__(self, model: str, reason: str, detail: str) -> None:
        super().__init__(f"{model}: {detail}")
        self.model, self.reason = model, reason
