"""The model card: all that the service knows of a model, and that a reader should know before using it."""

import functools
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializeAsAny,
    ValidationInfo,
    model_validator,
)

Precision = Literal["float32", "float16"]
Size = tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]]
Colour = tuple[
    Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]
]
GRAPH = "model.onnx"  # the file that every model's folder holds beside its card
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(_Strict):
    """A graph input or output. ``shape`` holds numbers, and names for what varies: ``N`` (the batch), ``H``, ``W``."""

    name: str
    dtype: Literal["uint8", "int64", "float16", "float32"]
    layout: str
    shape: tuple[int | str, ...]


class Preprocess(_Strict):
    """How media become samples: the section of a card that its task reads."""

    media: str

    @abstractmethod
    def sample_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Every shape, without the batch axis, that a sample can have."""


class ImagePreprocess(Preprocess):
    """From a picture (H, W, 3) to one sample of one of ``sizes``, (height, width), uint8.

    ``crop`` scales the shorter side to ``shorter_side`` and takes the centre. ``pad`` scales the whole picture into the
    size whose aspect suits it best, and fills the rest with grey.
    """

    media: Literal["image"] = "image"
    resize: Literal["crop", "pad"]
    sizes: Annotated[tuple[Size, ...], Field(min_length=1)]
    shorter_side: int | None = None

    @model_validator(mode="after")
    def _crop_is_complete(self) -> Self:
        if self.resize == "crop" and (len(self.sizes) != 1 or self.shorter_side is None):
            raise ValueError("resize 'crop' needs one size and a shorter_side")
        if self.resize == "crop" and self.shorter_side is not None and self.shorter_side < max(self.sizes[0]):
            raise ValueError("shorter_side is less than the size that is cut from it")
        return self

    def sample_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple((*size, 3) for size in self.sizes)


class AudioPreprocess(Preprocess):
    """From a sound to windows (1, T), float32 in -1 to 1, one every ``hop_seconds``."""

    media: Literal["audio"] = "audio"
    sample_rate_hz: Annotated[int, Field(ge=1000, le=192_000)]
    window_seconds: Annotated[float, Field(gt=0, le=60)]
    hop_seconds: Annotated[float, Field(gt=0, le=60)]

    @property
    def window_samples(self) -> int:
        return round(self.window_seconds * self.sample_rate_hz)

    def sample_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((1, self.window_samples),)


class VideoPreprocess(Preprocess):
    """From a clip to windows (T, H, W, 3), uint8, of ``frames`` frames, one every ``hop_seconds``."""

    media: Literal["video"] = "video"
    frame_rate_hz: Annotated[float, Field(gt=0, le=60)]
    frames: Annotated[int, Field(ge=1, le=256)]
    hop_seconds: Annotated[float, Field(gt=0, le=60)]
    shorter_side: Annotated[int, Field(ge=1, le=1024)]
    size: Size

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.shorter_side < max(self.size):
            raise ValueError("shorter_side is less than the size that is cut from it")
        return self

    def sample_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.frames, *self.size, 3),)


class CardRules(Protocol):
    """Rules of a task for its models' cards."""

    @property
    def name(self) -> str: ...

    @property
    def preprocess(self) -> type[Preprocess]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...

    def check_card(self, card: "ModelCard") -> None: ...


_rules: dict[str, CardRules] = {}


def register(rules: CardRules) -> None:
    """Lets cards state this task; ``service.tasks`` calls it for each."""
    _rules[rules.name] = rules


def _known_task(name: str) -> str:
    if name not in _rules:
        raise ValueError(f"no task is called {name!r}; there are {', '.join(_rules)}")
    return name


def _preprocess_of_task(value: Any, info: ValidationInfo) -> Any:
    rules = _rules.get(info.data.get("task", ""))
    if rules is None or isinstance(value, Preprocess):
        return value
    return rules.preprocess.model_validate(value)


