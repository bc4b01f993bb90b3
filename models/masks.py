"""Pictures with masks: their folders, and masks as the network sees them.

A mask's pixel is its category's line in ``categories.txt``, counted from 0; 255 is void.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.datasets import (
    VOID,
    DatasetError,
    Example,
    files_of,
    load_in_parallel,
    prepared_file,
    require_flat,
)
from service.repository.card import ImagePreprocess
from service.tasks.segment import SEGMENT

_LAYOUT = "images/<name>.jpg and masks/<name>.png"


def load_masked(
    split: Path, categories: Sequence[str], preprocess: ImagePreprocess, ignore_index: int = VOID
) -> list[Example]:
    """Every picture of ``<split>/images`` with its mask; ``ignore_index`` becomes void."""
    return load_in_parallel(
        lambda path: _masked(path, len(categories), preprocess, ignore_index), masked_files(split), split
    )


def masked_files(split: Path) -> list[Path]:
    """The pictures of ``split``. Raises ``DatasetError`` for nested folders with files, and where there is none."""
    for folder in ("images", "masks"):
        require_flat(split / folder)
    images = files_of(split / "images")
    if not images:
        raise DatasetError(f"{split}/images holds no pictures; expected {_LAYOUT}")
    return images


def masks_without_picture(split: Path) -> list[Path]:
    names = {path.stem for path in files_of(split / "images")}
    return [path for path in files_of(split / "masks") if path.stem not in names]


def read_categories(folder: Path) -> tuple[str, ...]:
    """The categories of the masks in ``folder``, the first being mask value 0. Raises ``DatasetError``.

    A blank line before the last category is refused: whether mask values count it cannot be known.
    """
    path = folder / "categories.txt"
    if not path.is_file():
        raise DatasetError(f"{path} is missing: one category a line, in the order of the mask values")
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines())
    if not 1 <= len(names) <= VOID:
        raise DatasetError(f"{path} names {len(names)} categories; a mask holds 1 to {VOID}")
    if "" in names:
        line = names.index("")
        raise DatasetError(
            f"{path}: line {line + 1} is blank; a mask value is a line's number from 0 up, so remove the line, "
            f"or name the category of mask value {line}"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(f"{path} names {twice} more than once")
    return names


def _masked(path: Path, categories: int, preprocess: ImagePreprocess, ignore_index: int) -> Example:
    mask_path = path.parent.parent / "masks" / f"{path.stem}.png"
    if not mask_path.is_file():
        raise DatasetError(f"{path} has no mask {mask_path}")
    prepared = prepared_file(path, preprocess, SEGMENT)
    place = prepared.context
    mask = _read_mask(mask_path)
    if mask.shape != place.size:
        raise DatasetError(f"{mask_path} is {_size(mask.shape)} pixels; its picture is {_size(place.size)}")
    mask[mask == ignore_index] = VOID
    if (wrong := np.setdiff1d(mask, [*range(categories), VOID])).size:
        void = " or ".join(str(value) for value in sorted({VOID, ignore_index}))
        raise DatasetError(
            f"{mask_path} holds the value {wrong[0]}; expected 0 to {categories - 1}, or {void} for void "
            "(--ignore-index names another value that means void)"
        )
    return Example(prepared.samples, np.ones(1), mask.astype(np.uint8), place.region)


def _read_mask(path: Path) -> NDArray[np.int64]:
    """(H, W) of the file's own values: those of a palette or grey picture, of 1, 8 or 16 bits."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
            mode = image.mode
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's for a damaged file
        raise DatasetError(f"{path} cannot be decoded; expected a PNG") from error
    if values.ndim != 2 or mode == "F":
        raise DatasetError(f"{path} is a picture of mode {mode}; expected one channel, each pixel a category's number")
    return values.astype(np.int64)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def placed_mask(example: Example, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask as the network sees it, (H, W) of ``size``: scaled and padded like the picture, void around it."""
    assert isinstance(example.target, np.ndarray) and example.region is not None
    top, left, height, width = example.region
    placed = np.full(size, VOID, np.uint8)
    scaled = Image.fromarray(example.target).resize((width, height), Image.Resampling.NEAREST)
    placed[top : top + height, left : left + width] = np.asarray(scaled)
    return placed


def mask_confusion(mask: NDArray[np.generic], example: Example, categories: int) -> NDArray[np.int64]:
    """(C, C) pixel counts, truth by row, without void, after scaling ``mask`` as the service scales answers."""
    target, region = example.target, example.region
    assert isinstance(target, np.ndarray) and region is not None
    cut = mask[region.top : region.top + region.height, region.left : region.left + region.width]
    height, width = target.shape
    scaled = np.asarray(Image.fromarray(cut).resize((width, height), Image.Resampling.NEAREST))
    known = target != VOID
    pairs = target[known].astype(np.int64) * categories + scaled[known]
    return np.bincount(pairs, minlength=categories**2).reshape(categories, categories)
