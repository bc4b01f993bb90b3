"""Weights that torchvision publishes: file, data, preprocessing and categories of each network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.graph import IMAGENET_MEAN, IMAGENET_STD, KINETICS_MEAN, KINETICS_STD
from service.repository.card import Colour, Dataset, ImagePreprocess, VideoPreprocess
from service.repository.folder import file_entry

ADDRESS = "https://download.pytorch.org/models/"
CATEGORIES = Path(__file__).resolve().parent / "categories"
_RECIPES = "https://github.com/pytorch/vision/tree/main/references/"
_LICENCE = "weights: BSD 3-Clause (torchvision); the data's own terms: "


@dataclass(frozen=True)
class Pretrained:
    """One file of weights, with the preprocessing that torchvision measures it with."""

    file: str  # ends with the first eight digits of its sha256
    task: str
    description: str
    stated: str  # what torchvision measured
    preprocess: ImagePreprocess | VideoPreprocess
    categories: str  # a file of CATEGORIES
    dataset: Dataset
    recipe: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    palette: Callable[[int], tuple[Colour, ...]] | None = None  # of so many categories, where answers are masks

    @property
    def url(self) -> str:
        return ADDRESS + self.file

    @property
    def sha256_prefix(self) -> str:
        return Path(self.file).stem.rpartition("-")[2]

    def is_in(self, path: Path) -> bool:
        """True if the file ``path`` holds these very weights."""
        return file_entry(path).sha256.startswith(self.sha256_prefix)


def voc_colours(count: int) -> tuple[Colour, ...]:
    """VOC's colours, black first, for up to 256 categories: the bits of a number, lowest first, go to red, green and
    blue in turn, there from the highest down (VOClabelcolormap.m of the development kit, Everingham et al. 2010)."""

    def channel(number: int, first: int) -> int:
        return sum((number >> (3 * place + first) & 1) << (7 - place) for place in range(3))

    return tuple((channel(number, 0), channel(number, 1), channel(number, 2)) for number in range(count))


def _imagenet(file: str, stated: str, shorter_side: int, recipe: str) -> Pretrained:
    return Pretrained(
        file=file,
        task="classify",
        description="What is in a picture: one of ImageNet's thousand categories.",
        stated=f"{stated} on ImageNet's 50,000 validation pictures",
        preprocess=ImagePreprocess(resize="crop", sizes=((224, 224),), shorter_side=shorter_side),
        categories="imagenet.txt",
        dataset=Dataset(
            name="ImageNet-1K",
            source="https://www.image-net.org",
            licence=f"{_LICENCE}for research, not for commerce",
            splits={"train": 1_281_167, "val": 50_000},
        ),
        recipe=recipe,
    )


def _coco(file: str, stated: str, recipe: str) -> Pretrained:
    return Pretrained(
        file=file,
        task="segment",
        description="What every pixel of a picture is: one of VOC's twenty categories, or background.",
        stated=f"{stated} on COCO val2017 with VOC's categories",
        # torchvision scales the shorter side to 520 and keeps the aspect; these are the aspects of most pictures.
        preprocess=ImagePreprocess(resize="pad", sizes=((520, 520), (520, 693), (693, 520), (520, 924), (924, 520))),
        categories="voc.txt",
        dataset=Dataset(
            name="COCO 2017, the pictures that show VOC's categories",
            source="https://cocodataset.org",
            licence=f"{_LICENCE}annotations CC BY 4.0, pictures their owners' on Flickr",
            splits={},
        ),
        recipe=recipe,
        palette=voc_colours,
    )


_CLASSIFICATION = f"{_RECIPES}classification#"
_ISSUE = "https://github.com/pytorch/vision/issues/3995"  # recipe of the newer weights

PRETRAINED: dict[str, Pretrained] = {
    "alexnet": _imagenet(
        "alexnet-owt-7be5be79.pth", "56.5% top-1, 79.1% top-5", 256, f"{_CLASSIFICATION}alexnet-and-vgg"
    ),
    "resnet18": _imagenet("resnet18-f37072fd.pth", "69.8% top-1, 89.1% top-5", 256, f"{_CLASSIFICATION}resnet"),
    "resnet34": _imagenet("resnet34-b627a593.pth", "73.3% top-1, 91.4% top-5", 256, f"{_CLASSIFICATION}resnet"),
    "resnet50": _imagenet("resnet50-11ad3fa6.pth", "80.9% top-1, 95.4% top-5", 232, _ISSUE),
    "resnet101": _imagenet("resnet101-cd907fc2.pth", "81.9% top-1, 95.8% top-5", 232, _ISSUE),
    "fcn_resnet50": _coco(
        "fcn_resnet50_coco-1167a1af.pth",
        "mIoU 60.5%, 91.4% of the pixels",
        f"{_RECIPES}segmentation#fcn_resnet50",
    ),
    "fcn_resnet101": _coco(
        "fcn_resnet101_coco-7ecb50ca.pth",
        "mIoU 63.7%, 91.9% of the pixels",
        f"{_RECIPES}segmentation#fcn_resnet101",
    ),
    "r3d_18": Pretrained(
        file="r3d_18-b3b3357e.pth",
        task="video",
        description="What is done in a clip: one of Kinetics' four hundred human actions.",
        stated="63.2% top-1, 83.5% top-5 of Kinetics' clips, five windows each",
        # Every two seconds: five windows of Kinetics' ten seconds. torchvision squeezes frames to 128x171, the shape of
        # old television's, before it cuts out the middle; here wider ones keep their shape.
        preprocess=VideoPreprocess(frame_rate_hz=15, frames=16, hop_seconds=2.0, shorter_side=128, size=(112, 112)),
        categories="kinetics400.txt",
        dataset=Dataset(
            name="Kinetics-400",
            source="https://github.com/cvdfoundation/kinetics-dataset",
            licence=f"{_LICENCE}annotations CC BY 4.0, clips their owners' on YouTube",
            splits={},
        ),
        recipe=f"{_RECIPES}video_classification",
        mean=KINETICS_MEAN,
        std=KINETICS_STD,
    ),
}
