"""Figures of ``models.report``: curves, confusion matrix, reliability diagram, samples.

They use matplotlib's objects, without pyplot's global state. Lengths are inches from a page's top left. Correct answers
are blue and wrong ones vermilion, which colour-blind readers can distinguish (Okabe & Ito 2008).
"""

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from service.repository.card import Colour

Picture = NDArray[np.uint8]  # (H, W, 3)

BLUE, SKY, VERMILION, GREEN, ORANGE = "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#E69F00"
INK, GREY, PALE = "#222222", "#6b6b6b", "#dddddd"
RIGHT, WRONG = BLUE, VERMILION
_DOTS_PER_INCH = 150
_MARGIN, _HEADING = 0.35, 1.02  # around a page; from its top to the figure
_NUMBERED = 20  # categories: up to so many, the cells of a confusion matrix show numbers
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a category may be called $5
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}

# Panels of the curves: title, True for shares, and lines: name in the history, label, colour, dash.
_PANELS: tuple[tuple[str, bool, tuple[tuple[str, str, str, str], ...]], ...] = (
    (
        "loss",
        False,
        (
            ("training loss", "training, as optimised", ORANGE, "--"),
            ("negative log likelihood", "{evaluated_on}, negative log likelihood", BLUE, "-"),
        ),
    ),
    (
        "share correct",
        True,
        (
            ("training accuracy", "training, augmented", ORANGE, "--"),
            ("accuracy", "{evaluated_on}, accuracy", BLUE, "-"),
            ("pixel accuracy", "{evaluated_on}, pixels", GREEN, "-."),
            ("mIoU", "{evaluated_on}, mean IoU", BLUE, "-"),
        ),
    ),
    (
        "calibration error",
        True,
        (("expected calibration error", "{evaluated_on}, expected calibration error", BLUE, "-"),),
    ),
)


class Heading(NamedTuple):
    title: str
    note: str


class Bin(NamedTuple):
    """Answers whose confidence lies between ``lower`` and ``upper``; the means are NaN where there is none."""

    lower: float
    upper: float
    answers: int
    confidence: float
    right: float


class Tile(NamedTuple):
    picture: Picture
    answer: str
    score: float
    truth: str


class Group(NamedTuple):
    """Samples with correct answers, or with wrong ones; their pictures have one size."""

    title: str
    right: bool
    tiles: Sequence[Tile]


class Scene(NamedTuple):
    """A picture (H, W, 3) uint8, and its masks (H, W) uint8; pixels of true value ``void`` are not compared."""

    picture: Picture
    truth: NDArray[np.uint8]
    answer: NDArray[np.uint8]
    share_correct: float


