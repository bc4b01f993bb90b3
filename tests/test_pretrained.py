"""Weights from elsewhere: torchvision's own networks with random weights, published, answer as they do in torchvision;
what does not fit is refused by name; addresses are files here and a port that nobody listens to."""

import dataclasses
import hashlib
import os
import pickle
import re
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from models import pretrained
from models.architectures import ARCHITECTURES
from models.architectures.alexnet import AlexNet, alexnet, head
from models.architectures.fcn import FCN, STRIDE_8
from models.architectures.resnet import Backbone, BasicBlock, Bottleneck, ResNet
from models.architectures.video_cnn import VideoResNet
from models.pretrained import CATEGORIES, PRETRAINED, build_network, main, read_categories, read_weights
from service.cards import ImagePreprocess, ModelCard, VideoPreprocess
from service.engine import Engine
from service.preprocess import image_sample
from service.repository import StoredModel, find_models, read_graph
from tests import test_architectures

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
ONE_EACH = (1, 1, 1, 1)
PETS = ("cat", "dog", "newt")

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def small_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name resnet18 builds a network that is exported at once."""
    monkeypatch.setitem(ARCHITECTURES, "resnet18", tiny)
    preprocess = ImagePreprocess(resize="crop", sizes=((32, 32),), shorter_side=36)
    change(monkeypatch, "resnet18", preprocess=preprocess)


def tiny(num_classes: int = 1000) -> ResNet:
    return ResNet(BasicBlock, ONE_EACH, num_classes, widths=(4, 4, 6, 8))


def change(monkeypatch: pytest.MonkeyPatch, name: str, **fields: Any) -> None:
    monkeypatch.setitem(PRETRAINED, name, dataclasses.replace(PRETRAINED[name], **fields))


def saved(network: nn.Module, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    return path


def listed(names: tuple[str, ...], folder: Path) -> Path:
    path = folder / "categories.txt"
    path.write_text("\n".join(names) + "\n")
    return path


def published(folder: Path, *arguments: str | Path) -> tuple[ModelCard, Engine]:
    """By the command line, then read from the repository as the service does."""
    main([*map(str, arguments), "--repository", str(folder / "repository")])
    models, refused = find_models(folder / "repository")
    assert refused == [] and len(models) == 1
    return models[0].card, Engine(models[0].card, read_graph(StoredModel(*models[0])))


def refusal(*arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as refused:
        main([str(argument) for argument in arguments])
    assert str(refused.value).startswith("cannot publish: ")
    return str(refused.value)


def random_samples(shape: tuple[int, ...], count: int) -> list[NDArray[np.generic]]:
    random = np.random.default_rng(count)
    return [random.integers(0, 256, shape, np.uint8) for _ in range(count)]


# --- torchvision ---


def by_torchvision(network: Callable[[Tensor], Any], samples: list[NDArray[np.generic]], preset: Any) -> Any:
    """Normalised as the preset states, (x - mean) / std of 0 to 1, written out once more; channels first."""
    pixels = torch.from_numpy(np.stack(samples)).double() / 255
    normalised = (pixels - torch.tensor(preset.mean).double()) / torch.tensor(preset.std).double()
    with torch.inference_mode():
        return network(normalised.movedim(-1, 1).float())


@pytest.mark.parametrize("name, suffix", [("alexnet", ".safetensors"), ("resnet18", ".pth")])
def test_a_published_classifier_answers_as_in_torchvision(
    torchvision_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "alexnet", narrow_alexnet)
    weights = attrgetter(WEIGHTS[name])(torchvision_models)
    reference = getattr(torchvision_models, name)(weights=None)
    if name == "alexnet":
        reference.classifier = head(256 * 6 * 6, 32, 1000, 0.5)
    reference.eval()
    test_architectures.unsettle_batch_norms(reference)
    samples = random_samples((224, 224, 3), 2)
    preset = weights.transforms()
    with torch.no_grad():  # random weights find everything equally likely, which would hide a difference
        spread = by_torchvision(reference, samples, preset).std()
        for parameter in list(reference.parameters())[-2:]:
            parameter.mul_(3 / spread)
    card, engine = published(tmp_path, name, "--weights", saved(reference, tmp_path / f"mine{suffix}"))
    expected = by_torchvision(reference, samples, preset).softmax(dim=1)
    assert expected.max() > 0.01
    found = torch.from_numpy(np.stack([outputs[0] for outputs in engine.run(samples)]))
    assert_close(found, expected, atol=1e-4, rtol=0)
    assert card.categories == tuple(weights.meta["categories"])
    assert card.complexity.parameters == sum(parameter.numel() for parameter in reference.parameters())


def narrow_alexnet(num_classes: int = 1000) -> AlexNet:
    """Nine tenths of an AlexNet's weights lie in two layers, which would only be copied about."""
    return AlexNet(alexnet(num_classes).features, 6, head(256 * 6 * 6, 32, num_classes, 0.5))


