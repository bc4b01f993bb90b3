"""Data set of camera motion: clips rendered from photographs, of which train, val and test share none."""

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from models.camera_motion import FOOTAGE_RATES_HZ, FRAME_RATE_HZ, SIZES, Frames, draw_size, render
from models.camera_poses import CATEGORIES
from models.progress import progress

FOOTAGE_SIZES = {(360, 640): 0.5, (640, 360): 0.3, (360, 480): 0.2}
PHOTO_SHORT_SIDE = 288  # pixels; larger photographs are reduced to it
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}  # of the photographs


def write_clip(
    frames: Frames,
    path: Path,
    frame_rate_hz: int = FRAME_RATE_HZ,
    crf: int = 23,
    preset: str = "ultrafast",
) -> None:
    """Writes frames (T,H,W,3) uint8, H and W even, as an H.264 MP4; `crf` is x264's constant rate factor."""
    part = path.with_name(f".{path.name}.part")  # hidden until it is whole
    with av.open(part, "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": preset}
        stream = container.add_stream("libx264", rate=Fraction(frame_rate_hz), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # clips are rendered in parallel instead
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    part.replace(path)


def list_photos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def split_photos(photos: Iterable[Path], seed: int) -> dict[str, list[Path]]:
    """Splits the photographs into train, val and test, without overlap; the same names and seed give the same split."""
    ordered = sorted(photos)
    shuffled = [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]
    ends = [round(share * len(shuffled)) for share in np.cumsum(list(SHARES.values()))]
    return {split: shuffled[begin:end] for split, begin, end in zip(SHARES, [0, *ends[:-1]], ends, strict=True)}


@dataclass(frozen=True)
class Split:
    """Photographs and the number of clips to render from them; ``as_filmed`` in a camera's size and frame rate."""

    photos: Sequence[Path]
    count: int
    as_filmed: bool = False


@dataclass(frozen=True)
class Clip:
    """One clip to render; everything random in it follows from `seed`."""

    path: Path
    category: str
    seed: tuple[int, ...]


def plan_clips(destination: Path, splits: Mapping[str, Split], seed: int) -> Iterator[tuple[Split, Clip]]:
    """Yields each split's clips, the categories in turn."""
    categories = list(CATEGORIES)
    for split_index, (name, split) in enumerate(splits.items()):
        for index in range(split.count):
            number, category_index = divmod(index, len(categories))
            category = categories[category_index]
            path = destination / name / category / f"{number:05d}.mp4"
            yield split, Clip(path, category, (seed, split_index, category_index, number))


def render_data_set(splits: Mapping[str, Split], destination: Path, seed: int = 0, processes: int = 1) -> None:
    """Renders each split's clips to `destination/<split>/<category>/NNNNN.mp4`.

    Clips that exist are kept, so an interrupted rendering continues. The frames follow from the
    photographs, the order of the splits and `seed`; x264 does not always encode them to the same bytes. Raises
    ValueError for a split that has clips to render but no photographs.
    """
    for name, split in splits.items():
        if split.count and not split.photos:
            raise ValueError(f"{name} has no photographs to render {split.count} clips from")
    jobs = [(split, clip) for split, clip in plan_clips(destination, splits, seed) if not clip.path.exists()]
    for folder in {clip.path.parent for _, clip in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    if processes == 1:
        for job in progress(jobs, destination.name, "clip"):
            _render_job(job)
        return
    # Spawned, not forked: the caller may hold threads.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        rendered = pool.imap_unordered(_render_job, jobs, chunksize=16)
        for _ in progress(rendered, destination.name, "clip", len(jobs)):
            pass


def _render_job(job: tuple[Split, Clip]) -> None:
    split, clip = job
    rng = np.random.default_rng(clip.seed)
    photo, foreground = (load_photo(split.photos[index]) for index in rng.integers(0, len(split.photos), 2))
    filmed_hz = int(rng.choice(FOOTAGE_RATES_HZ)) if split.as_filmed else None
    size = draw_size(FOOTAGE_SIZES if split.as_filmed else SIZES, rng)
    frames = render(photo, clip.category, rng, foreground, size, filmed_hz)
    preset = str(rng.choice(["ultrafast", "veryfast"]))
    write_clip(frames, clip.path, filmed_hz or FRAME_RATE_HZ, crf=int(rng.integers(18, 37)), preset=preset)


def load_photo(path: Path) -> Image.Image:
    """An RGB picture whose shorter side is at most 288 pixels."""
    with Image.open(path) as file:
        photo = file.convert("RGB")
    ratio = PHOTO_SHORT_SIDE / min(photo.size)
    if ratio < 1:
        photo = photo.resize((round(photo.width * ratio), round(photo.height * ratio)), Image.Resampling.BICUBIC)
    return photo