def draw(path: Path, figure: Any, *arguments: Any) -> None:
    """Writes ``figure(*arguments)``, one of this module's figures, as a PNG."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a category's name; a box is drawn
        drawn: Figure = figure(*arguments)
        drawn.savefig(path, dpi=_DOTS_PER_INCH)


def curves(heading: Heading, history: Sequence[Mapping[str, float]], first_epoch: int, evaluated_on: str) -> Figure:
    """Loss, share correct and calibration error of each epoch, as far as ``history`` has them. ``evaluated_on`` names
    the files of the metrics."""
    known = {name for epoch in history for name in epoch}
    panels = [
        (title, share, [line for line in lines if line[0] in known])
        for title, share, lines in _PANELS
        if any(line[0] in known for line in lines)
    ]
    width, height, gap = 3.9, 3.0, 0.75
    figure = _page(_MARGIN + len(panels) * (width + gap), _HEADING + 0.3 + height + 1.35, heading)
    epochs = range(first_epoch, first_epoch + len(history))
    for number, (title, share, lines) in enumerate(panels):
        axes = _place(figure, _MARGIN + 0.45 + number * (width + gap), _HEADING + 0.3, width, height)
        for name, label, colour, dash in lines:
            values = [epoch.get(name, math.nan) for epoch in history]
            last = max(index for index, value in enumerate(values) if not math.isnan(value))
            end = f"{values[last]:.1%}" if share else f"{values[last]:.3f}"
            axes.plot(
                epochs,
                values,
                dash,
                color=colour,
                linewidth=1.8,
                label=f"{label.format(evaluated_on=evaluated_on)}: {end}",
            )
            axes.plot(epochs[last], values[last], "o", color=colour, markersize=5)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color=PALE, linewidth=0.6)
        axes.margins(x=0.03)
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.17), fontsize=8.5, handlelength=2.6)
    return figure


def confusion_matrix(heading: Heading, counts: NDArray[np.int64], categories: Sequence[str]) -> Figure:
    """``counts`` (C, C), truth by row, each row shown as shares of its sum; an empty row is grey."""
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    number = len(categories)
    cell = float(np.clip(9 / number, 0.14, max(0.55, 2.6 / number)))
    side = min(number * cell, 24.0)
    points = float(np.clip(side / number * 72 * 0.62, 5, 9))
    step = math.ceil(points / 72 / (side / number))  # labels every second or third category where space is short
    names = [_shortened(name, 26) for name in categories]
    longest = max(map(len, names)) * points * 0.62 / 72
    left, slant = _MARGIN + 0.35 + longest, 45 if number <= _NUMBERED else 90
    bottom = 0.45 + longest * math.sin(math.radians(slant))
    page_width = max(left + side + 1.15, 6.4)
    figure = _page(page_width, _HEADING + 0.1 + side + bottom + _MARGIN, heading)
    axes = _place(figure, left, _HEADING + 0.1, side, side)
    colours = mpl.colormaps["Blues"].with_extremes(bad=PALE)
    # The square root makes one error in a hundred visible beside a full diagonal.
    image = axes.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 1), interpolation="nearest", aspect="auto")
    ticks = range(0, number, step)
    axes.set_xticks(ticks, [names[index] for index in ticks], fontsize=points, rotation=slant, rotation_mode="anchor")
    for label in axes.get_xticklabels():
        label.set(ha="right", va="center" if slant == 90 else "top")
    axes.set_yticks(ticks, [names[index] for index in ticks], fontsize=points)
    axes.tick_params(length=0)
    axes.set_xlabel("answered", fontsize=10, fontweight="bold")
    axes.set_ylabel("true" if total.all() else "true (grey: none)", fontsize=10, fontweight="bold")
    axes.spines[:].set_visible(False)
    if number <= _NUMBERED:
        axes.set_xticks(np.arange(number + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(number + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.2)
        axes.tick_params(which="minor", length=0)
        _write_shares(axes, shares, 9 if cell > 0.5 else 7.5)
    bar = figure.colorbar(image, cax=_place(figure, left + side + 0.18, _HEADING + 0.1, 0.14, min(side, 4.0)))
    bar.set_ticks(
        [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1], labels=["0", *(f"{n}%" for n in (1, 5, 10, 25, 50, 75, 100))]
    )
    bar.ax.tick_params(labelsize=8, length=2)
    bar.ax.set_ylabel("of the true category", fontsize=8.5)
    bar.outline.set_visible(False)
    return figure


def _write_shares(axes: Axes, shares: NDArray[np.float64], points: float) -> None:
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.005):
        share = shares[row, column]
        colour = "white" if share > 0.35 else INK
        weight = "bold" if row == column else "normal"
        axes.text(
            column,
            row,
            f"{math.floor(share * 100 + 0.5)}",
            ha="center",
            va="center",
            size=points,
            color=colour,
            weight=weight,
        )


def reliability(heading: Heading, bins: Sequence[Bin], answers: str) -> Figure:
    """Reliability diagram (Guo et al. 2017, figure 1): the share of correct ``answers`` by confidence; below, the
    histogram of confidence."""
    side, low, top = 4.2, 1.0, _HEADING + 0.28
    figure = _page(_MARGIN + 0.6 + side + _MARGIN + 0.2, top + side + 0.25 + low + 0.6, heading)
    axes = _place(figure, _MARGIN + 0.6, top, side, side)
    below = _place(figure, _MARGIN + 0.6, top + side + 0.25, side, low)
    filled = [each for each in bins if each.answers]
    lower = [each.lower for each in filled]
    width = bins[0].upper - bins[0].lower
    right = np.array([each.right for each in filled])
    gap = np.array([each.confidence for each in filled]) - right
    bar: dict[str, Any] = {"width": width, "align": "edge"}
    axes.bar(lower, right, color=SKY, edgecolor="white", linewidth=0.8, label="correct", **bar)
    hatched: dict[str, Any] = {"facecolor": (0, 0, 0, 0), "edgecolor": VERMILION, "linewidth": 0.9, "hatch": "////"}
    axes.bar(lower, gap, bottom=right, label="gap to the mean confidence", **hatched, **bar)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="perfectly calibrated")
    axes.set(xlim=(0, 1), ylim=(0, 1.005), ylabel=f"share of {answers} correct")
    axes.tick_params(labelbottom=False)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.16, 1), ncols=3, fontsize=8.5, columnspacing=1.2)
    counts = np.array([each.answers for each in filled])
    below.bar(lower, counts / counts.sum(), color=GREY, edgecolor="white", linewidth=0.8, **bar)
    below.set(xlim=(0, 1), xlabel="confidence", ylabel=f"share of {answers}")
    for panel in (axes, below):
        panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panel.grid(color=PALE, linewidth=0.6)
        panel.set_axisbelow(True)
    return figure


def tiles(heading: Heading, groups: Sequence[Group]) -> Figure:
    """Each group's samples in rows of ``tile_columns``, with answer, confidence and truth."""
    picture = next(tile.picture for group in groups for tile in group.tiles)
    (width, height), columns, gap, line, above = _tile_size(picture), tile_columns(picture), 0.16, 0.17, 0.33
    steps = [height + line * (1 if group.right else 2) + gap for group in groups]
    drops = [
        above + math.ceil(len(group.tiles) / columns) * step + 0.12 for group, step in zip(groups, steps, strict=True)
    ]
    figure = _page(2 * _MARGIN + columns * (width + gap) - gap, _HEADING + sum(drops), heading)
    canvas, top = _canvas(figure), _HEADING
    for group, step, drop in zip(groups, steps, drops, strict=True):
        colour = RIGHT if group.right else WRONG
        canvas.text(_MARGIN, top + 0.1, group.title, color=colour, size=10.5, weight="bold", va="center")
        for number, tile in enumerate(group.tiles):
            left = _MARGIN + number % columns * (width + gap)
            upper = top + above + number // columns * step
            _show(canvas, tile.picture, left, upper, width, height, colour)
            score = f" {tile.score:.0%}"
            answer = _shortened(tile.answer, _room(width, 8.5) - len(score)) + score
            canvas.text(left, upper + height + line * 0.75, answer, color=colour, size=8.5, va="center", weight="bold")
            if not group.right:
                truth = _shortened(f"truth: {tile.truth}", _room(width, 8))
                canvas.text(left, upper + height + line * 1.65, truth, size=8, va="center")
        top += drop
    return figure