class _AnyPreprocess:
    """JSON schema of the preprocessing sections of all registered tasks."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        kinds = dict.fromkeys(rules.preprocess for rules in _rules.values())
        return {"anyOf": [handler(kind.__pydantic_core_schema__) for kind in kinds]}


class Dataset(_Strict):
    name: str
    source: str
    licence: str
    splits: dict[str, int]


class Metric(_Strict):
    name: str
    value: float
    samples: int
    split: str


class Training(_Strict):
    recipe: str
    epochs: int
    seed: int
    hardware: str
    hours: float


class Parity(_Strict):
    """The largest absolute difference between PyTorch's and ONNX Runtime's outputs over ``samples`` real samples."""

    largest_difference: float
    samples: int


class Calibration(_Strict):
    """The temperature that divides the logits, found on ``samples`` validation files (Guo et al. 2017), 1.0 where there
    were too few; the expected calibration error on ``split`` without and with it."""

    temperature: Annotated[float, Field(gt=0)]
    samples: int
    split: str
    error_before: float
    error_after: float


class Layer(_Strict):
    """One layer, and what it makes of one sample: ``output`` is a shape without the batch axis.

    Per axis: ``kernel``, ``stride``, ``padding`` and ``dilation`` in steps of the layer's own input, empty where each
    position is worked on alone; ``receptive_field`` of one position of its output, and the ``jump`` to the next, in
    steps of the network's input, empty where feature maps have ended. ``aside`` is what runs on a shortcut.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    receptive_field: tuple[int, ...] = ()
    jump: tuple[int, ...] = ()
    aside: bool = False


class Complexity(_Strict):
    """Parameters, multiply-accumulates of one view of a sample, and the receptive field in input steps per axis; layer
    by layer in the order in which they run, on cards that list them. ``views`` is how many of a sample the graph runs
    the network on, of which it answers with the mean."""

    parameters: int
    macs: int
    receptive_field: tuple[int, ...]
    views: Annotated[int, Field(ge=1)] = 1
    layers: tuple[Layer, ...] = ()


class File(_Strict):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: int


class ModelCard(_Strict):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Annotated[int, Field(ge=1)]
    task: Annotated[str, AfterValidator(_known_task)]
    default: bool
    architecture: str
    precision: Precision = "float32"  # of the arithmetic, not of inputs and outputs; older cards do not say
    description: str = ""
    categories: Annotated[tuple[str, ...], Field(min_length=1)]
    palette: tuple[Colour, ...] | None = None
    input: TensorSpec
    preprocess: Annotated[SerializeAsAny[Preprocess], BeforeValidator(_preprocess_of_task), _AnyPreprocess]
    outputs: tuple[TensorSpec, ...]
    dataset: Dataset
    metrics: tuple[Metric, ...]
    training: Training
    parity: Parity
    calibration: Calibration | None = None
    complexity: Complexity
    files: dict[str, File]

    @functools.cached_property
    def key(self) -> str:
        return f"{self.name}:{self.version}"

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        rules = _rules[self.task]
        if not isinstance(self.preprocess, rules.preprocess):
            raise ValueError(f"task {self.task!r} takes no {self.preprocess.media}")
        if tuple(output.name for output in self.outputs) != rules.outputs:
            raise ValueError(f"task {self.task!r} needs the outputs {', '.join(rules.outputs)}, in this order")
        if any(len(shape) + 1 != len(self.input.shape) for shape in self.sample_shapes()):
            raise ValueError(f"the input's shape {self.input.shape} does not fit samples {self.sample_shapes()[0]}")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("a category is named twice")
        if GRAPH not in self.files:
            raise ValueError(f"files does not state {GRAPH}")
        rules.check_card(self)
        return self

    def sample_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Every shape, without the batch axis, that a sample of this model can have."""
        return self.preprocess.sample_shapes()

    def output_shapes(self, sample: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Shape of each output, without the batch axis, for a sample of shape ``sample``.

        An axis with a name has the size of the input's axis of that name, or one position for each category.
        """
        sizes: Mapping[int | str, int] = dict(zip(self.input.shape[1:], sample, strict=True))
        count = len(self.categories)
        return [
            tuple(axis if isinstance(axis, int) else sizes.get(axis, count) for axis in spec.shape[1:])
            for spec in self.outputs
        ]
