"""Folders -> samples, through the service's own decoder and preprocessing, so that training sees what serving will.

    pictures, sounds, clips   <folder>/{train,val,test}/<category>/<file>
    segmentation              <folder>/{train,val,test}/images/<name>.jpg and masks/<name>.png, <folder>/categories.txt

A mask's pixel is its category's place in ``categories.txt``; 255 is void. Names that begin with a dot are passed over.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from service.errors import ServiceError
from service.media import Limits
from service.media.audio import decode_audio
from service.media.image import decode_image
from service.media.samples import (
    Region,
    audio_windows,
    decoded_shorter_side,
    image_sample,
    video_windows,
)
from service.media.video import decode_video
from service.repository.card import AudioPreprocess, ImagePreprocess, Preprocess, VideoPreprocess

VOID = 255
_LIMITS = Limits()
_T = TypeVar("_T")


class DatasetError(Exception):
    """A folder that is not laid out as it has to be; the message names the place and what belongs there."""


class Example(NamedTuple):
    """One file: its windows (one for a picture), how much each counts, and what it is.

    ``target`` is the category's index, or for segmentation the mask (H, W) uint8 at the picture's own size.
    """

    samples: Sequence[NDArray[np.generic]]
    weights: NDArray[np.float64]
    target: int | NDArray[np.uint8]
    region: Region | None = None


def category_folders(split: Path) -> tuple[str, ...]:
    """The categories of ``<split>/<category>/``, sorted by name."""
    if not split.is_dir():
        raise DatasetError(f"{split} is not a folder; expected {split}/<category>/<file>")
    names = tuple(sorted(entry.name for entry in _visible(split) if entry.is_dir()))
    if not names:
        raise DatasetError(f"{split} holds no category folders; expected {split}/<category>/<file>")
    return names


def load_labelled(split: Path, categories: Sequence[str], preprocess: Preprocess) -> list[Example]:
    """Every file below ``<split>/<category>/``, decoded. A file that cannot be decoded is named in ``DatasetError``."""
    return _in_parallel(lambda item: _labelled(*item, preprocess), labelled_files(split, categories), split)


def labelled_files(split: Path, categories: Sequence[str]) -> list[tuple[Path, int]]:
    """Every file below ``<split>/<category>/`` and its category's index, in the order in which they are loaded."""
    if unknown := set(category_folders(split)) - set(categories):
        raise DatasetError(f"{split} holds {sorted(unknown)}, which are none of the categories {list(categories)}")
    files = [(path, index) for index, category in enumerate(categories) for path in _files(split / category)]
    if not files:
        raise DatasetError(f"{split} holds category folders without files; expected {split}/<category>/<file>")
    return files


def load_masked(
    split: Path, categories: Sequence[str], preprocess: ImagePreprocess, ignore_index: int = VOID
) -> list[Example]:
    """Every picture below ``<split>/images`` with its mask; ``ignore_index`` becomes void."""
    images = _files(split / "images")
    if not images:
        raise DatasetError(f"{split}/images holds no pictures; expected images/<name>.jpg and masks/<name>.png")
    return _in_parallel(lambda path: _masked(path, len(categories), preprocess, ignore_index), images, split)


def read_categories(folder: Path) -> tuple[str, ...]:
    """The categories of the masks below ``folder``, the first being mask value 0."""
    path = folder / "categories.txt"
    if not path.is_file():
        raise DatasetError(f"{path} is missing: one category a line, in the order of the mask values")
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    if not 1 <= len(names) <= VOID:
        raise DatasetError(f"{path} names {len(names)} categories; 1 to {VOID} can be told apart in a mask")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(f"{path} names {twice} more than once")
    return names


def judged_splits(folder: Path) -> tuple[str, ...]:
    """The splits by which a model is judged: ``test`` and every ``test-…``, or else the best that there is."""
    tests = [path.name for path in _visible(folder) if path.is_dir() and re.fullmatch("test(-.+)?", path.name)]
    return tuple(tests) or (("val",) if (folder / "val").is_dir() else ("train",))


