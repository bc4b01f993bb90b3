import base64
import io
import json

import av
import numpy as np
import pytest
from PIL import Image

from service.errors import InternalError
from service.media.samples import Region, Windows
from service.repository.card import ModelCard
from service.tasks.answers import overlay_png, palette_png, predictions, segments, timeline, whole
from tests import graphs

CARD = ModelCard.model_validate_json(json.dumps(graphs.card_content("segment", b"")))
WHOLE = Region(0, 0, 4, 6)


def _mask(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def _windows(weights: list[float]) -> Windows:
    count = len(weights)
    spans = [(float(at), float(at + 1)) for at in range(count)]
    return Windows([np.zeros((1, 4), np.float32)] * count, spans, np.array(weights))


def test_predictions_are_the_likeliest_first_and_ties_keep_the_cards_order() -> None:
    found = predictions(np.array([0.2, 0.5, 0.1, 0.2], np.float32), ("a", "b", "c", "d"), 3)
    assert [(entry["label"], round(entry["score"], 6)) for entry in found] == [("b", 0.5), ("a", 0.2), ("d", 0.2)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_an_error_of_ours(value: float) -> None:
    with pytest.raises(InternalError):
        predictions(np.array([value, 0.5], np.float32), ("a", "b"), 1)
    with pytest.raises(InternalError):
        segments(np.zeros((4, 6), np.uint8), np.full((4, 6), value, np.float32), WHOLE, (4, 6), CARD, 0)


def test_the_whole_is_the_windows_mean_by_their_weights() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(whole(rows, _windows([3, 1])), [0.75, 0.25])
    np.testing.assert_array_equal(whole(rows[:1], _windows([3])), [1, 0])
    answer = timeline(rows, _windows([3, 1]), ("a", "b"), 1)
    assert [(part.start_seconds, part.predictions[0]["label"]) for part in answer.windows] == [(0.0, "a"), (1.0, "b")]
    assert answer.predictions[0]["label"] == "a"


def test_a_segments_score_is_the_mean_probability_of_its_pixels() -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[:, :3] = 1
    confidence = np.where(mask == 1, 0.5, 0.9).astype(np.float32)
    confidence[0, 0] = 0.75
    found = segments(mask, confidence, WHOLE, (8, 12), CARD, 0.0)
    assert [entry.label for entry in found] == ["dark", "red"]
    assert found[0].score == pytest.approx(0.9, abs=1e-6)
    assert found[1].score == pytest.approx((11 * 0.5 + 0.75) / 12, abs=1e-6)
    expected = np.zeros((8, 12), np.uint8)
    expected[:, :6] = 255
    np.testing.assert_array_equal(_mask(found[1].mask), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (37, 53), (700, 900)])
def test_a_mask_is_a_grey_png_that_others_read(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(size[0])
    mask = rng.integers(0, 2, size, np.uint8)
    mask[: size[0] // 2] = 0
    for entry in segments(mask, np.ones(size, np.float32), Region(0, 0, *size), size, CARD, 0.0):
        encoded = base64.b64decode(entry.mask)
        with Image.open(io.BytesIO(encoded)) as image:
            image.verify()  # each chunk's checksum
        with Image.open(io.BytesIO(encoded)) as image:
            assert image.mode == "L"
        expected = (mask == CARD.categories.index(entry.label)) * np.uint8(255)
        np.testing.assert_array_equal(_mask(entry.mask), expected)
        with av.open(io.BytesIO(encoded), "r", format="png_pipe") as container:  # FFmpeg's own reader
            (frame,) = container.decode(video=0)
        np.testing.assert_array_equal(frame.to_ndarray(format="gray"), expected)


def test_the_padding_is_no_part_of_the_answer() -> None:
    mask = np.ones((10, 10), np.uint8)
    region = Region(3, 2, 4, 6)
    mask[3:7, 2:8] = 0
    found = segments(mask, np.full((10, 10), 0.8, np.float32), region, (4, 6), CARD, 0.0)
    assert [entry.label for entry in found] == ["dark"]
    assert (_mask(found[0].mask) == 255).all()


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
