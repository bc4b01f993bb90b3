"""``/segment``: what is in every pixel of a picture."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field

from service.errors import InvalidParameter
from service.media import image
from service.media.image import ImageSpec, Picture, Region
from service.repository.card import ImagePreprocess, ModelCard
from service.tasks.masks import Segment, overlay_png, palette_png, segments
from service.tasks.task import JSON, Outputs, Parameters, Prepared, Task

PNG = "image/png"


class SegmentParameters(Parameters):
    threshold: Annotated[float, Field(ge=0, le=1, description="leave out categories scored lower")] = 0.0
    overlay: Annotated[bool, Field(description="with Accept: image/png, blend the mask over the picture")] = False
    mask_threshold: Annotated[float, Field(ge=0, le=1, description="leave less certain pixels out of masks")] = 0.0
    subtask: Annotated[Literal["semantic"], Field(description="for the Hugging Face clients")] = "semantic"


class SegmentedPicture(NamedTuple):
    """The picture's region in the sample, its own (height, width), and the decoded picture for an overlay."""

    region: Region
    size: tuple[int, int]
    image: Image.Image


class SegmentTask(Task):
    name = "segment"
    summary = "What is in every pixel of a picture"
    accepts = "JPEG, PNG, WebP, GIF, BMP or TIFF"
    sample = Path("samples/tower.jpg")
    parameters = SegmentParameters
    answer = list[Segment]
    media_types = (JSON, PNG)
    preprocess = ImagePreprocess
    outputs = ("mask", "confidence")
    finishes_in_thread = True
    training = "models.tasks.segment:SEGMENT"
    decode, decode_cost = staticmethod(image.decode), staticmethod(image.decode_cost)

    def check_card(self, card: ModelCard) -> None:
        if card.palette is None or len(card.palette) != len(card.categories):
            raise ValueError("task 'segment' needs a palette with one colour per category")
        if len(card.categories) > 256:
            raise ValueError("a mask holds at most 256 categories")

    def check_media_type(self, parameters: SegmentParameters, media_type: str) -> None:
        if parameters.overlay and media_type != PNG:
            raise InvalidParameter("'overlay' is for Accept: image/png")
        if parameters.mask_threshold > 0 and media_type == PNG:
            raise InvalidParameter("'mask_threshold' is for JSON; a palette picture has no pixel without a category")

    def decode_spec(self, preprocess: ImagePreprocess, parameters: SegmentParameters) -> ImageSpec:
        """An overlay needs every pixel of the picture."""
        return ImageSpec(None if parameters.overlay else image.decoded_shorter_side(preprocess))

    def prepare(self, blocks: Iterable[Picture], preprocess: ImagePreprocess) -> Prepared:
        (picture,) = blocks
        sample, region = image.image_sample(picture.image, preprocess)
        padding = 1 - region.height * region.width / sample[..., 0].size
        return Prepared([sample], SegmentedPicture(region, picture.size, picture.image), padding=padding)

    def finish(
        self,
        outputs: Sequence[Outputs],
        prepared: Prepared,
        card: ModelCard,
        parameters: SegmentParameters,
        media_type: str,
    ) -> list[Segment] | bytes:
        picture: SegmentedPicture = prepared.context
        mask, confidence = np.asarray(outputs[0][0], np.uint8), np.asarray(outputs[0][1], np.float32)
        if media_type == JSON:
            return segments(
                mask, confidence, picture.region, picture.size, card, parameters.threshold, parameters.mask_threshold
            )
        if parameters.overlay:
            return overlay_png(mask, confidence, picture.region, picture.image, card)
        return palette_png(mask, confidence, picture.region, picture.size, card)


SEGMENT = SegmentTask()