def _visible(folder: Path) -> list[Path]:
    """What lies in ``folder``, by name, without what systems hide there (``.DS_Store``)."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _files(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_file()]


def _in_parallel(load: Callable[[_T], Example], items: Sequence[_T], split: Path) -> list[Example]:
    def progress() -> Iterator[Example]:
        with ThreadPoolExecutor() as pool:  # the decoders release the GIL
            yield from tqdm(pool.map(load, items), total=len(items), desc=f"read {split.name}", unit="file")

    return list(progress())


def _labelled(path: Path, target: int, preprocess: Preprocess) -> Example:
    data = path.read_bytes()
    try:
        if isinstance(preprocess, ImagePreprocess):
            picture = decode_image(data, _LIMITS, shorter_side=decoded_shorter_side(preprocess))
            return Example([image_sample(picture.image, preprocess).sample], np.ones(1), target)
        if isinstance(preprocess, AudioPreprocess):
            sound = decode_audio(data, _LIMITS, sample_rate_hz=preprocess.sample_rate_hz)
            windows = audio_windows(sound, preprocess)
        else:
            assert isinstance(preprocess, VideoPreprocess)
            frames = decode_video(
                data, _LIMITS, frame_rate_hz=preprocess.frame_rate_hz, shorter_side=preprocess.shorter_side
            )
            windows = video_windows(frames, preprocess)
    except ServiceError as error:
        raise DatasetError(f"{path}: {error.detail}") from error
    return Example(windows.samples, windows.weights, target)


def _masked(path: Path, categories: int, preprocess: ImagePreprocess, ignore_index: int) -> Example:
    mask_path = path.parent.parent / "masks" / f"{path.stem}.png"
    if not mask_path.is_file():
        raise DatasetError(f"{path} has no mask {mask_path}")
    try:
        picture = decode_image(path.read_bytes(), _LIMITS, shorter_side=decoded_shorter_side(preprocess))
    except ServiceError as error:
        raise DatasetError(f"{path}: {error.detail}") from error
    mask = _read_mask(mask_path)
    if mask.shape != picture.size:
        raise DatasetError(f"{mask_path} is {_size(mask.shape)} pixels; its picture is {_size(picture.size)}")
    mask[mask == ignore_index] = VOID
    if (wrong := np.setdiff1d(mask, [*range(categories), VOID])).size:
        void = " or ".join(str(value) for value in sorted({VOID, ignore_index}))
        raise DatasetError(
            f"{mask_path} holds the value {wrong[0]}; expected 0 to {categories - 1}, or {void} for void "
            "(--ignore-index names another value that means void)"
        )
    sample, region = image_sample(picture.image, preprocess)
    return Example([sample], np.ones(1), mask.astype(np.uint8), region)


def _read_mask(path: Path) -> NDArray[np.int64]:
    """(H, W) of the file's own values: those of a palette or grey picture, whether of 1, 8 or 16 bits."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
            mode = image.mode
    except (OSError, SyntaxError, ValueError) as error:  # as Pillow has it for a damaged file
        raise DatasetError(f"{path} cannot be decoded; expected a PNG") from error
    if values.ndim != 2 or mode == "F":
        raise DatasetError(f"{path} is a picture of mode {mode}; expected one channel, each pixel a category's number")
    return values.astype(np.int64)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def placed_mask(example: Example, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask as the network sees it: scaled and padded like the picture, void around it. (H, W) of ``size``."""
    assert isinstance(example.target, np.ndarray) and example.region is not None
    top, left, height, width = example.region
    placed = np.full(size, VOID, np.uint8)
    scaled = Image.fromarray(example.target).resize((width, height), Image.Resampling.NEAREST)
    placed[top : top + height, left : left + width] = np.asarray(scaled)
    return placed
