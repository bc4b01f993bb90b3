"""Weights from elsewhere -> a servable model: those that torchvision publishes, or a file at hand.

    python -m models.pretrained NAME                                       downloads, checks the sha256, publishes
    python -m models.pretrained NAME --weights FILE                        the same file, downloaded by hand
    python -m models.pretrained NAME --weights FILE --categories FILE      one's own, for the network NAME

Whether a file is the published one is told by its sha256, never by its name. Of the two sets of weights that there are
of ResNet-50 and ResNet-101 it is the newer, IMAGENET1K_V2, as torchvision itself brings by default.
"""

import argparse
import contextlib
import hashlib
import http.client
import math
import re
import shlex
import socket
import sys
import tempfile
import urllib.error
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from models.architectures import ARCHITECTURES
from models.convert import PARITY_BATCHES, ExportError, export_graph, halve_graph, input_spec, output_specs, parity
from models.evaluate import torch_predict
from models.graph import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    KINETICS_MEAN,
    KINETICS_STD,
    ServedClassifier,
    ServedSegmenter,
    ServedWatcher,
)
from models.inspect import complexity
from models.options import PRECISIONS, add_precision, model_name
from models.runs import hardware
from service.cards import (
    Colour,
    Dataset,
    ImagePreprocess,
    ModelCard,
    Parity,
    Precision,
    Task,
    Training,
    VideoPreprocess,
)
from service.engine import Engine
from service.errors import ModelRefused
from service.repository import BUNDLED, GRAPH, file_entry, next_version, publish

ADDRESS = "https://download.pytorch.org/models/"
CATEGORIES = Path(__file__).resolve().parent / "categories"
MASK_VALUES = 256
_TIMEOUT_SECONDS = 60
_RECIPES = "https://github.com/pytorch/vision/tree/main/references/"
_LICENCE = "weights: BSD 3-Clause (torchvision); the data's own terms: "
_NAMED = 5  # tensors that a refusal names of each kind; the others are counted
_SERVED = {"classify": ServedClassifier, "segment": ServedSegmenter, "video": ServedWatcher}


class WeightsError(Exception):
    """Weights or categories cannot be had or do not fit; the message says what would."""


@dataclass(frozen=True)
class Pretrained:
    """Weights that torchvision publishes, fed as it feeds them when it measures them."""

    file: str  # ends with the first eight digits of its sha256
    task: Task
    description: str
    stated: str  # what torchvision measured
    preprocess: ImagePreprocess | VideoPreprocess
    categories: str  # a file of CATEGORIES
    dataset: Dataset
    recipe: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def sha256_prefix(self) -> str:
        return Path(self.file).stem.rpartition("-")[2]


def publish_pretrained(
    name: str,
    weights: Path,
    categories: Path | None,
    repository: Path,
    *,
    model: str,
    default: bool,
    precision: Precision = "float32",
) -> ModelCard:
    """Exports network ``name`` with the file ``weights`` and publishes it as the next version of ``model``.

    ``categories`` None takes those of torchvision's weights. Raises ``WeightsError``, and ``ExportError`` or
    ``ModelRefused`` where the graph does not answer like PyTorch.
    """
    pretrained = PRETRAINED[name]
    network, names = _network_and_categories(name, weights, categories)
    served = _SERVED[pretrained.task](network, pretrained.mean, pretrained.std).eval()
    shape = _sample_shape(pretrained.preprocess)
    samples = random_pictures(_compared_shape(shape, pretrained.task), sum(PARITY_BATCHES))
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / GRAPH
        export_graph(served, pretrained.task, samples, graph)
        if precision == "float16":
            halve_graph(graph)
        with torch.inference_mode():
            prepared = served.prepare(torch.zeros(1, *shape, dtype=torch.uint8))
        description, dataset, training = _provenance(pretrained, weights)
        draft = ModelCard(
            name=model,
            version=next_version(repository, model),
            task=pretrained.task,
            default=default,
            architecture=f"{name}()",
            precision=precision,
            description=description,
            categories=names,
            palette=voc_colours(len(names)) if pretrained.task == "segment" else None,
            input=input_spec(pretrained.task, shape),
            preprocess=pretrained.preprocess,
            outputs=output_specs(pretrained.task, len(names)),
            dataset=dataset,
            metrics=(),
            training=training,
            parity=Parity(largest_difference=0.0, samples=0),
            complexity=complexity(network, prepared),
            files={GRAPH: file_entry(graph)},
        )
        agreed = parity(
            torch_predict(served, torch.device("cpu")),
            Engine(draft, graph.read_bytes(), threads=0).run,
            samples,
            precision,
        )
        card = draft.model_copy(update={"parity": agreed})
        publish(card, graph, repository)
    return card


