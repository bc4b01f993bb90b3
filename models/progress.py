"""Progress bars on a terminal; none in a file or a pipe, where each redrawn bar would be a line."""

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

_T = TypeVar("_T")


def progress(items: Iterable[_T], label: str, unit: str, total: int | None = None, **options: Any) -> "tqdm[_T]":
    """``items`` with a bar on standard error, if that is a terminal."""
    return tqdm(items, desc=label, unit=unit, total=total, disable=None, **options)