def tile_columns(picture: Picture) -> int:
    """The number of pictures of this size in a row of ``tiles``."""
    return max(1, int(10.5 / (_tile_size(picture)[0] + 0.16)))


def _tile_size(picture: Picture) -> tuple[float, float]:
    return _within(picture, 5.0, 1.15)


def scenes(
    heading: Heading, shown: Sequence[Scene], categories: Sequence[str], palette: Sequence[Colour], void: int
) -> Figure:
    """A row for each scene: picture, truth, answer and wrong pixels; below, the colours of the categories shown."""
    colours = np.full((256, 3), 255, np.uint8)  # void is white
    colours[: len(palette)] = palette
    width, gap, above, most = 2.55, 0.12, 0.3, 2.6
    sizes = [_within(scene.picture, width, most) for scene in shown]
    occurring = sorted(
        {int(value) for scene in shown for mask in (scene.truth, scene.answer) for value in np.unique(mask)}
    )
    names = [("void" if index == void else categories[index], colours[index] / 255) for index in occurring]
    entry = min(26, max(len(name) for name, _ in names)) * 0.082 + 0.4
    page_width = 2 * _MARGIN + 4 * (width + gap) - gap
    per_line = max(1, int((page_width - 2 * _MARGIN) / entry))
    key = math.ceil(len(names) / per_line) * 0.24
    figure = _page(page_width, _HEADING + 0.3 + sum(high + above for _, high in sizes) + 0.25 + key + 0.2, heading)
    canvas, top = _canvas(figure), _HEADING + 0.1
    for column, title in enumerate(("picture", "truth", "answer", "wrong pixels")):
        canvas.text(_MARGIN + column * (width + gap), top, title, size=10, weight="bold", va="center")
    top += 0.2
    for scene, (wide, high) in zip(shown, sizes, strict=True):
        panels = (scene.picture, colours[scene.truth], colours[scene.answer], _errors(scene, void))
        for column, panel in enumerate(panels):
            _show(canvas, panel, _MARGIN + column * (width + gap), top, wide, high, PALE)
        canvas.text(
            _MARGIN, top + high + 0.13, f"{scene.share_correct:.1%} of the pixels correct", size=8.5, va="center"
        )
        top += high + above
    for number, (name, colour) in enumerate(names):
        left, middle = _MARGIN + number % per_line * entry, top + 0.25 + number // per_line * 0.24
        canvas.add_patch(Rectangle((left, middle - 0.07), 0.22, 0.14, facecolor=colour, edgecolor=GREY, linewidth=0.5))
        canvas.text(left + 0.29, middle, _shortened(name, 26), size=8.5, va="center")
    return figure


