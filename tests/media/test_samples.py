import numpy as np
import pytest
from PIL import Image

from service.media.samples import ImageSample, audio_windows, decoded_shorter_side, image_sample, video_windows
from service.repository.card import AudioPreprocess, ImagePreprocess, VideoPreprocess
from tests import synthetic as media


def crop(shorter_side: int, height: int, width: int) -> ImagePreprocess:
    return ImagePreprocess(resize="crop", sizes=((height, width),), shorter_side=shorter_side)


def pad(*sizes: tuple[int, int]) -> ImagePreprocess:
    return ImagePreprocess(resize="pad", sizes=sizes)


def shown(pixels: media.Pixels, spec: ImagePreprocess) -> ImageSample:
    return image_sample(Image.fromarray(pixels), spec)


def places(height: int, width: int) -> media.Pixels:
    """Red says how far right a pixel is, green how far down."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 0] = np.arange(width)
    pixels[:, :, 1] = np.arange(height)[:, None]
    return pixels


# Pictures, cropped


def test_crop_of_a_picture_of_the_right_size_is_its_middle() -> None:
    pixels = media.smooth(256, 340)
    sample, region = shown(pixels, crop(256, 224, 224))
    assert np.array_equal(sample, pixels[16:240, 58:282])  # (256 - 224) / 2 and (340 - 224) / 2
    assert region == (0, 0, 224, 224)


def test_crop_of_a_picture_of_the_very_size_is_the_picture() -> None:
    pixels = media.smooth(64, 64)
    assert np.array_equal(shown(pixels, crop(64, 64, 64)).sample, pixels)


@pytest.mark.parametrize(
    "height,width,scale,top,left",
    [(128, 250, 2, 8, 69), (250, 128, 2, 69, 8), (192, 192, 3, 12, 12), (64, 100, 1, 4, 22), (32, 100, 0.5, 2, 36)],
)
def test_crop_takes_its_pixels_from_where_arithmetic_says(
    height: int, width: int, scale: float, top: float, left: float
) -> None:
    """Shorter side 64, size 56: the box begins at (side - 56 * scale) / 2, and its pixels are ``scale`` apart."""
    sample = shown(places(height, width), crop(64, 56, 56)).sample.astype(float)
    centres = (np.arange(56) + 0.5) * scale - 0.5
    inner = slice(2, -2)  # at the margins, the filter meets the end of the picture
    assert np.abs(sample[inner, inner, 0] - (left + centres)[None, inner]).max() <= 0.51
    assert np.abs(sample[inner, inner, 1] - (top + centres)[inner, None]).max() <= 0.51


def test_crop_of_a_size_that_is_not_square() -> None:
    sample, region = shown(places(128, 200), crop(64, 32, 48))
    assert sample.shape == (32, 48, 3)
    assert region == (0, 0, 32, 48)
    assert abs(int(sample[0, 0, 0]) - 52.5) <= 1  # (200 - 96) / 2, and half a step of two
    assert abs(int(sample[0, 0, 1]) - 32.5) <= 1  # (128 - 64) / 2


def test_crop_averages_what_it_makes_smaller() -> None:
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, None].repeat(3, axis=2)
    sample = shown(board, crop(64, 64, 64)).sample
    assert np.abs(sample.astype(int) - 127.5).max() < 3


@pytest.mark.parametrize("size", [28, 100, 112, 176, 224, 299])
def test_crop_takes_pictures_of_every_size(size: int) -> None:
    """The box is as large as the picture: a rounding error of 29 / 28 * 28 must not put it outside."""
    for side in [*range(1, 120), *range(size - 3, size + 40)]:
        for shape in ((side, side, 3), (side, side + 7, 3), (side + 7, side, 3)):
            assert shown(np.full(shape, 9, np.uint8), crop(size, size, size)).sample.max() == 9


@pytest.mark.parametrize("height,width", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("spec", [crop(64, 56, 56), pad((64, 64))], ids=["crop", "pad"])
def test_the_thinnest_pictures_become_samples(spec: ImagePreprocess, height: int, width: int) -> None:
    sample, region = shown(np.full((height, width, 3), 200, np.uint8), spec)
    assert sample.shape == (*spec.sizes[0], 3)
    assert sample.dtype == np.uint8
    inside = sample[region.top : region.top + region.height, region.left : region.left + region.width]
    assert inside.size
    assert (inside == 200).all()


# Pictures, padded


@pytest.mark.parametrize(
    "height,width,region",
    [
        (128, 128, (0, 0, 64, 64)),
        (64, 64, (0, 0, 64, 64)),
        (100, 200, (16, 0, 32, 64)),
        (200, 100, (0, 16, 64, 32)),
        (16, 32, (16, 0, 32, 64)),  # a small picture is enlarged
        (90, 160, (14, 0, 36, 64)),
        (100, 300, (21, 0, 21, 64)),  # 64 / 3 rounds to 21; 43 rows are left, 21 of them above
        (1, 1000, (31, 0, 1, 64)),
    ],
)
def test_pad_scales_the_whole_picture_and_centres_it_on_grey(
    height: int, width: int, region: tuple[int, int, int, int]
) -> None:
    sample, found = shown(np.full((height, width, 3), 255, np.uint8), pad((64, 64)))
    assert found == region
    top, left, inner_height, inner_width = region
    expected = np.full((64, 64, 3), 114, np.uint8)
    expected[top : top + inner_height, left : left + inner_width] = 255
    assert np.array_equal(sample, expected)


def test_the_region_of_a_padded_sample_holds_the_whole_picture() -> None:
    sample, region = shown(media.quarters(120, 200), pad((96, 96)))
    inside = sample[region.top : region.top + region.height, region.left : region.left + region.width]
    assert media.corners(inside) == media.CORNERS


@pytest.mark.parametrize(
    "height,width,chosen",
    [
        (300, 300, (256, 256)),
        (300, 400, (192, 320)),  # 1.33: it fills 0.75 of the square and 0.8 of the wide size
        (300, 380, (256, 256)),  # 1.27: 0.79 and 0.76
        (400, 300, (320, 192)),
        (100, 1000, (192, 320)),
        (1000, 100, (320, 192)),
        (192, 320, (192, 320)),
        (48, 80, (192, 320)),
    ],
)
def test_the_size_that_the_picture_fills_best_is_chosen(height: int, width: int, chosen: tuple[int, int]) -> None:
    spec = pad((256, 256), (192, 320), (320, 192))
    assert shown(np.zeros((height, width, 3), np.uint8), spec).sample.shape[:2] == chosen


def test_pictures_are_decoded_no_smaller_than_samples_need() -> None:
    assert decoded_shorter_side(crop(256, 224, 224)) == 256
    assert decoded_shorter_side(pad((256, 256), (192, 320))) == 256
    assert decoded_shorter_side(pad((192, 320))) == 192


# Sounds


def spoken(window_samples: int, hop_samples: float) -> AudioPreprocess:
    return AudioPreprocess(sample_rate_hz=1000, window_seconds=window_samples / 1000, hop_seconds=hop_samples / 1000)


def counted(samples: int) -> media.Sound:
    return np.arange(1, samples + 1, dtype=np.float32)


@pytest.mark.parametrize(
    "samples,starts",
    [
        (100, [0]),
        (101, [0, 1]),  # the last window ends where the sound ends
        (149, [0, 49]),
        (150, [0, 50]),
        (151, [0, 50, 51]),
        (230, [0, 50, 100, 130]),
        (300, [0, 50, 100, 150, 200]),
    ],
)
def test_windows_follow_each_other_by_the_hop_and_the_last_ends_with_the_sound(samples: int, starts: list[int]) -> None:
    windows = audio_windows(counted(samples), spoken(100, 50))
    assert [int(sample[0, 0]) - 1 for sample in windows.samples] == starts
    assert all(sample.shape == (1, 100) for sample in windows.samples)
    assert np.array(windows.spans) == pytest.approx(np.array([(start / 1000, start / 1000 + 0.1) for start in starts]))
    assert len(windows.weights) == len(starts)


def test_a_hop_longer_than_the_window_leaves_gaps_but_not_the_end() -> None:
    windows = audio_windows(counted(350), spoken(100, 200))
    assert [int(sample[0, 0]) - 1 for sample in windows.samples] == [0, 200, 250]


def test_a_hop_of_less_than_a_sample_is_one_sample() -> None:
    assert len(audio_windows(counted(103), spoken(100, 0.1)).samples) == 4


@pytest.mark.parametrize("samples,before", [(1, 49), (40, 30), (41, 29), (99, 0)])
def test_a_short_sound_is_centred_in_silence(samples: int, before: int) -> None:
    (window,) = audio_windows(counted(samples), spoken(100, 50)).samples
    expected = np.zeros((1, 100), np.float32)
    expected[0, before : before + samples] = counted(samples)
    assert np.array_equal(window, expected)
    assert window.dtype == np.float32


def test_windows_weigh_by_their_energy() -> None:
    sound = np.concatenate([np.full(100, level, np.float32) for level in (0.0, 0.5, -1.0)])
    windows = audio_windows(sound, spoken(100, 100))
    assert windows.weights == pytest.approx([0, 0.25, 1])


def test_windows_of_silence_weigh_the_same() -> None:
    assert audio_windows(np.zeros(250, np.float32), spoken(100, 100)).weights.tolist() == [1, 1, 1]


# Clips


def filmed(
    frames: int, hop_seconds: float, shorter_side: int = 16, size: tuple[int, int] = (12, 12)
) -> VideoPreprocess:
    return VideoPreprocess(
        frame_rate_hz=8, frames=frames, hop_seconds=hop_seconds, shorter_side=shorter_side, size=size
    )


def ticking(count: int, height: int = 16, width: int = 24) -> media.Pixels:
    """Frame ``k`` has the level ``k``."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, height, width, 3)).copy()


