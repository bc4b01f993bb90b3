"""Weights from elsewhere: torchvision's own networks with random weights, published, answer as they do in torchvision;
addresses are files here and a port that nobody listens to."""

import hashlib
import shutil
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.testing import assert_close

from models.architectures import ARCHITECTURES
from models.architectures.alexnet import AlexNet, alexnet, head
from models.architectures.fcn import FCN, STRIDE_8
from models.architectures.resnet import Backbone, Bottleneck
from models.architectures.video_cnn import VideoResNet
from models.pretrained import main
from models.published import PRETRAINED
from models.weights import build_network, download, read_weights
from service.engines.onnxruntime import Engine
from service.repository.card import ImagePreprocess, ModelCard
from service.repository.folder import StoredModel, find_models, read_graph
from tests import small_weights
from tests.models import test_architectures
from tests.models.test_published import WEIGHTS
from tests.small_weights import ONE_EACH, PETS, address_of, change, listed, refusal, saved, tiny

small_resnet = small_weights.small_resnet  # the fixture
torchvision_models = test_architectures.torchvision_models  # the fixture, which skips where there is no torchvision

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def published(folder: Path, *arguments: str | Path) -> tuple[ModelCard, Engine]:
    """Publishes by the command line, then reads from the repository as the service does."""
    main([*map(str, arguments), "--repository", str(folder / "repository")])
    models, refused = find_models(folder / "repository")
    assert refused == [] and len(models) == 1
    return models[0].card, Engine(models[0].card, read_graph(StoredModel(*models[0])))


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


# --- without torchvision ---


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
    assert download("resnet18").name == there.name


def test_without_a_network_it_says_what_to_download_and_what_to_do_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("models.published.ADDRESS", "http://127.0.0.1:9/models/")  # the port of "discard"
    message = refusal("resnet50", "--name", "fifty", "--default", "--repository", tmp_path / "my models")
    assert "http://127.0.0.1:9/models/resnet50-11ad3fa6.pth" in message
    interpreter, arguments = message.splitlines()[-1].strip().split(" ", 1)
    assert shutil.which(interpreter) or Path(interpreter).is_file()
    assert arguments == (
        "-m models.pretrained resnet50 --name fifty --default "
        f"--repository '{tmp_path}/my models' --weights resnet50-11ad3fa6.pth"
    )
