"""Published weights, preprocessing and categories are torchvision's own."""

import re
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.published import CATEGORIES, PRETRAINED
from models.weights import read_categories
from service.media.image import image_sample
from service.repository.card import ImagePreprocess, VideoPreprocess
from tests.models import test_architectures

torchvision_models = test_architectures.torchvision_models  # the fixture, which skips where there is no torchvision
WEIGHTS = {
    "alexnet": "AlexNet_Weights.IMAGENET1K_V1",
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V2",
    "resnet101": "ResNet101_Weights.IMAGENET1K_V2",
    "fcn_resnet50": "segmentation.FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1",
    "fcn_resnet101": "segmentation.FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1",
    "r3d_18": "video.R3D_18_Weights.KINETICS400_V1",
}


@pytest.mark.parametrize("name", PRETRAINED)
def test_what_is_published_is_what_torchvision_brings(torchvision_models: Any, name: str) -> None:
    found, weights = PRETRAINED[name], attrgetter(WEIGHTS[name])(torchvision_models)
    preset = weights.transforms()
    assert found.url == weights.url
    assert read_categories(CATEGORIES / found.categories) == tuple(weights.meta["categories"])
    assert [value / 255 for value in found.mean] == pytest.approx(preset.mean)
    assert [value / 255 for value in found.std] == pytest.approx(preset.std)
    (metrics,) = weights.meta["_metrics"].values()
    stated = [float(figure) for figure in re.findall(r"([\d.]+)%", found.stated)]
    assert stated == [round(value, 1) for value in metrics.values()]
    if isinstance(found.preprocess, VideoPreprocess):
        assert [*found.preprocess.size] == preset.crop_size
        assert found.preprocess.shorter_side == min(preset.resize_size)
    elif found.task == "classify":
        assert isinstance(found.preprocess, ImagePreprocess)
        assert found.preprocess.sizes == ((preset.crop_size[0], preset.crop_size[0]),)
        assert found.preprocess.shorter_side == preset.resize_size[0]
    else:
        assert isinstance(found.preprocess, ImagePreprocess)
        assert {min(size) for size in found.preprocess.sizes} == set(preset.resize_size)


@pytest.mark.parametrize("name", ["alexnet", "resnet50"])
def test_a_classifier_sees_the_part_of_a_picture_that_torchvision_shows_it(torchvision_models: Any, name: str) -> None:
    patches = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))
    picture = patches.resize((640, 480), Image.Resampling.BICUBIC)
    preset = attrgetter(WEIGHTS[name])(torchvision_models).transforms()
    shown = preset(picture).permute(1, 2, 0) * torch.tensor(preset.std) + torch.tensor(preset.mean)
    preprocess = PRETRAINED[name].preprocess
    assert isinstance(preprocess, ImagePreprocess)
    sample = image_sample(picture, preprocess).sample
    assert np.abs(sample - shown.numpy() * 255).mean() < 2  # of 255; half a pixel beside it costs 1.5, a whole one 3


def test_categories_are_as_many_as_the_networks_tell_apart() -> None:
    for name, counted in {"imagenet": 1000, "kinetics400": 400, "voc": 21}.items():
        assert len(set(read_categories(CATEGORIES / f"{name}.txt"))) == counted