def _errors(scene: Scene, void: int) -> Picture:
    """The picture in grey, with wrong pixels in vermilion and void in white."""
    grey = scene.picture.mean(axis=2, keepdims=True) * 0.6 + 80
    picture = np.repeat(grey, 3, axis=2).astype(np.uint8)
    picture[scene.truth != scene.answer] = np.array(mpl.colors.to_rgb(WRONG)) * 255
    picture[scene.truth == void] = 255
    return picture


def spectrogram(waveform: NDArray[np.floating], sample_rate_hz: int) -> Picture:
    """(T,) -> spectrogram in windows of 32 ms: time rightwards, 0 Hz to half the sample rate upwards, 80 dB of
    brightness."""
    size = min(2 ** round(math.log2(0.032 * sample_rate_hz)), len(waveform))
    windows = np.lib.stride_tricks.sliding_window_view(waveform, size)[:: max(1, size // 8)]
    power = np.abs(np.fft.rfft(windows * np.hanning(size), axis=1)) ** 2
    decibels = 10 * np.log10(np.maximum(power / max(power.max(), 1e-12), 1e-8))
    return _rgb(mpl.colormaps["magma"](decibels.T[::-1] / 80 + 1))


def film_strip(frames: NDArray[np.uint8]) -> Picture:
    """(T, H, W, 3) -> the first, middle and last frame side by side, with white lines between."""
    line = np.full((frames.shape[1], max(1, frames.shape[2] // 32), 3), 255, np.uint8)
    return np.concatenate([frames[0], line, frames[len(frames) // 2], line, frames[-1]], axis=1)


def _rgb(colours: NDArray[np.floating]) -> Picture:
    return (colours[..., :3] * 255).round().astype(np.uint8)


def _page(width: float, height: float, heading: Heading) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(_MARGIN / width, 1 - 0.38 / height, heading.title, size=13, weight="bold", va="center")
    lines = textwrap.wrap(heading.note, _room(width - 2 * _MARGIN, 9), max_lines=2, placeholder=" …")
    figure.text(_MARGIN / width, 1 - 0.55 / height, "\n".join(lines), size=9, color=GREY, va="top", linespacing=1.35)
    return figure


def _place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    page_width, page_height = figure.get_size_inches()
    bottom = page_height - top - height
    return figure.add_axes((left / page_width, bottom / page_height, width / page_width, height / page_height))


def _canvas(figure: Figure) -> Axes:
    """The whole page, in inches from its top left."""
    width, height = figure.get_size_inches()
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set_axis_off()
    canvas.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    return canvas


def _show(canvas: Axes, picture: Picture, left: float, top: float, width: float, height: float, colour: str) -> None:
    extent = (left, left + width, top + height, top)
    canvas.imshow(picture, extent=extent, aspect="auto", interpolation="nearest")
    canvas.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=1.6))


def _within(picture: Picture, width: float, height: float) -> tuple[float, float]:
    """The largest size of the picture, in inches, that fits."""
    scale = min(width / picture.shape[1], height / picture.shape[0])
    return picture.shape[1] * scale, picture.shape[0] * scale


def _room(inches: float, points: float) -> int:
    """The number of letters of a size that fit into a width."""
    return int(inches * 72 / (points * 0.6))


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: max(1, letters - 1)]}…"
