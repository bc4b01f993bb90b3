"""A small network under a published one's name, files of its weights, and what the command says of them."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.architectures import ARCHITECTURES
from models.architectures.resnet import BasicBlock, ResNet
from models.pretrained import main
from models.published import PRETRAINED
from service.repository.card import ImagePreprocess

ONE_EACH = (1, 1, 1, 1)
PETS = ("cat", "dog", "newt")


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


def refusal(*arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as refused:
        main([str(argument) for argument in arguments])
    assert str(refused.value).startswith("cannot publish: ")
    return str(refused.value)


def address_of(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> Path:
    """Puts the weights of resnet18 at an address here, under a name that ends with their sha256's beginning."""
    there = folder / "there" / f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    there.parent.mkdir()
    there.write_bytes(content)
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setattr("models.published.ADDRESS", f"{there.parent.as_uri()}/")
    change(monkeypatch, "resnet18", file=there.name)
    return there
