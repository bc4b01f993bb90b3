"""The model card: everything the service knows of a model, and all that a reader should know before using it."""

import functools
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Task = Literal["classify", "segment", "audio", "video"]
Precision = Literal["float32", "float16"]
Size = tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]]
Colour = tuple[
    Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]
]
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(_Strict):
    """A graph input or output. ``shape`` holds numbers, and names for what varies: ``N`` (the batch), ``H``, ``W``."""

    name: str
    dtype: Literal["uint8", "int64", "float16", "float32"]
    layout: str
    shape: tuple[int | str, ...]


class ImagePreprocess(_Strict):
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


class AudioPreprocess(_Strict):
    """From a sound to windows (1, T), float32 in -1 to 1, one every ``hop_seconds``."""

    media: Literal["audio"] = "audio"
    sample_rate_hz: Annotated[int, Field(ge=1000, le=192_000)]
    window_seconds: Annotated[float, Field(gt=0, le=60)]
    hop_seconds: Annotated[float, Field(gt=0, le=60)]

    @property
    def window_samples(self) -> int:
        return round(self.window_seconds * self.sample_rate_hz)


class VideoPreprocess(_Strict):
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


Preprocess = Annotated[ImagePreprocess | AudioPreprocess | VideoPreprocess, Field(discriminator="media")]
MEDIA_OF_TASK: dict[str, str] = {"classify": "image", "segment": "image", "audio": "audio", "video": "video"}
OUTPUTS_OF_TASK: dict[str, tuple[str, ...]] = {
    "classify": ("probabilities",),
    "segment": ("mask", "confidence"),
    "audio": ("probabilities",),
    "video": ("probabilities",),
}


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
    task: Task
    default: bool
    architecture: str
    precision: Precision = "float32"  # of the arithmetic, not of inputs and outputs; older cards do not say
    description: str = ""
    categories: Annotated[tuple[str, ...], Field(min_length=1)]
    palette: tuple[Colour, ...] | None = None
    input: TensorSpec
    preprocess: Preprocess
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
        if self.preprocess.media != MEDIA_OF_TASK[self.task]:
            raise ValueError(
                f"task {self.task!r} takes {MEDIA_OF_TASK[self.task]}, preprocess says {self.preprocess.media}"
            )
        if tuple(output.name for output in self.outputs) != OUTPUTS_OF_TASK[self.task]:
            raise ValueError(
                f"task {self.task!r} needs the outputs {', '.join(OUTPUTS_OF_TASK[self.task])}, in this order"
            )
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("a category is named twice")
        if (self.palette is not None) != (self.task == "segment"):
            raise ValueError("a palette belongs to task 'segment', and to no other")
        if self.palette is not None and len(self.palette) != len(self.categories):
            raise ValueError("the palette needs one colour per category")
        if self.task == "segment" and len(self.categories) > 256:
            raise ValueError("a mask holds at most 256 categories")
        if "model.onnx" not in self.files:
            raise ValueError("files does not state model.onnx")
        return self

    def sample_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Every shape, without the batch axis, that a sample of this model can have."""
        spec = self.preprocess
        if isinstance(spec, AudioPreprocess):
            return ((1, spec.window_samples),)
        if isinstance(spec, VideoPreprocess):
            return ((spec.frames, *spec.size, 3),)
        return tuple((*size, 3) for size in spec.sizes)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of each output for one sample of ``shape``: of a segmenter (H, W), else (C,)."""
        return shape[:2] if self.task == "segment" else (len(self.categories),)
