"""Folders -> examples, through the service's own decoders and preprocessing, so that training sees what serving does.

    labelled files   <folder>/{train,val,test}/<category>/<file>
    segmentation     <folder>/{train,val,test}/images/<name>.jpg and masks/<name>.png, <folder>/categories.txt

Names that begin with a dot are ignored. ``models.masks`` reads the second layout.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.progress import progress
from service.errors import ServiceError
from service.media import NO_DEADLINE, Limits
from service.media.image import Region
from service.repository.card import Preprocess
from service.tasks.task import Prepared, Task

VOID = 255  # mask value of pixels that are neither learnt from nor evaluated
_LIMITS = Limits()
_NAMED = 3  # files that a message names
_T = TypeVar("_T")


class DatasetError(Exception):
    """A data folder whose layout or content cannot be used; the message names the file and what is expected."""


class Example(NamedTuple):
    """One file: its windows (a picture has one), how much each counts, and its truth.

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
    names = tuple(folder.name for folder in folders_of(split))
    if not names:
        raise DatasetError(f"{split} holds no category folders; expected {split}/<category>/<file>")
    return names


def load_labelled(split: Path, categories: Sequence[str], preprocess: Preprocess, task: Task) -> list[Example]:
    """Every file of ``<split>/<category>/``, decoded. A file that cannot be decoded is named in ``DatasetError``."""

    def load(item: tuple[Path, int]) -> Example:
        path, target = item
        prepared = prepared_file(path, preprocess, task)
        return Example(prepared.samples, sample_weights(prepared), target)

    return load_in_parallel(load, labelled_files(split, categories), split)


def labelled_files(split: Path, categories: Sequence[str]) -> list[tuple[Path, int]]:
    """Every file of ``<split>/<category>/`` and its category's index, in the order in which they are loaded.

    Raises ``DatasetError`` for unknown categories, for nested folders with files, and where there is no file.
    """
    if unknown := set(category_folders(split)) - set(categories):
        raise DatasetError(f"{split} holds {sorted(unknown)}, which are none of the categories {list(categories)}")
    files: list[tuple[Path, int]] = []
    for index, category in enumerate(categories):
        require_flat(split / category)
        files += [(path, index) for path in files_of(split / category)]
    if not files:
        raise DatasetError(f"{split} holds category folders without files; expected {split}/<category>/<file>")
    return files


def require_flat(folder: Path) -> None:
    """Raises ``DatasetError`` where a folder in ``folder`` holds files, which nothing would read."""
    for nested in folders_of(folder):
        if files := sorted(path for path in nested.rglob("*") if path.is_file() and not path.name.startswith(".")):
            raise DatasetError(
                f"{nested} is a nested folder, whose files would not be read: {some_names(files)}; "
                f"move them to {folder}, or remove the folder"
            )


def evaluated_splits(folder: Path) -> tuple[str, ...]:
    """The splits that a model is evaluated on: ``test`` and every ``test-…``, else ``val``, else ``train``."""
    tests = [path.name for path in folders_of(folder) if re.fullmatch("test(-.+)?", path.name)]
    return tuple(tests) or (("val",) if (folder / "val").is_dir() else ("train",))


def files_of(folder: Path) -> list[Path]:
    """The files in ``folder``, by name, without hidden ones such as ``.DS_Store``."""
    return [folder / entry.name for entry in _entries(folder) if entry.is_file()]


def folders_of(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _entries(folder) if entry.is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, which may be missing. They know their kind: a data set has tens of thousands."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def some_names(paths: Sequence[Path]) -> str:
    """The first names, for a message."""
    return ", ".join([path.name for path in paths[:_NAMED]] + ["…"] * (len(paths) > _NAMED))


def prepared_file(path: Path, preprocess: Preprocess, task: Task) -> Prepared:
    """Decodes and prepares a file as the service does. Raises ``DatasetError``, which names it."""
    spec = task.decode_spec(preprocess, task.parameters())
    try:
        return task.prepare(task.decode(path.read_bytes(), spec, _LIMITS, NO_DEADLINE), preprocess)
    except ServiceError as error:
        raise DatasetError(f"{path}: {error.detail}") from error


def sample_weights(prepared: Prepared) -> NDArray[np.float64]:
    return np.ones(len(prepared.samples)) if prepared.weights is None else prepared.weights


def load_in_parallel(load: Callable[[_T], Example], items: Sequence[_T], split: Path) -> list[Example]:
    def examples() -> Iterator[Example]:
        with ThreadPoolExecutor() as pool:  # the decoders release the GIL
            yield from progress(pool.map(load, items), f"read {split.name}", "file", len(items))

    return list(examples())
