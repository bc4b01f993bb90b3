"""Folders to samples: what is read, in which order, and what is said of a folder that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.datasets import (
    VOID,
    DatasetError,
    Example,
    category_folders,
    evaluated_splits,
)
from models.masks import load_masked, placed_mask, read_categories
from models.tasks import TASKS
from service.media.image import Region
from service.repository.card import AudioPreprocess, ImagePreprocess, Preprocess, VideoPreprocess
from tests.folders import clip_mp4, picture_png, sound_wav, write, write_clips, write_pictures, write_sounds

PICTURES = ImagePreprocess(resize="crop", sizes=((8, 8),), shorter_side=8)
SCENES = ImagePreprocess(resize="pad", sizes=((32, 32), (32, 48)))
SOUNDS = AudioPreprocess(sample_rate_hz=8000, window_seconds=0.1, hop_seconds=0.05)
CLIPS = VideoPreprocess(frame_rate_hz=8, frames=4, hop_seconds=0.25, shorter_side=8, size=(8, 8))
CATEGORIES = ("green", "red")


_TASK_OF = {"image": "classify", "audio": "audio", "video": "video"}


def load_labelled(split: Path, categories: tuple[str, ...], preprocess: Preprocess) -> list[Example]:
    """The examples of a split whose files are of one kind of media."""
    return TASKS[_TASK_OF[preprocess.media]].load(split.parent, split.name, categories, preprocess)


def flat(*colour: int, size: tuple[int, int] = (8, 8)) -> bytes:
    return picture_png(np.full((*size, 3), colour, np.uint8))


def write_scene(split: Path, mask: NDArray[np.generic], size: tuple[int, int] | None = None) -> None:
    write(split / "images" / "street.png", flat(10, 20, 30, size=size or mask.shape[:2]))
    write(split / "masks" / "street.png", picture_png(mask))


# Pictures, sounds and clips


def test_categories_are_the_folders_sorted_by_name(tmp_path: Path) -> None:
    for name in ("zebra", "Ape", "cat", ".hidden"):
        (tmp_path / name).mkdir()
    write(tmp_path / "notes.txt", b"not a category")
    assert category_folders(tmp_path) == ("Ape", "cat", "zebra")


def test_targets_follow_the_order_of_the_categories_that_are_given(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", flat(255, 0, 0))
    write(tmp_path / "b" / "1.png", flat(0, 0, 255))
    examples = load_labelled(tmp_path, ("b", "a"), PICTURES)
    assert [(example.target, tuple(example.samples[0][0, 0])) for example in examples] == [
        (0, (0, 0, 255)),
        (1, (255, 0, 0)),
    ]


def test_a_picture_is_one_sample_of_weight_one(tmp_path: Path) -> None:
    write_pictures(tmp_path, each=2)
    examples = load_labelled(tmp_path, CATEGORIES, PICTURES)
    assert [example.target for example in examples] == [0, 0, 1, 1]
    for example in examples:
        assert len(example.samples) == 1 and example.weights.tolist() == [1.0] and example.region is None
        assert example.samples[0].shape == (8, 8, 3) and example.samples[0].dtype == np.uint8


def test_a_sound_is_as_many_windows_as_it_is_long_weighted_by_their_energy(tmp_path: Path) -> None:
    loud_then_soft = np.concatenate([np.full(800, 0.5), np.full(800, 0.25)])
    write(tmp_path / "x" / "1.wav", sound_wav(loud_then_soft))
    (example,) = load_labelled(tmp_path, ("x",), SOUNDS)
    assert [sample.shape for sample in example.samples] == [(1, 800)] * 3  # at 0, 0.05 and 0.1 s
    assert all(sample.dtype == np.float32 for sample in example.samples)
    assert np.allclose(example.weights, [0.25, (0.25 + 0.0625) / 2, 0.0625], atol=1e-4)


def test_a_clip_is_windows_of_frames_that_count_the_same(tmp_path: Path) -> None:
    levels = np.arange(8) * 30
    frames = np.broadcast_to(levels[:, None, None, None], (8, 8, 8, 3)).astype(np.uint8)
    write(tmp_path / "x" / "1.mp4", clip_mp4(frames))
    (example,) = load_labelled(tmp_path, ("x",), CLIPS)
    assert [sample.shape for sample in example.samples] == [(4, 8, 8, 3)] * 3  # from frames 0, 2 and 4
    assert len(set(example.weights.tolist())) == 1
    second = np.asarray(example.samples[1], np.float64).mean(axis=(1, 2, 3))
    assert np.allclose(second, levels[2:6], atol=4)  # video is compressed


@pytest.mark.parametrize("seconds, windows", [(0.02, 1), (0.1, 1), (0.16, 3)])
def test_short_and_long_sounds_are_both_read(tmp_path: Path, seconds: float, windows: int) -> None:
    write(tmp_path / "x" / "1.wav", sound_wav(np.full(round(seconds * 8000), 0.5)))
    (example,) = load_labelled(tmp_path, ("x",), SOUNDS)
    assert len(example.samples) == len(example.weights) == windows


def test_files_are_read_in_the_order_of_their_names_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for level, name in ((30, "c.png"), (10, "a.png"), (20, "b.png")):
        write(tmp_path / "x" / name, flat(level, level, level))
    write(tmp_path / "x" / ".DS_Store", b"what a Mac leaves")
    (tmp_path / "x" / "folder").mkdir()
    examples = load_labelled(tmp_path, ("x",), PICTURES)
    assert [int(example.samples[0][0, 0, 0]) for example in examples] == [10, 20, 30]


def test_a_category_without_a_folder_in_this_split_is_no_error(tmp_path: Path) -> None:
    write(tmp_path / "red" / "1.png", flat(255, 0, 0))
    assert [example.target for example in load_labelled(tmp_path, CATEGORIES, PICTURES)] == [1]


@pytest.mark.parametrize("media, writer", [(PICTURES, write_pictures), (SOUNDS, write_sounds), (CLIPS, write_clips)])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path, media: object, writer: object) -> None:
    writer(tmp_path, each=1)  # type: ignore[operator]
    names = category_folders(tmp_path)
    broken = write(tmp_path / names[1] / "broken.bin", b"these are no media")
    with pytest.raises(DatasetError, match=str(broken)):
        load_labelled(tmp_path, names, media)  # type: ignore[arg-type]


def test_a_truncated_picture_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    content = picture_png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path = write(tmp_path / "x" / "half.png", content[: len(content) // 2])
    with pytest.raises(DatasetError, match=rf"{path}: .*truncated"):
        load_labelled(tmp_path, ("x",), PICTURES)


def test_a_missing_split_is_told_with_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"train is not a folder; expected .*train/<category>/<file>"):
        category_folders(tmp_path / "train")


def test_a_split_without_category_folders_is_told_with_what_belongs_there(tmp_path: Path) -> None:
    write(tmp_path / "1.png", flat(0, 0, 0))
    with pytest.raises(DatasetError, match=r"holds no category folders; expected .*<category>/<file>"):
        category_folders(tmp_path)


def test_category_folders_without_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "red" / "deeper").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"category folders without files; expected .*<category>/<file>"):
        load_labelled(tmp_path, CATEGORIES, PICTURES)


def test_files_in_nested_folders_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "red" / "1.png", flat(255, 0, 0))
    for number in range(5):
        write(tmp_path / "red" / "deeper" / "down" / f"{number}.png", flat(255, 0, 0))
    expected = rf"red/deeper is a nested folder, .*not be read: 0.png, 1.png, 2.png, …; move them to {tmp_path}/red"
    with pytest.raises(DatasetError, match=expected):
        load_labelled(tmp_path, CATEGORIES, PICTURES)


def test_hidden_files_in_nested_folders_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "red" / "1.png", flat(255, 0, 0))
    write(tmp_path / "red" / "deeper" / ".DS_Store", b"a Mac's")
    assert len(load_labelled(tmp_path, CATEGORIES, PICTURES)) == 1


def test_a_category_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    write(tmp_path / "blue" / "1.png", flat(0, 0, 255))
    with pytest.raises(DatasetError, match=r"\['blue'\], which are none of the categories \['green', 'red'\]"):
        load_labelled(tmp_path, CATEGORIES, PICTURES)


@pytest.mark.parametrize(
    "splits, judged",
    [
        (("train",), ("train",)),
        (("train", "val"), ("val",)),
        (("train", "val", "test"), ("test",)),
        (("train", "test-film", "test", "testing", ".test-hidden"), ("test", "test-film")),
    ],
)
def test_a_model_is_evaluated_on_the_test_splits_or_the_best_there_is(
    tmp_path: Path, splits: tuple[str, ...], judged: tuple[str, ...]
) -> None:
    for split in splits:
        (tmp_path / split).mkdir()
    assert evaluated_splits(tmp_path) == judged


# Scenes with masks


def test_categories_of_masks_are_the_lines_of_the_file_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "categories.txt", "\ufeffsky\n  road side \ncar\r\n\n".encode())
    assert read_categories(tmp_path) == ("sky", "road side", "car")


@pytest.mark.parametrize(
    "content, complaint",
    [
        (None, r"categories.txt is missing: one category a line, in the order of the mask values"),
        ("\n \n", r"names 0 categories"),
        ("\n".join(str(number) for number in range(256)), r"names 256 categories; a mask holds 1 to 255"),
        ("sky\ncar\nsky\n", r"names \['sky'\] more than once"),
        ("sky\n\ncar\n", r"line 2 is blank; .*remove the line, or name the category of mask value 1"),
        ("\nsky\ncar\n", r"line 1 is blank; .*mask value 0"),
    ],
    ids=["missing", "empty", "too many", "twice", "blank line", "blank first line"],
)
def test_a_bad_list_of_categories_is_refused(tmp_path: Path, content: str | None, complaint: str) -> None:
    if content is not None:
        write(tmp_path / "categories.txt", content.encode())
    with pytest.raises(DatasetError, match=complaint):
        read_categories(tmp_path)


def test_a_mask_is_read_at_the_pictures_own_size_with_void_kept(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:, 7:] = 1
    mask[0] = VOID
    write_scene(tmp_path, mask)
    (example,) = load_masked(tmp_path, CATEGORIES, SCENES)
    assert isinstance(example.target, np.ndarray) and example.target.dtype == np.uint8
    assert np.array_equal(example.target, mask)
    assert example.samples[0].shape == (32, 48, 3)  # of the two sizes the one of the same aspect
    assert example.region == (0, 0, 32, 48)


def test_the_ignore_index_becomes_void_and_255_stays_void(tmp_path: Path) -> None:
    write_scene(tmp_path, np.array([[0, 1], [2, VOID]], np.uint8))
    (example,) = load_masked(tmp_path, CATEGORIES, SCENES, ignore_index=2)
    assert np.array_equal(example.target, [[0, 1], [VOID, VOID]])


@pytest.mark.parametrize("mode", ["P", "1", "I;16"])
def test_masks_of_every_one_channel_kind_are_read_by_their_values(tmp_path: Path, mode: str) -> None:
    mask = np.zeros((6, 6), np.uint8)
    mask[:3] = 1
    write_scene(tmp_path, mask)
    image = Image.fromarray(mask.astype(np.uint16) if mode == "I;16" else mask * 255 if mode == "1" else mask)
    image = image if mode == "I;16" else image.convert(mode)
    if mode == "P":
        image.putpalette([9, 9, 9, 200, 0, 0])
    image.save(tmp_path / "masks" / "street.png")
    with Image.open(tmp_path / "masks" / "street.png") as saved:
        assert saved.mode == mode
    (example,) = load_masked(tmp_path, CATEGORIES, SCENES)
    assert np.array_equal(example.target, mask)


@pytest.mark.parametrize(
    "mask, complaint",
    [
        (np.full((8, 8), 2, np.uint8), r"holds the value 2; expected 0 to 1, or 255 for void \(--ignore-index"),
        (np.full((8, 8), 256, np.uint16), r"holds the value 256; expected 0 to 1"),
        (np.zeros((8, 9), np.uint8), r"is 9x8 pixels; its picture is 8x8"),
        (np.zeros((8, 8, 3), np.uint8), r"mode RGB; expected one channel"),
    ],
    ids=["out of range", "16 bits out of range", "wrong size", "colours"],
)
def test_a_bad_mask_is_named_with_what_was_expected(tmp_path: Path, mask: NDArray[np.generic], complaint: str) -> None:
    write_scene(tmp_path, mask, size=(8, 8))
    with pytest.raises(DatasetError, match=rf"masks/street.png.* {complaint}"):
        load_masked(tmp_path, CATEGORIES, SCENES)


def test_a_mask_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    write_scene(tmp_path, np.zeros((8, 8), np.uint8))
    path = write(tmp_path / "masks" / "street.png", b"no picture")
    with pytest.raises(DatasetError, match=rf"{path} cannot be decoded"):
        load_masked(tmp_path, CATEGORIES, SCENES)


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    write_scene(tmp_path, np.zeros((8, 8), np.uint8))
    path = write(tmp_path / "images" / "street.png", b"no picture")
    with pytest.raises(DatasetError, match=str(path)):
        load_masked(tmp_path, CATEGORIES, SCENES)


def test_a_picture_without_a_mask_is_named_with_the_mask_it_wants(tmp_path: Path) -> None:
    picture = write(tmp_path / "images" / "street.jpg", flat(0, 0, 0))
    with pytest.raises(DatasetError, match=rf"{picture} has no mask .*masks/street.png"):
        load_masked(tmp_path, CATEGORIES, SCENES)


def test_a_split_without_pictures_is_told_with_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"images holds no pictures; expected images/<name>.jpg and masks/<name>.png"
    ):
        load_masked(tmp_path, CATEGORIES, SCENES)


def test_pictures_and_masks_in_nested_folders_are_refused_by_name(tmp_path: Path) -> None:
    write_scene(tmp_path, np.zeros((8, 8), np.uint8))
    nested = write(tmp_path / "images" / "berlin" / "street.png", flat(0, 0, 0)).parent
    with pytest.raises(DatasetError, match=rf"{nested} is a nested folder, .*street.png; move them to .*images"):
        load_masked(tmp_path, CATEGORIES, SCENES)


# Masks as the network sees them


def test_a_placed_mask_lies_where_the_picture_lies_and_void_lies_around_it(tmp_path: Path) -> None:
    mask = np.zeros((40, 20), np.uint8)
    mask[20:] = 1
    write_scene(tmp_path, mask)
    (example,) = load_masked(tmp_path, CATEGORIES, SCENES)
    placed = placed_mask(example, (32, 32))
    # 40x20 into 32x32: a scale of 0.8, so 32x16 in the middle.
    expected = np.full((32, 32), VOID, np.uint8)
    expected[:16, 8:24], expected[16:, 8:24] = 0, 1
    assert np.array_equal(placed, expected)
    grey = np.all(example.samples[0] == 114, axis=2)
    assert np.array_equal(placed == VOID, grey)  # the picture's colour is another


def test_a_placed_mask_mixes_no_categories() -> None:
    mask = np.random.default_rng(0).choice([0, 2, VOID], (37, 53)).astype(np.uint8)
    example = Example([], np.ones(1), mask, Region(3, 2, 20, 28))
    placed = placed_mask(example, (26, 32))
    assert set(np.unique(placed)) == {0, 2, VOID}
    # Nearest neighbour by hand: each pixel takes the source pixel that its centre lies in.
    rows = ((np.arange(20) + 0.5) * 37 / 20).astype(int)
    columns = ((np.arange(28) + 0.5) * 53 / 28).astype(int)
    assert np.array_equal(placed[3:23, 2:30], mask[rows[:, None], columns])
