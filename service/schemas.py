"""What goes in beside the media, and what comes out: the Hugging Face tasks' bodies, so that their clients work."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic takes Python's own only from 3.12 on


class Prediction(TypedDict):  # not a model: making five of those takes longer than all else that follows the network
    label: str
    score: float


class Segment(BaseModel):
    label: str
    score: float
    mask: Annotated[str, Field(description="PNG in base64, at the picture's own size: 255 is this category, 0 is not")]


class Window(BaseModel):
    start_seconds: float
    end_seconds: float
    predictions: list[Prediction]


class Timeline(BaseModel):
    predictions: list[Prediction]
    windows: list[Window]


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


class FileResult(BaseModel):
    filename: str
    predictions: list[Prediction] | list[Segment] | Timeline


class FileError(BaseModel):
    filename: str
    error: Problem


class Results(BaseModel):
    results: list[FileResult | FileError]


class _Parameters(BaseModel):
    """Query strings and JSON share these; in JSON, null is no value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str | None, Field(description="a model's name, or name:version; else the route's default")] = None
    timeout_ms: Annotated[int | None, Field(ge=1, description="deadline, counted from the last byte of the body")] = (
        None
    )


class ClassifyParameters(_Parameters):
    top_k: Annotated[int, Field(ge=1, description="how many labels; more than there are categories means all")] = 5
    function_to_apply: Annotated[Literal["softmax"], Field(description="for the Hugging Face clients")] = "softmax"


class WindowParameters(ClassifyParameters):
    windows: Annotated[bool, Field(description="answer with the timeline as well")] = False


class SegmentParameters(_Parameters):
    threshold: Annotated[float, Field(ge=0, le=1, description="leave out categories scored lower")] = 0.0
    overlay: Annotated[bool, Field(description="with Accept: image/png, blend the mask over the picture")] = False


Parameters = ClassifyParameters | WindowParameters | SegmentParameters
