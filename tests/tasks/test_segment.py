import json
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidParameter
from service.media import Limits
from service.repository.card import ModelCard
from service.tasks.segment import PNG, SEGMENT, SegmentParameters
from service.tasks.task import JSON
from tests import graphs
from tests.samples import half_red_png

CARD: Any = ModelCard.model_validate_json(json.dumps(graphs.card_content("segment", b"")))


def test_an_overlay_is_for_png_answers_alone() -> None:
    SEGMENT.check_media_type(SegmentParameters(overlay=True), PNG)
    SEGMENT.check_media_type(SegmentParameters(), JSON)
    with pytest.raises(InvalidParameter, match="'overlay' is for Accept: image/png"):
        SEGMENT.check_media_type(SegmentParameters(overlay=True), JSON)


def test_a_mask_threshold_is_for_json_answers_alone() -> None:
    SEGMENT.check_media_type(SegmentParameters(mask_threshold=0.5), JSON)
    with pytest.raises(InvalidParameter, match="'mask_threshold' is for JSON"):
        SEGMENT.check_media_type(SegmentParameters(mask_threshold=0.5), PNG)


def test_an_overlay_needs_every_pixel_and_a_mask_does_not() -> None:
    assert SEGMENT.decode_spec(CARD.preprocess, SegmentParameters(overlay=True)).shorter_side is None
    assert SEGMENT.decode_spec(CARD.preprocess, SegmentParameters()).shorter_side == 32


def test_the_share_of_a_sample_that_is_filler_is_known() -> None:
    spec = SEGMENT.decode_spec(CARD.preprocess, SegmentParameters())
    blocks = SEGMENT.decode(half_red_png(40, 60), spec, Limits(), float("inf"))
    prepared = SEGMENT.prepare(blocks, CARD.preprocess)
    (sample,) = prepared.samples
    assert sample.shape == (32, 64, 3)
    assert prepared.context.size == (40, 60)
    filler = np.all(sample == 114, axis=2).mean()
    assert prepared.padding == pytest.approx(filler) and 0.2 < filler < 0.3  # 48 of 64 columns are picture
