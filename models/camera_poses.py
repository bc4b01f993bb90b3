"""Camera motion: categories -> poses at the times of frames -> matrices from a frame's pixels to the scene's."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SECONDS = 2

# A pose is (x, y, log scale, angle): the centre in pixels of the first frame along the camera's own axes, the natural
# logarithm of photograph pixels per frame pixel (growing = zooming out), and radians (growing = clockwise).
X, Y, SCALE, ANGLE = range(4)

# The axis and the sign of the camera's motion.
CATEGORIES: dict[str, tuple[int, int] | None] = {
    "static": None,
    "pan left": (X, -1),
    "pan right": (X, 1),
    "tilt up": (Y, -1),
    "tilt down": (Y, 1),
    "zoom in": (SCALE, -1),
    "zoom out": (SCALE, 1),
    "roll clockwise": (ANGLE, 1),
    "roll counter-clockwise": (ANGLE, -1),
    "shake": None,
}

# Within two seconds, log-uniform: a share of the frame's width or height, a log scale, radians.
RANGES = {
    X: (0.12, 0.90),
    Y: (0.12, 0.90),
    SCALE: (math.log(1.15), math.log(2.0)),
    ANGLE: (math.radians(8), math.radians(60)),
}
DISTRACTOR = 0.2  # of the main motion at the edge of the frame, at most, for each other axis
# Root mean square as a share of the frame's shorter side; of a still and a moving camera, at most.
STATIC_TREMOR = 0.006
MOVING_TREMOR = 0.018
SHAKE = (0.02, 0.075)
TREMOR_HERTZ, SHAKE_HERTZ = (0.4, 4.0), (0.8, 5.0)


def sample_times(filmed_hz: float, frame_rate_hz: float, sub_frames: int, shutter: float) -> Floats:
    """Times in seconds, (T,S), when a camera of `filmed_hz` took the frames that a screen shows at multiples of
    1 / `frame_rate_hz`; its shutter is open for the share `shutter` of a frame's time."""
    shown = np.arange(SECONDS * frame_rate_hz)[:, None] / frame_rate_hz
    taken = np.floor(shown * filmed_hz + 1e-6) / filmed_hz
    return np.asarray(taken + shutter / filmed_hz * np.arange(sub_frames) / sub_frames)


def plan_poses(category: str, times: Floats, size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Poses (K,4) relative to the middle of the camera's path, for K times in seconds."""
    height, width = size
    poses = np.zeros((len(times), 4))
    # What one unit of each axis moves at the edge of the frame, in pixels.
    edge_px = np.array([1.0, 1.0, max(size) / 2, max(size) / 2])
    main = CATEGORIES[category]
    if main is not None:
        axis, sign = main
        extent = {X: width, Y: height}.get(axis, 1)
        amount = extent * math.exp(rng.uniform(*np.log(RANGES[axis])))
        main_px = amount * edge_px[axis]
        drift = rng.uniform(-DISTRACTOR, DISTRACTOR, 4) * (rng.random(4) < 0.5) * main_px / edge_px
        drift[axis] = 0
        poses += (times / times[-1])[:, None] * drift
        poses[:, axis] += sign * amount * ease(times, rng)
        tremor_px = min(MOVING_TREMOR * min(size), 0.12 * main_px) * rng.random() * (rng.random() < 0.6)
    elif category == "shake":
        tremor_px = min(size) * rng.uniform(*SHAKE)
    else:
        tremor_px = STATIC_TREMOR * min(size) * rng.random() * (rng.random() < 0.6)
    hertz = SHAKE_HERTZ if category == "shake" else TREMOR_HERTZ
    # Hands move the picture sideways more than they turn it, and never change its scale.
    strengths = tremor_px * np.array([rng.uniform(0.6, 1), rng.uniform(0.6, 1), 0, rng.uniform(0, 0.4)]) / edge_px
    poses += np.stack([wobble(times, hertz, rng) for _ in range(4)], axis=1) * strengths
    centres = poses[:, : Y + 1]  # a view
    centres -= (centres.min(axis=0) + centres.max(axis=0)) / 2
    return poses


def ease(times: Floats, rng: np.random.Generator) -> Floats:
    """Progress of a motion from 0 to 1 at `times` (K,): steady, accelerating, slowing down, late or stopping early."""
    begin = rng.uniform(0, 0.4) if rng.random() < 0.3 else 0.0
    end = rng.uniform(0.6, 1) if rng.random() < 0.3 else 1.0
    progress = np.clip((times / times[-1] - begin) / (end - begin), 0, 1)
    power = rng.uniform(1.3, 2.2)
    curves = [progress, progress**2 * (3 - 2 * progress), progress**power, 1 - (1 - progress) ** power]
    return np.asarray(curves[rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])])


def wobble(times: Floats, hertz: tuple[float, float], rng: np.random.Generator) -> Floats:
    """Irregular motion about 0 with root mean square 1 at `times` (K,): a sum of waves within the band `hertz`."""
    frequencies, phases = rng.uniform(*hertz, 5), rng.uniform(0, 2 * math.pi, 5)
    waves = np.sin(2 * math.pi * np.outer(times, frequencies) + phases) @ rng.uniform(0.4, 1, 5)
    waves -= waves.mean()
    return np.asarray(waves / np.sqrt(np.mean(waves**2)))


def projections(poses: Floats, focal_px: float, size: tuple[int, int], start_angle: float = 0.0) -> Floats:
    """Matrices (K,3,3) from frame pixels to a plane with one unit per pixel of a frame at rest, its centre at 0.

    The camera does not travel, it turns to what lies at (x, y); Hartley & Zisserman 2004, section 8.4.2.
    """
    height, width = size
    yaw = np.arctan(poses[:, X] / focal_px)
    pitch = np.arctan(poses[:, Y] / focal_px * np.cos(yaw))
    focal = similarities(np.full(2, focal_px))
    turned = focal @ _rotations(yaw, 2, 0) @ _rotations(pitch, 2, 1) @ np.linalg.inv(focal)
    zoomed = similarities(np.exp(poses[:, SCALE, None]))
    rolled = _rotations(poses[:, ANGLE], 0, 1)
    middle = similarities(np.ones(2), -np.array([width / 2, height / 2]))
    return np.asarray(_rotations(np.array([start_angle]), 0, 1) @ turned @ zoomed @ rolled @ middle)


def similarities(scales: Floats, shifts: Floats | float = 0.0) -> Floats:
    """Matrices (...,3,3) that multiply x and y by `scales` (...,2) or (...,1), then add `shifts` (...,2)."""
    matrices = np.zeros((*scales.shape[:-1], 3, 3)) + np.eye(3)
    matrices[..., [0, 1], [0, 1]] = scales
    matrices[..., :2, 2] = shifts
    return matrices


def _rotations(angles: Floats, from_axis: int, to_axis: int) -> Floats:
    """Matrices (K,3,3) that rotate from one axis towards another."""
    matrices = np.zeros((len(angles), 3, 3)) + np.eye(3)
    matrices[:, from_axis, from_axis] = matrices[:, to_axis, to_axis] = np.cos(angles)
    matrices[:, to_axis, from_axis] = np.sin(angles)
    matrices[:, from_axis, to_axis] = -np.sin(angles)
    return matrices
