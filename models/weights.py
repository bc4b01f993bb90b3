"""Files of weights and categories: download, reading, and the network that holds them."""

import contextlib
import http.client
import re
import socket
import urllib.error
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.architectures import ARCHITECTURES
from models.published import PRETRAINED

_TIMEOUT_SECONDS = 60
_AUXILIARY = "aux_classifier."  # parameters of the head that an FCN is trained with
_NAMED = 5  # tensors that a refusal names of each kind; the others are counted


class WeightsError(Exception):
    """Weights or categories that cannot be read or do not fit; the message says what would."""


def download(name: str) -> Path:
    """The published weights of ``name``, in the folder where torch and torchvision keep theirs.

    A file that is there is not downloaded again if its sha256 is right.
    """
    pretrained = PRETRAINED[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / pretrained.file
    if path.is_file() and pretrained.is_in(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _timeout(_TIMEOUT_SECONDS):
            torch.hub.download_url_to_file(pretrained.url, str(path), hash_prefix=pretrained.sha256_prefix)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise WeightsError(f"{pretrained.url} could not be brought to {path.parent}: {error}") from error
    except RuntimeError as error:  # that its sha256 is another
        raise WeightsError(f"what came from {pretrained.url} is not what was published: {error}") from error
    return path


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Sets the default timeout of sockets: torch.hub takes none, and a firewall may drop packets for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of one by ``torch.save``; nothing else is unpickled.

    A checkpoint that holds other plain values as well is read under its key ``model`` or ``state_dict``. Raises
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


def read_categories(path: Path) -> tuple[str, ...]:
    """Categories, one a line, in the order of the network's outputs. Raises ``WeightsError``, also for a blank line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read as text, one category a line: {error}") from error
    names = tuple(line.strip() for line in lines)
    if "" in names:
        raise WeightsError(f"{path}: line {names.index('') + 1} is blank; expected the category of that output")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise WeightsError(f"{path} names more than once, which no answer could tell apart: {_some(twice)}")
    return names


def build_network(name: str, state: dict[str, Tensor]) -> nn.Module:
    """Network ``name`` with the weights ``state``, which also say how many categories it has and, for an FCN, whether
    there is an auxiliary head. Raises ``WeightsError``, naming the tensors that are missing, too many or misshapen."""
    with torch.device("meta"):
        plain = ARCHITECTURES[name]()
    last = _last(plain)
    options: dict[str, int | bool] = {}
    if last in state and state[last].dim() > 0:
        options["num_classes"] = len(state[last])
    if any(key.startswith(_AUXILIARY) for key in plain.state_dict()):
        options["aux_loss"] = any(key.startswith(_AUXILIARY) for key in state)
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
    """The name of the last layer's bias, which has an entry for each category."""
    return [key for key, _ in network.named_parameters() if not key.startswith(_AUXILIARY)][-1]


def categories_told_apart(network: nn.Module) -> int:
    """The number of the network's categories."""
    return len(network.get_parameter(_last(network)))