def test_a_published_watcher_answers_as_in_torchvision(
    torchvision_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resnet = torchvision_models.video.resnet
    reference = resnet.VideoResNet(resnet.BasicBlock, [resnet.Conv3DSimple] * 4, ONE_EACH, resnet.BasicStem, 3).eval()
    test_architectures.unsettle_batch_norms(reference)
    monkeypatch.setitem(
        ARCHITECTURES, "r3d_18", lambda num_classes=400: VideoResNet(num_classes, (64, 128, 256, 512), ONE_EACH)
    )
    small = {"frames": 4, "size": (32, 32)}
    change(monkeypatch, "r3d_18", preprocess=PRETRAINED["r3d_18"].preprocess.model_copy(update=small))
    arguments = ("--weights", saved(reference, tmp_path / "mine.pt"), "--categories", listed(PETS, tmp_path))
    _, engine = published(tmp_path, "r3d_18", *arguments)
    samples = random_samples((4, 32, 32, 3), 3)
    preset = attrgetter(WEIGHTS["r3d_18"])(torchvision_models).transforms()
    expected = by_torchvision(reference, samples, preset).softmax(dim=1)
    found = torch.from_numpy(np.stack([outputs[0] for outputs in engine.run(samples)]))
    assert_close(found, expected, atol=1e-4, rtol=0)


def segmenter_of_torchvision(torchvision_models: Any, auxiliary: bool) -> nn.Module:
    layers = torchvision_models.resnet
    backbone = layers.ResNet(layers.Bottleneck, ONE_EACH, replace_stride_with_dilation=STRIDE_8)
    network: nn.Module = torchvision_models.segmentation.fcn._fcn_resnet(backbone, 21, auxiliary).eval()
    test_architectures.unsettle_batch_norms(network)
    return network


def small_fcn(num_classes: int = 21, aux_loss: bool = True) -> FCN:
    return FCN(Backbone(Bottleneck, ONE_EACH, replace_stride_with_dilation=STRIDE_8), num_classes, aux_loss)


def test_a_published_segmenter_answers_as_in_torchvision(
    torchvision_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = segmenter_of_torchvision(torchvision_models, auxiliary=False)
    monkeypatch.setitem(ARCHITECTURES, "fcn_resnet50", small_fcn)
    change(monkeypatch, "fcn_resnet50", preprocess=ImagePreprocess(resize="pad", sizes=((128, 136),)))
    card, engine = published(tmp_path, "fcn_resnet50", "--weights", saved(reference, tmp_path / "mine.pth"))
    samples = random_samples((67, 75, 3), 2)  # no whole cells of the grid
    preset = attrgetter(WEIGHTS["fcn_resnet50"])(torchvision_models).transforms()
    confidence, mask = by_torchvision(reference, samples, preset)["out"].softmax(dim=1).max(dim=1)
    found = engine.run(samples)
    assert_close(torch.from_numpy(np.stack([outputs[1] for outputs in found])), confidence, atol=1e-4, rtol=0)
    assert np.mean(np.stack([outputs[0] for outputs in found]) != mask.numpy()) < 1e-4  # two categories may tie
    assert card.categories[15] == "person" and card.palette is not None
    # As the devkit's documentation draws them: background, aeroplane, bicycle, bird, …, person, …, tvmonitor.
    assert card.palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert (card.palette[15], card.palette[20]) == ((192, 128, 128), (0, 64, 128))


def test_the_auxiliary_head_of_a_segmenter_comes_along(
    torchvision_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = segmenter_of_torchvision(torchvision_models, auxiliary=True)
    monkeypatch.setitem(ARCHITECTURES, "fcn_resnet50", small_fcn)
    network = build_network("fcn_resnet50", read_weights(saved(reference, tmp_path / "mine.pth")))
    assert isinstance(network, FCN)
    samples = random_samples((67, 75, 3), 1)
    preset = attrgetter(WEIGHTS["fcn_resnet50"])(torchvision_models).transforms()
    expected = by_torchvision(reference, samples, preset)
    logits, auxiliary = by_torchvision(network.forward_with_auxiliary, samples, preset)
    assert_close(logits, expected["out"], atol=1e-4, rtol=1e-4)
    assert_close(auxiliary, expected["aux"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PRETRAINED)
def test_what_is_published_is_what_torchvision_brings(torchvision_models: Any, name: str) -> None:
    found, weights = PRETRAINED[name], attrgetter(WEIGHTS[name])(torchvision_models)
    preset = weights.transforms()
    assert pretrained.ADDRESS + found.file == weights.url
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


# --- without torchvision ---


def test_categories_are_as_many_as_the_networks_tell_apart() -> None:
    for name, counted in {"imagenet": 1000, "kinetics400": 400, "voc": 21}.items():
        assert len(set(read_categories(CATEGORIES / f"{name}.txt"))) == counted


@pytest.mark.usefixtures("small_resnet")
def test_weights_of_ones_own_are_published_with_ones_own_categories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = tiny(3).eval()
    arguments = ("--weights", saved(network, tmp_path / "mine.safetensors"), "--categories", listed(PETS, tmp_path))
    card, engine = published(tmp_path, "resnet18", *arguments, "--name", "pets", "--default")
    assert (card.key, card.default, card.categories, card.metrics) == ("pets:1", True, PETS, ())
    digest = hashlib.sha256((tmp_path / "mine.safetensors").read_bytes()).hexdigest()
    assert digest in card.training.recipe and "torchvision" not in card.model_dump_json()
    assert "published pets:1" in capsys.readouterr().out
    (sample,) = random_samples((32, 32, 3), 1)
    with torch.inference_mode():
        pixels = torch.from_numpy(sample).permute(2, 0, 1)[None] / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        expected = network((pixels - mean[:, None, None]) / std[:, None, None]).softmax(dim=1)
    assert_close(torch.from_numpy(engine.run([sample])[0][0]), expected[0], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("small_resnet")
def test_weights_are_published_in_float16_where_it_is_asked_for(tmp_path: Path) -> None:
    arguments = ("--weights", saved(tiny(3), tmp_path / "mine.safetensors"), "--categories", listed(PETS, tmp_path))
    card, engine = published(tmp_path, "resnet18", *arguments, "--name", "pets")
    half, halved = published(tmp_path / "half", "resnet18", *arguments, "--name", "half", "--precision", "fp16")
    assert (card.precision, half.precision) == ("float32", "float16")
    assert half.files["model.onnx"].bytes < 0.75 * card.files["model.onnx"].bytes
    (sample,) = random_samples((32, 32, 3), 1)
    ours, theirs = (torch.from_numpy(runner.run([sample])[0][0]) for runner in (halved, engine))
    assert_close(ours, theirs, atol=2e-3, rtol=0)


@pytest.mark.usefixtures("small_resnet")
def test_published_weights_are_downloaded_once_and_say_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = address_of(tmp_path, monkeypatch, saved(tiny(), tmp_path / "weights").read_bytes())
    card, _ = published(tmp_path, "resnet18")
    assert card.training.recipe.startswith(f"torchvision {there.name}: https://")
    assert "69.8% top-1" in card.description and card.dataset.name == "ImageNet-1K"
    there.unlink()
    assert pretrained.download("resnet18").name == there.name


def test_a_damaged_file_in_the_cache_is_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = address_of(tmp_path, monkeypatch, b"as published")
    cached = tmp_path / "hub" / "checkpoints" / there.name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"as pub")
    assert pretrained.download("resnet18") == cached
    assert cached.read_bytes() == b"as published"


def test_a_download_with_another_sha256_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = address_of(tmp_path, monkeypatch, b"as published")
    there.write_bytes(b"as tampered with")
    message = refusal("resnet18", "--repository", tmp_path / "repository")
    assert "is not what was published" in message and hashlib.sha256(b"as tampered with").hexdigest() in message
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


def test_without_a_network_it_says_what_to_download_and_what_to_do_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "ADDRESS", "http://127.0.0.1:9/models/")  # the port of "discard"
    message = refusal("resnet50", "--name", "fifty", "--default", "--repository", tmp_path / "my models")
    assert "http://127.0.0.1:9/models/resnet50-11ad3fa6.pth" in message
    command = message.splitlines()[-1].strip()
    assert command == (
        "python -m models.pretrained resnet50 --name fifty --default "
        f"--repository '{tmp_path}/my models' --weights resnet50-11ad3fa6.pth"
    )


def address_of(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> Path:
    """Puts the weights of resnet18 at an address here, under a name that ends with their sha256's beginning."""
    there = folder / "there" / f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    there.parent.mkdir()
    there.write_bytes(content)
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setattr(pretrained, "ADDRESS", f"{there.parent.as_uri()}/")
    change(monkeypatch, "resnet18", file=there.name)
    return there


# --- what does not fit ---


def tampered(change: Callable[[dict[str, Tensor]], object], path: Path) -> Path:
    state = dict(tiny(3).state_dict())
    change(state)
    torch.save(state, path)
    return path


@pytest.mark.usefixtures("small_resnet")
@pytest.mark.parametrize(
    "change, named",
    [
        (lambda state: state.pop("layer2.0.conv1.weight"), "missing: layer2.0.conv1.weight"),
        (lambda state: state.pop("fc.bias"), "missing: fc.bias"),
        (lambda state: state.update({"neck.weight": torch.ones(1)}), "unexpected: neck.weight"),
        (
            lambda state: state.update({"conv1.weight": torch.ones(4, 3, 5, 5)}),
            "of another shape: conv1.weight [4, 3, 5, 5] for [4, 3, 7, 7]",
        ),
        (
            lambda state: state.update({"conv1.weight": torch.ones(4, 3, 7, 7, dtype=torch.int8)}),
            "not of floating point: conv1.weight",
        ),
        (lambda state: [state.pop(key) for key in list(state) if key.startswith("layer")], "layer1.0.bn1.weight"),
        (lambda state: state.update({"fc.weight": torch.full((3, 8), torch.nan)}), "not finite: fc.weight"),
        (lambda state: state.update({"epoch": 3}), "what is no tensor: epoch"),
    ],
    ids=["missing", "no classes", "unexpected", "shape", "integers", "many", "not a number", "no tensor"],
)
def test_weights_of_another_network_are_refused_naming_what_differs(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], named: str
) -> None:
    path = tampered(change, tmp_path / "weights.pt")
    message = refusal(
        "resnet18", "--weights", path, "--categories", listed(PETS, tmp_path), "--repository", tmp_path / "repository"
    )
    assert named in message
    assert len(message) < 600
    assert not any((tmp_path / "repository").glob("*/*"))


@pytest.mark.usefixtures("small_resnet")
def test_counters_of_batches_may_be_missing_and_weights_may_lie_beside_other_values(tmp_path: Path) -> None:
    network = tiny(3)
    state = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save({"model": state, "epoch": 7}, tmp_path / "checkpoint.pt")
    loaded = build_network("resnet18", read_weights(tmp_path / "checkpoint.pt"))
    assert_close(loaded.state_dict(), network.state_dict())
    assert not loaded.training


@pytest.mark.usefixtures("small_resnet")
def test_half_precision_is_computed_in_single(tmp_path: Path) -> None:
    path = saved(tiny(3).half(), tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in build_network("resnet18", read_weights(path)).parameters()} == {
        torch.float32
    }


@pytest.mark.usefixtures("small_resnet")
def test_as_many_categories_must_be_named_as_the_weights_tell_apart(tmp_path: Path) -> None:
    path = saved(tiny(3), tmp_path / "weights.pt")
    message = refusal("resnet18", "--weights", path)
    assert "tells 3 categories apart, 1000 are named" in message and "--categories" in message
    message = refusal("resnet18", "--weights", path, "--categories", listed(PETS[:2], tmp_path))
    assert "tells 3 categories apart, 2 are named" in message


def test_a_category_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    message = refusal("resnet18", "--weights", tmp_path, "--categories", listed(("crane", "newt", "crane"), tmp_path))
    assert "more than once" in message and message.endswith("crane")


class Intruder:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["zip", "before 1.6", "pickle"])
def test_a_pickle_that_asks_for_more_than_tensors_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    path, marker = tmp_path / "weights.pth", tmp_path / "intruded"
    content = {"fc.weight": torch.ones(1), "more": Intruder(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Intruder(marker), protocol=0))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refusal("resnet18", "--weights", path)
    assert f"{path} asks for posix.system" in message or f"{path} asks for nt.system" in message
    assert "state_dict()" in message
    assert not marker.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04", b"hello world, no weights here\n" * 9])
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path / name} is neither" in refusal("resnet18", "--weights", tmp_path / name)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_is_cut_short_or_not_there_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert str(path) in refusal("resnet18", "--weights", path)
    saved(tiny(3), path)
    path.write_bytes(path.read_bytes()[:-700])
    assert str(path) in refusal("resnet18", "--weights", path)


def test_a_list_of_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "weights.pt")
    assert "holds a list; expected tensors by name" in refusal("resnet18", "--weights", tmp_path / "weights.pt")
