"""Files of weights: what fits is loaded, what does not is refused by name, and nothing in them is run."""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from models.weights import build_network, download, read_weights
from tests import small_weights
from tests.small_weights import PETS, address_of, listed, refusal, saved, tiny

small_resnet = small_weights.small_resnet  # the fixture

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_a_damaged_file_in_the_cache_is_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = address_of(tmp_path, monkeypatch, b"as published")
    cached = tmp_path / "hub" / "checkpoints" / there.name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"as pub")
    assert download("resnet18") == cached
    assert cached.read_bytes() == b"as published"


def test_a_download_with_another_sha256_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = address_of(tmp_path, monkeypatch, b"as published")
    there.write_bytes(b"as tampered with")
    message = refusal("resnet18", "--repository", tmp_path / "repository")
    assert "is not what was published" in message and hashlib.sha256(b"as tampered with").hexdigest() in message
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


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
