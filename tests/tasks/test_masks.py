import base64
import io
import json

import av
import numpy as np
import pytest
from PIL import Image

from service.errors import InternalError
from service.media.image import Region
from service.repository.card import ModelCard
from service.tasks.masks import Segment, overlay_png, palette_png
from service.tasks.masks import segments as all_segments
from tests import graphs

CARD = ModelCard.model_validate_json(json.dumps(graphs.card_content("segment", b"")))
WHOLE = Region(0, 0, 4, 6)


def segments(
    mask: np.ndarray,
    confidence: np.ndarray,
    region: Region = WHOLE,
    size: tuple[int, int] = (4, 6),
    *,
    threshold: float = 0.0,
    mask_threshold: float = 0.0,
) -> list[Segment]:
    return all_segments(mask, confidence, region, size, CARD, threshold, mask_threshold)


def decoded(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_an_internal_error(value: float) -> None:
    mask, confidence = np.zeros((4, 6), np.uint8), np.full((4, 6), value, np.float32)
    with pytest.raises(InternalError):
        segments(mask, confidence)
    with pytest.raises(InternalError):
        palette_png(mask, confidence, WHOLE, (4, 6), CARD)
    with pytest.raises(InternalError):
        overlay_png(mask, confidence, WHOLE, Image.new("RGB", (6, 4)), CARD)


def test_a_segments_score_is_the_mean_probability_of_its_pixels() -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[:, :3] = 1
    confidence = np.where(mask == 1, 0.5, 0.9).astype(np.float32)
    confidence[0, 0] = 0.75
    found = segments(mask, confidence, size=(8, 12))
    assert [entry.label for entry in found] == ["dark", "red"]
    assert found[0].score == pytest.approx(0.9, abs=1e-6)
    assert found[1].score == pytest.approx((11 * 0.5 + 0.75) / 12, abs=1e-6)
    expected = np.zeros((8, 12), np.uint8)
    expected[:, :6] = 255
    np.testing.assert_array_equal(decoded(found[1].mask), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (37, 53), (700, 900)])
def test_a_mask_is_a_grey_png_that_others_read(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(size[0])
    mask = rng.integers(0, 2, size, np.uint8)
    mask[: size[0] // 2] = 0
    for entry in segments(mask, np.ones(size, np.float32), Region(0, 0, *size), size):
        encoded = base64.b64decode(entry.mask)
        with Image.open(io.BytesIO(encoded)) as image:
            image.verify()  # each chunk's checksum
        with Image.open(io.BytesIO(encoded)) as image:
            assert image.mode == "L"
        expected = (mask == CARD.categories.index(entry.label)) * np.uint8(255)
        np.testing.assert_array_equal(decoded(entry.mask), expected)
        with av.open(io.BytesIO(encoded), "r", format="png_pipe") as container:  # FFmpeg's own reader
            (frame,) = container.decode(video=0)
        np.testing.assert_array_equal(frame.to_ndarray(format="gray"), expected)


def test_the_padding_is_no_part_of_the_answer() -> None:
    mask = np.ones((10, 10), np.uint8)
    region = Region(3, 2, 4, 6)
    mask[3:7, 2:8] = 0
    found = segments(mask, np.full((10, 10), 0.8, np.float32), region)
    assert [entry.label for entry in found] == ["dark"]
    assert (decoded(found[0].mask) == 255).all()


def test_the_palette_png_holds_indices_and_the_cards_colours() -> None:
    mask = np.eye(4, 6, dtype=np.uint8)
    image = Image.open(io.BytesIO(palette_png(mask, np.ones((4, 6), np.float32), WHOLE, (4, 6), CARD)))
    np.testing.assert_array_equal(np.asarray(image), mask)
    assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_the_overlay_is_half_picture_half_colour() -> None:
    pixels = np.full((4, 6, 3), 100, np.uint8)
    mask = np.ones((4, 6), np.uint8)
    image = Image.open(io.BytesIO(overlay_png(mask, np.ones((4, 6), np.float32), WHOLE, Image.fromarray(pixels), CARD)))
    assert image.getpixel((3, 2)) == (177, 50, 50)


def test_categories_scored_below_the_threshold_are_left_out() -> None:
    mask = np.repeat(np.array([[0, 1]], np.uint8), 3, axis=1).repeat(4, axis=0)
    confidence = np.where(mask == 1, 0.5, 0.9).astype(np.float32)
    assert [entry.label for entry in segments(mask, confidence, threshold=0.6)] == ["dark"]
    assert [entry.label for entry in segments(mask, confidence, threshold=0.95)] == []


def test_pixels_less_certain_than_the_mask_threshold_are_left_out_of_masks() -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[:, 3:] = 1
    confidence = np.full((4, 6), 0.9, np.float32)
    confidence[0] = 0.4  # the first row is uncertain, and the very first pixel most of all
    confidence[0, 0] = 0.1
    expected = mask.repeat(2, axis=0).repeat(2, axis=1)
    certain = (confidence >= 0.5).repeat(2, axis=0).repeat(2, axis=1)
    plain = segments(mask, confidence, size=(8, 12))
    strict = segments(mask, confidence, size=(8, 12), mask_threshold=0.5)
    assert [(entry.label, entry.score) for entry in strict] == [(entry.label, entry.score) for entry in plain]
    for entry, whole in zip(strict, plain, strict=True):
        category = CARD.categories.index(entry.label)
        np.testing.assert_array_equal(decoded(whole.mask), (expected == category) * np.uint8(255))
        np.testing.assert_array_equal(decoded(entry.mask), ((expected == category) & certain) * np.uint8(255))
    lower = segments(mask, confidence, size=(8, 12), mask_threshold=0.4)
    assert sum(int((decoded(entry.mask) == 255).sum()) for entry in lower) == 8 * 12 - 4, "0.4 itself is certain enough"