def _network_and_categories(
    name: str, weights: Path, categories: Path | None
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    pretrained = PRETRAINED[name]
    names = read_categories(categories or CATEGORIES / pretrained.categories)
    network = build_network(name, read_weights(weights))
    if (count := _categories_told_apart(network)) != len(names):
        hint = "" if categories else "; name its own by --categories FILE"
        raise WeightsError(f"{weights} tells {count} categories apart, {len(names)} are named{hint}")
    if pretrained.task == "segment" and count > MASK_VALUES:
        raise WeightsError(f"{weights} tells {count} categories apart, a mask holds at most {MASK_VALUES}")
    return network, names


# --- weights ---


def download(name: str) -> Path:
    """The published weights of ``name``, in the folder where torch and torchvision keep theirs.

    What lies there already is not downloaded again if its sha256 is right.
    """
    pretrained = PRETRAINED[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / pretrained.file
    if path.is_file() and _is_published(pretrained, path):
        return path
    url = ADDRESS + pretrained.file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _timeout(_TIMEOUT_SECONDS):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=pretrained.sha256_prefix)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise WeightsError(f"{url} could not be brought to {path.parent}: {error}") from error
    except RuntimeError as error:  # that its sha256 is another
        raise WeightsError(f"what came from {url} is not what was published: {error}") from error
    return path


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """torch.hub takes none, and would wait for ever where a firewall swallows what is sent."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of one by ``torch.save``; nothing else is unpickled.

    Of a checkpoint that keeps them beside other plain values, those under ``model`` or ``state_dict``. Raises
    ``WeightsError``.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # of a file that is anything at all, the readers raise anything at all
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(
                f"{path} asks for {asked[1]}, which is no tensor, and was not loaded: save the weights alone, by "
                "torch.save(network.state_dict(), FILE) or as safetensors"
            ) from error
        raise WeightsError(f"{path} is neither a whole .safetensors file nor one by torch.save") from error
    for key in ("model", "state_dict"):
        held = held[key] if isinstance(held, dict) and isinstance(held.get(key), dict) else held
    if not isinstance(held, dict):
        raise WeightsError(f"{path} holds a {type(held).__name__}; expected tensors by name, as state_dict() gives")
    if others := [str(key) for key, value in held.items() if not isinstance(value, Tensor)]:
        raise WeightsError(f"{path} holds what is no tensor: {_some(others)}; expected what state_dict() gives")
    return dict(held)  # without the versions of its modules, which torch.save adds


def build_network(name: str, state: dict[str, Tensor]) -> nn.Module:
    """Network ``name`` with the weights ``state``, which also say how many categories it has and, for an FCN, whether
    there is an auxiliary head. Raises ``WeightsError``, naming the tensors that are missing, too many or misshapen."""
    with torch.device("meta"):
        last = _last(ARCHITECTURES[name]())
    options: dict[str, int | bool] = {}
    if last in state and state[last].dim() > 0:
        options["num_classes"] = len(state[last])
    if PRETRAINED[name].task == "segment":
        options["aux_loss"] = any(key.startswith("aux_classifier.") for key in state)
    network = ARCHITECTURES[name](**options)
    expected = network.state_dict()
    # How many batches a batch norm has seen is needed by nothing here, and older files lack it.
    needed = [key for key in expected if not key.endswith("num_batches_tracked")]
    shared = [key for key in expected if key in state]
    problems = {
        "missing": [key for key in needed if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {list(state[key].shape)} for {list(expected[key].shape)}"
            for key in shared
            if state[key].shape != expected[key].shape
        ],
        "not of floating point": [
            key for key in shared if expected[key].is_floating_point() and not state[key].is_floating_point()
        ],
        "not finite": [key for key in shared if not state[key].isfinite().all()],
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in problems.items() if keys)
        raise WeightsError(f"the weights are not those of a {name}: {found}")
    network.load_state_dict(expected | state)
    return network.eval()


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _last(network: nn.Module) -> str:
    """The name of the bias of the layer that tells the categories apart."""
    return [key for key, _ in network.named_parameters() if not key.startswith("aux_classifier.")][-1]


def _categories_told_apart(network: nn.Module) -> int:
    return len(network.get_parameter(_last(network)))


def _is_published(pretrained: Pretrained, path: Path) -> bool:
    return _sha256(path).startswith(pretrained.sha256_prefix)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the card ---


def read_categories(path: Path) -> tuple[str, ...]:
    """One a line, in the order of the network's outputs. Raises ``WeightsError``."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read as text, one category a line: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise WeightsError(f"{path} names more than once, which no answer could tell apart: {_some(twice)}")
    return names


def random_pictures(shape: tuple[int, ...], count: int) -> list[NDArray[np.uint8]]:
    """(…, H, W, 3), uint8: blurred patches of colour with some grain, as in photographs nothing is flat."""
    random = np.random.default_rng(0)
    height, width = shape[-3:-1]

    def picture() -> NDArray[np.uint8]:
        patches = Image.fromarray(random.integers(0, 256, (7, 7, 3), np.uint8))
        blurred = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        return (blurred + random.normal(0, 8, blurred.shape)).clip(0, 255).astype(np.uint8)

    each = math.prod(shape[:-3])  # the frames of a clip
    return [np.stack([picture() for _ in range(each)]).reshape(shape) for _ in range(count)]


def voc_colours(count: int) -> tuple[Colour, ...]:
    """VOC's own, black first, for up to 256 categories: the bits of a number, lowest first, go to red, green and blue
    in turn, there from the highest down (VOClabelcolormap.m of the development kit, Everingham et al. 2010)."""

    def channel(number: int, first: int) -> int:
        return sum((number >> (3 * place + first) & 1) << (7 - place) for place in range(3))

    return tuple((channel(number, 0), channel(number, 1), channel(number, 2)) for number in range(count))


def _sample_shape(preprocess: ImagePreprocess | VideoPreprocess) -> tuple[int, ...]:
    if isinstance(preprocess, VideoPreprocess):
        return (preprocess.frames, *preprocess.size, 3)
    return (*preprocess.sizes[0], 3)


def _compared_shape(shape: tuple[int, ...], task: Task) -> tuple[int, ...]:
    """A segmenter's graph takes pictures of any size: a quarter of its own spares minutes on a CPU."""
    return (shape[0] // 4, shape[1] // 4, 3) if task == "segment" else shape


def _provenance(pretrained: Pretrained, path: Path) -> tuple[str, Dataset, Training]:
    """The card's description, data and training: torchvision's for its own weights, what is known of any other."""
    if _is_published(pretrained, path):
        description = f"{pretrained.description} torchvision states {pretrained.stated}; it was not measured here."
        recipe, dataset = f"torchvision {pretrained.file}: {pretrained.recipe}", pretrained.dataset
    else:
        description = f"Weights from the file {path.name}."
        recipe = f"not stated; {path.name}, sha256 {_sha256(path)}"
        dataset = Dataset(name="not stated", source="not stated", licence="not stated", splits={})
    trained = f"not stated; exported on {hardware()}"
    return description, dataset, Training(recipe=recipe, epochs=0, seed=0, hardware=trained, hours=0.0)


# --- what torchvision publishes ---


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
    )


_CLASSIFICATION = f"{_RECIPES}classification#"
_ISSUE = "https://github.com/pytorch/vision/issues/3995"  # of the newer weights' recipe, blog post included

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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Publish a servable model of weights that were trained elsewhere.")
    parser.add_argument("network", choices=PRETRAINED, metavar="NAME", help=", ".join(PRETRAINED))
    parser.add_argument("--weights", type=Path, help="a file at hand: .safetensors, or torch.save's of a state_dict")
    parser.add_argument("--categories", type=Path, help="one category a line, for weights of one's own")
    parser.add_argument("--repository", type=Path, default=BUNDLED, help=f"default: {BUNDLED}")
    parser.add_argument("--name", type=model_name, help="the model's name (default: the network's)")
    parser.add_argument("--default", action="store_true", help="answer the route when no model is named")
    add_precision(parser)
    arguments = parser.parse_args(argv)
    pretrained = PRETRAINED[arguments.network]
    try:
        weights = arguments.weights or download(arguments.network)
    except WeightsError as error:
        given = shlex.join([*(sys.argv[1:] if argv is None else argv), "--weights", pretrained.file])
        raise SystemExit(
            f"cannot publish: {error}\ndownload {ADDRESS}{pretrained.file} by hand, and give it:\n"
            f"  python -m models.pretrained {given}"
        ) from error
    try:
        card = publish_pretrained(
            arguments.network,
            weights,
            arguments.categories,
            arguments.repository,
            model=arguments.name or arguments.network,
            default=arguments.default,
            precision=PRECISIONS[arguments.precision],
        )
    except (WeightsError, ExportError, ModelRefused, FileExistsError) as error:
        raise SystemExit(f"cannot publish: {error}") from error
    place = arguments.repository / card.name / str(card.version)
    print(f"published {card.key} in {place}: {card.training.recipe}; {len(card.categories)} categories")
    print(f"differs from PyTorch by {card.parity.largest_difference:.1e}; serve it:")
    print(f"  CONVSERVE_REPOSITORY={arguments.repository.resolve()} make serve")


if __name__ == "__main__":
    main()
