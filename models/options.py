"""Command-line options that several commands share, and their types: text -> value."""

import argparse
import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from service.repository.card import NAME_PATTERN, Precision

PRECISIONS: dict[str, Precision] = {"fp32": "float32", "fp16": "float16"}


def within(low: int, high: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def rate(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def add_data(parser: argparse.ArgumentParser) -> None:
    """``--data`` and ``--ignore-index``, which a run knows from its training."""
    parser.add_argument("--data", type=Path, help="the data set's folder (default: the one that a run was trained on)")
    parser.add_argument(
        "--ignore-index",
        type=within(0, 255),
        help="segment: the mask value that means void (default: a run's own, or 255)",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="fp16: weights and arithmetic in float16, for GPUs; on a CPU it is the slower one (default: %(default)s)",
    )


def model_name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form {NAME_PATTERN}")
    return text
