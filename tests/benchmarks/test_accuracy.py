"""Accuracy through the running service, with models whose answers are known by hand."""

from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks import accuracy
from benchmarks.accuracy import measure
from models.datasets import DatasetError
from service.repository.card import ModelCard
from tests.folders import picture_png, write
from tests.samples import grey_png, half_red_png, square_wav
from tests.serving import Server


def card_of(client: httpx.Client, task: str) -> ModelCard:
    return next(card for card in map(ModelCard.model_validate, client.get("/models").json()) if card.task == task)


def test_pictures_are_right_as_often_as_their_folder_says(client: httpx.Client, tmp_path: Path) -> None:
    """The grey model names the brightness: three of four lie in the right folder."""
    for level, folder in ((10, "10"), (20, "20"), (21, "21"), (40, "20")):
        write(tmp_path / "test" / folder / f"{level}.png", grey_png(level))
    metrics = measure(client, card_of(client, "classify"), tmp_path, "test")
    assert (metrics[0].name, metrics[0].value, metrics[0].samples, metrics[0].split) == ("accuracy", 0.75, 4, "test")


def test_sounds_are_answered_as_a_whole(client: httpx.Client, tmp_path: Path) -> None:
    write(tmp_path / "test" / "loud" / "a.wav", square_wav(0.9, seconds=0.5))
    write(tmp_path / "test" / "quiet" / "a.wav", square_wav(0.9, seconds=0.5))
    metrics = {metric.name: metric.value for metric in measure(client, card_of(client, "audio"), tmp_path, "test")}
    assert metrics["accuracy"] == 0.5
    assert metrics["negative log likelihood"] == pytest.approx(-(np.log(0.9) + np.log(0.1)) / 2, abs=0.1)


def test_masks_are_compared_at_the_pictures_own_size(client: httpx.Client, tmp_path: Path) -> None:
    """Red is the left half. The mask's left half is red but for ten void columns and ten that are dark: of 60 rows by
    100 columns, red is 30 right of a union of 40 and dark 50 of 60 columns; 80 of 90 known ones are right."""
    mask = np.zeros((60, 100), np.uint8)
    mask[:, :40] = 1
    mask[:, 40:50] = 255
    mask[:, :10] = 0
    card = card_of(client, "segment")
    assert card.categories.index("red") == 1
    write(tmp_path / "categories.txt", "\n".join(card.categories).encode())
    write(tmp_path / "test" / "images" / "a.png", half_red_png(60, 100))
    write(tmp_path / "test" / "masks" / "a.png", picture_png(mask))
    metrics = {metric.name: metric.value for metric in measure(client, card, tmp_path, "test")}
    assert metrics["mIoU"] == pytest.approx((30 / 40 + 50 / 60) / 2, abs=0.02)
    assert metrics["pixel accuracy"] == pytest.approx(80 / 90, abs=0.02)


def test_categories_that_the_model_does_not_know_are_refused(client: httpx.Client, tmp_path: Path) -> None:
    write(tmp_path / "test" / "cat" / "a.png", grey_png(1))
    with pytest.raises(DatasetError, match=r"holds \['cat'\], which tiny-classify:1 does not know"):
        measure(client, card_of(client, "classify"), tmp_path, "test")


def test_a_file_that_the_service_refuses_is_named(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    write(tmp_path / "test" / "10" / "torn.png", grey_png(10)[:40])
    name = card_of(client, "classify").name
    with pytest.raises(SystemExit, match=r'cannot measure: .*torn\.png: .*"status":400'):
        accuracy.main([str(tmp_path), "--url", server.url, "--model", name])


def test_the_command_prints_every_test_split(
    server: Server, client: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "test" / "10" / "a.png", grey_png(10))
    write(tmp_path / "test-dark" / "11" / "a.png", grey_png(12))
    card = card_of(client, "classify")
    accuracy.main([str(tmp_path), "--url", server.url, "--model", card.name])
    printed = capsys.readouterr().out
    assert f"{card.key}: accuracy 1.0000 on 1 of {tmp_path / 'test'}\n" in printed
    assert f"{card.key}: accuracy 0.0000 on 1 of {tmp_path / 'test-dark'}\n" in printed