@pytest.mark.parametrize("count,starts", [(8, [0]), (9, [0, 1]), (12, [0, 4]), (15, [0, 4, 7]), (16, [0, 4, 8])])
def test_clips_are_cut_into_windows_and_the_last_ends_with_the_clip(count: int, starts: list[int]) -> None:
    windows = video_windows(ticking(count), filmed(8, 0.5))
    assert [sample[:, 0, 0, 0].tolist() for sample in windows.samples] == [[*range(s, s + 8)] for s in starts]
    assert windows.spans == [(start / 8, start / 8 + 1) for start in starts]
    assert windows.weights.tolist() == [1] * len(starts)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_short_clip_holds_its_last_frame(count: int) -> None:
    (window,) = video_windows(ticking(count), filmed(8, 0.5)).samples
    assert window[:, 0, 0, 0].tolist() == [*range(count), *[count - 1] * (8 - count)]


def test_windows_show_the_middle_of_the_picture() -> None:
    frames = places(16, 24)[None].repeat(8, axis=0)
    (window,) = video_windows(frames, filmed(8, 0.5, size=(12, 10))).samples
    assert window.shape == (8, 12, 10, 3)
    assert window[0, 0, :, 0].tolist() == [*range(7, 17)]  # (24 - 10) / 2
    assert window[0, :, 0, 1].tolist() == [*range(2, 14)]  # (16 - 12) / 2


def test_a_hop_of_less_than_a_frame_is_one_frame() -> None:
    assert len(video_windows(ticking(11), filmed(8, 0.01)).samples) == 4


def test_spans_end_where_the_recording_ends() -> None:
    sound = audio_windows(
        np.zeros(400, np.float32), AudioPreprocess(sample_rate_hz=1000, window_seconds=1, hop_seconds=1)
    )
    assert sound.spans == [(0.0, 0.4)]
    spec = VideoPreprocess(frame_rate_hz=8, frames=16, hop_seconds=1, shorter_side=8, size=(8, 8))
    assert video_windows(np.zeros((5, 8, 8, 3), np.uint8), spec).spans == [(0.0, 0.625)]
