"""Every motion is measured by the colours that the camera sees.

The photograph's red grows to the right and its green downwards, so a frame's colours are an affine function of its
pixels, fitted by least squares. From the fits of two frames follows how the camera moved between them; what the
renderer does to the colours (brightness, contrast, saturation, exposure) is the same linear map in both and cancels.
"""

import math
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.camera_clips import FOOTAGE_SIZES, Split, list_photos, load_photo, render_data_set, split_photos, write_clip
from models.camera_motion import Frames, render
from models.camera_poses import CATEGORIES, projections, sample_times

SEEDS = range(8)
# The signs of what is measured; all are the camera's own.
SIGNS = {
    "pan left": ("x", -1),
    "pan right": ("x", 1),
    "tilt up": ("y", -1),
    "tilt down": ("y", 1),
    "zoom in": ("zoom", 1),
    "zoom out": ("zoom", -1),
    "roll clockwise": ("roll", 1),
    "roll counter-clockwise": ("roll", -1),
}


class Movement(NamedTuple):
    """Motion from one frame to another: pixels of the first (right, down), log enlargement, radians clockwise."""

    x: float
    y: float
    zoom: float
    roll: float


def colour_ramps(height: int = 500, width: int = 620) -> Frames:
    """Far enough from black and white that no change of brightness or contrast clips it."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([90 + x * 70 / width, 90 + y * 70 / height, np.full(x.shape, 110)], axis=2).round().astype(np.uint8)


def fit(frame: Frames) -> NDArray[np.float64]:
    """The matrix (3,3) from (x, y, 1) to colour; x and y are pixels from the middle. Bars at the edge are left out."""
    height, width, _ = frame.shape
    y, x = np.mgrid[0:height, 0:width] + 0.5
    places = np.stack([x - width / 2, y - height / 2, np.ones_like(x)], axis=2)
    middle = np.s_[height // 6 : -height // 6, width // 6 : -width // 6]
    solution, *_ = np.linalg.lstsq(
        places[middle].reshape(-1, 3), frame[middle].reshape(-1, 3).astype(float), rcond=None
    )
    return np.asarray(solution.T)


def measure(first: Frames, last: Frames) -> Movement:
    moved = np.linalg.solve(fit(first), fit(last))
    moved /= moved[2, 2]  # the exposure may have drifted
    scale = math.sqrt(np.linalg.det(moved[:2, :2]))
    return Movement(moved[0, 2], moved[1, 2], -math.log(scale), math.atan2(moved[1, 0], moved[0, 0]))


def rendered(
    category: str, seed: int, size: tuple[int, int] | None = (96, 128), filmed_hz: int | None = None
) -> Frames:
    return render(colour_ramps(), category, np.random.default_rng(seed), size=size, filmed_hz=filmed_hz)


def jitter_px(category: str, seed: int) -> float:
    frames = rendered(category, seed)
    centres = np.array([measure(frames[0], frame)[:2] for frame in frames])
    return float(np.sqrt(((centres - centres.mean(axis=0)) ** 2).sum(axis=1).mean()))


def test_oracle_measures_a_crop_made_by_hand() -> None:
    ramps = colour_ramps()
    moved = measure(ramps[100:196, 100:228], ramps[90:186, 130:258])
    assert moved == pytest.approx((30, -10, 0, 0), abs=0.5)
    turned = Image.fromarray(ramps).rotate(-20, Image.Resampling.BICUBIC)  # content clockwise, as a camera rolling left
    turned_frame = np.asarray(turned)[200:296, 250:378]
    assert measure(ramps[200:296, 250:378], turned_frame).roll == pytest.approx(math.radians(-20), abs=0.02)
    larger = np.asarray(Image.fromarray(ramps[200:296, 250:378]).resize((192, 144), box=(16, 12, 112, 84)))
    assert measure(ramps[200:296, 250:378], larger).zoom == pytest.approx(math.log(2), abs=0.02)


@pytest.mark.parametrize("category", SIGNS)
@pytest.mark.parametrize("seed", SEEDS)
def test_camera_moves_as_the_category_says(category: str, seed: int) -> None:
    frames = rendered(category, seed)
    movement = measure(frames[0], frames[-1])
    name, sign = SIGNS[category]
    amount = sign * getattr(movement, name)
    smallest, largest = {
        "x": (0.12 * 128, 0.90 * 128),
        "y": (0.12 * 96, 0.90 * 96),
        "zoom": (math.log(1.15), math.log(2)),
        "roll": (math.radians(8), math.radians(60)),
    }[name]
    # Hand tremor and the open shutter change the ends of the way a little.
    assert 0.7 * smallest < amount < 1.25 * largest


@pytest.mark.parametrize("category", SIGNS)
@pytest.mark.parametrize("size", [(90, 160), (160, 90)])
def test_footage_is_all_of_the_cameras_frames_and_moves_as_the_category_says(
    category: str, size: tuple[int, int]
) -> None:
    frames = rendered(category, seed=1, size=size, filmed_hz=24)
    assert frames.shape == (48, *size, 3)
    name, sign = SIGNS[category]
    steps = [sign * getattr(measure(frames[0], frame), name) for frame in frames[::6]]
    assert steps[-1] == max(steps) > 0


def test_frames_are_those_that_the_camera_took_last_before_they_are_shown() -> None:
    times = sample_times(filmed_hz=25, frame_rate_hz=8, sub_frames=2, shutter=0.5)
    # 1/8 s is 3.125 frames of 1/25 s; the shutter is open for 1/50 s, the second look is in its middle.
    assert times[:4] == pytest.approx(np.array([[0, 0.01], [0.12, 0.13], [0.24, 0.25], [0.36, 0.37]]))
    assert times.shape == (16, 2)
    assert sample_times(50, 50, 1, 1)[:, 0] == pytest.approx(np.arange(100) / 50)


def test_turning_camera_sees_what_a_pinhole_camera_sees() -> None:
    focal_px, yaw, pitch = 100.0, math.radians(20), math.radians(-10)
    # The ray through a pixel, turned upwards and then to the right, meets the plane that the camera faces at rest.
    x, y, z = 30.0 - 64, 80.0 - 48, focal_px
    y, z = y * math.cos(pitch) + z * math.sin(pitch), z * math.cos(pitch) - y * math.sin(pitch)
    x, z = x * math.cos(yaw) + z * math.sin(yaw), z * math.cos(yaw) - x * math.sin(yaw)
    pose = [focal_px * math.tan(yaw), focal_px * math.tan(pitch) / math.cos(yaw), 0, 0]
    (seen,) = projections(np.array([pose]), focal_px, (96, 128)) @ [30, 80, 1]
    assert seen[:2] / seen[2] == pytest.approx([focal_px * x / z, focal_px * y / z])
    (middle,) = projections(np.array([pose]), focal_px, (96, 128)) @ [64, 48, 1]
    assert middle[:2] / middle[2] == pytest.approx(pose[:2])


@pytest.mark.parametrize("category", SIGNS)
@pytest.mark.parametrize("seed", SEEDS)
def test_other_motions_stay_well_below_the_one_that_is_named(category: str, seed: int) -> None:
    frames = rendered(category, seed)
    movement = measure(frames[0], frames[-1])
    at_edge_px = {
        "x": abs(movement.x),
        "y": abs(movement.y),
        "zoom": abs(movement.zoom) * 64,
        "roll": abs(movement.roll) * 64,
    }
    main_px = at_edge_px.pop(SIGNS[category][0])
    assert max(at_edge_px.values()) < 0.5 * main_px


def test_static_stays_within_a_fraction_of_a_pixel_and_shake_does_not() -> None:
    static = [jitter_px("static", seed) for seed in SEEDS]
    shake = [jitter_px("shake", seed) for seed in SEEDS]
    assert max(static) < 1
    assert min(shake) > 1.2
    assert min(shake) > 1.3 * max(static)


@pytest.mark.parametrize("category", CATEGORIES)
def test_same_seed_gives_the_same_clip(category: str) -> None:
    photo, foreground = colour_ramps(), colour_ramps(300, 300)[::-1].copy()
    clips = [render(photo, category, np.random.default_rng(seed), foreground) for seed in (3, 3, 4)]
    assert np.array_equal(clips[0], clips[1])
    assert clips[0].shape != clips[2].shape or not np.array_equal(clips[0], clips[2])


def test_clips_have_sixteen_frames_of_even_size() -> None:
    sizes = {rendered("static", seed, size=None).shape for seed in range(20)}
    assert len(sizes) > 1
    assert all(n_frames == 16 and height % 2 == width % 2 == 0 for n_frames, height, width, _ in sizes)


def test_photograph_smaller_than_the_motion_is_mirrored_and_not_black() -> None:
    photo = np.full((40, 40, 3), 200, np.uint8)
    for seed in SEEDS:
        frames = render(photo, "pan left", np.random.default_rng(seed), size=(96, 128))
        assert frames[:, 30:-30, 30:-30].min() > 60


def test_objects_cover_at_most_a_third_of_the_picture() -> None:
    black, white = np.zeros((288, 384, 3), np.uint8), np.full((288, 384, 3), 255, np.uint8)
    covered = []
    for seed in range(24):
        frames = render(black, "static", np.random.default_rng(seed), white, size=(96, 128))
        covered.append(float((frames[..., 1] > 128).mean(axis=(1, 2)).max()))
    assert 0.3 < np.mean(np.array(covered) > 0) < 0.7
    assert 0.1 < max(covered) < 0.4  # one that comes nearer grows


def test_some_clips_have_black_bars_that_stay_where_they_are() -> None:
    white = np.full((288, 384, 3), 255, np.uint8)
    kinds = set()
    for seed in range(24):
        frames = render(white, "shake", np.random.default_rng(seed), size=(96, 128))
        dark = frames.max(axis=(0, 3)) < 30  # in every frame
        rows, columns = dark.min(axis=1), dark.min(axis=0)
        assert np.array_equal(dark, rows[:, None] | columns[None, :])
        assert np.array_equal(dark, dark[::-1, ::-1])
        assert rows.mean() < 0.36 and columns.mean() < 0.7
        kinds.add((bool(rows.any()), bool(columns.any())))
    assert kinds == {(False, False), (True, False), (False, True)}


def test_unknown_category_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="category is 'dolly', must be one of static, pan left"):
        render(colour_ramps(), "dolly", np.random.default_rng(0))


def read_clip(path: Path) -> tuple[Frames, Fraction]:
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        return np.stack(frames), stream.average_rate


def test_written_clip_decodes_to_the_frames_that_went_in(tmp_path: Path) -> None:
    frames = rendered("pan right", seed=1)
    write_clip(frames, tmp_path / "clip.mp4", crf=18)
    decoded, frame_rate_hz = read_clip(tmp_path / "clip.mp4")
    assert decoded.shape == (16, 96, 128, 3)
    assert frame_rate_hz == 8
    assert np.abs(decoded.astype(int) - frames).mean() < 6
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_splits_share_no_photograph_and_depend_on_names_alone() -> None:
    photos = [Path(f"{index:03d}.jpg") for index in range(100)]
    splits = split_photos(photos, seed=7)
    assert {split: len(members) for split, members in splits.items()} == {"train": 80, "val": 10, "test": 10}
    assert sorted(path for members in splits.values() for path in members) == photos
    assert split_photos(reversed(photos), seed=7) == splits
    assert split_photos(photos, seed=8) != splits


def test_large_photograph_is_reduced_to_its_shorter_side(tmp_path: Path) -> None:
    Image.new("L", (1200, 600)).save(tmp_path / "photo.png")
    photo = load_photo(tmp_path / "photo.png")
    assert (photo.size, photo.mode) == ((576, 288), "RGB")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten flat pictures, each of a colour of its own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(10):
        Image.new("RGB", (160, 120), (60 + 15 * index, 120, 120)).save(folder / f"{index}.png")
    return folder


def test_data_set_is_rendered_the_same_by_any_number_of_processes(photos: Path, tmp_path: Path) -> None:
    splits = {"train": Split(list_photos(photos), 10), "test-more": Split(list_photos(photos)[:1], 2)}
    render_data_set(splits, tmp_path / "one", seed=5)
    render_data_set(splits, tmp_path / "two", seed=5, processes=2)
    names = {str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*.mp4")}
    more = {f"test-more/{category}/00000.mp4" for category in ("static", "pan left")}
    assert names == {f"train/{category}/00000.mp4" for category in CATEGORIES} | more
    for name in names:
        one, two = (read_clip(tmp_path / folder / name)[0].astype(int) for folder in ("one", "two"))
        assert one.shape == two.shape, name
        assert np.abs(one - two).mean() < 1, name  # x264 does not always encode to the same bytes


def test_clips_as_filmed_have_their_own_sizes_and_a_cameras_frame_rate(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {min(size) for size in FOOTAGE_SIZES} == {360}
    monkeypatch.setattr("models.camera_clips.FOOTAGE_SIZES", {(64, 36): 1.0})
    render_data_set({"test-footage": Split(list_photos(photos), 4, as_filmed=True)}, tmp_path)
    paths = sorted(tmp_path.rglob("*.mp4"))
    assert len(paths) == 4
    for path in paths:
        frames, frame_rate_hz = read_clip(path)
        assert frame_rate_hz in (24, 25, 30, 50, 60)
        assert frames.shape == (2 * frame_rate_hz, 64, 36, 3)


def test_rendering_goes_on_where_it_stopped(photos: Path, tmp_path: Path) -> None:
    splits = {"train": Split(list_photos(photos), 2)}
    render_data_set(splits, tmp_path / "clips")
    kept = tmp_path / "clips/train/static/00000.mp4"
    lost = tmp_path / "clips/train/pan left/00000.mp4"
    before, _ = read_clip(lost)
    kept.write_bytes(b"rendered earlier")
    lost.unlink()
    render_data_set(splits, tmp_path / "clips")
    assert kept.read_bytes() == b"rendered earlier"
    assert np.abs(read_clip(lost)[0].astype(int) - before).mean() < 1


def test_split_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test has no photographs to render 3 clips from"):
        render_data_set({"test": Split([], 3)}, tmp_path)
    render_data_set({"test": Split([], 0)}, tmp_path)
    assert not list(tmp_path.iterdir())
