"""The report folder: its figures against hand arithmetic, its pictures by what is drawn in them."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from models import figures
from models.datasets import VOID, DatasetError, Example, category_folders
from models.figures import Bin, Group, Heading, Scene, Tile
from models.metrics import expected_calibration_error
from models.report import Subject, calibration_bins, main, of_run, write_report
from models.runs import Run, build_network
from models.tasks import TASKS
from models.train import train
from service.media.image import Region
from service.repository.card import ImagePreprocess
from service.tasks.task import Outputs
from tests import graphs
from tests.folders import SCENE, small_recipe, write, write_data, write_pictures

NAMES = tuple(TASKS)
HEADING = Heading("title", "note")
PALETTE = ((250, 200, 10), (10, 90, 160), (3, 3, 3))
WRONG = (213, 94, 0)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def of(task: str, categories: tuple[str, ...], **changed: Any) -> Subject:
    spec = ImagePreprocess(resize="crop", sizes=((4, 4),), shorter_side=4)
    palette = PALETTE[: len(categories)] if task == "segment" else None
    return Subject("tiny", "own data", TASKS[task], categories, spec, palette, {})._replace(**changed)


def content(folder: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    return held


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def colours(path: Path) -> dict[tuple[int, ...], int]:
    """The number of pixels of each colour."""
    with Image.open(path) as picture:
        found = cast(list[tuple[int, tuple[int, ...]]], picture.convert("RGB").getcolors(maxcolors=2**24))
    return {colour: count for count, colour in found}


# Metrics


def answering(probabilities: Sequence[Sequence[float]]) -> tuple[list[Example], Any]:
    """Pictures whose brightness is their place in ``probabilities``, and a model that answers with these."""
    pictures = [np.full((4, 4, 3), index, np.uint8) for index in range(len(probabilities))]

    def predict(samples: Sequence[NDArray[np.generic]]) -> list[Outputs]:
        return [(np.array(probabilities[int(np.asarray(sample).flat[0])]),) for sample in samples]

    return [Example([picture], np.ones(1), 0) for picture in pictures], predict


def test_a_classifiers_figures_are_those_of_the_hand_computed_example(tmp_path: Path) -> None:
    rows = [[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.7, 0.2]]
    examples, predict = answering(rows)
    examples = [example._replace(target=target) for example, target in zip(examples, (0, 0, 1, 1), strict=True)]
    write_report(of("classify", ("a", "b", "c")), predict, examples, "val", tmp_path)
    held = content(tmp_path)
    assert held["metrics"]["accuracy"] == 0.75
    assert (held["split"], held["files"]) == ("val", 4)
    assert held["confusion"] == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert held["categories"] == [
        {"name": "a", "files": 2, "recall": 0.5, "precision": 1.0, "IoU": 0.5},
        {"name": "b", "files": 2, "recall": 1.0, "precision": 0.6667, "IoU": 0.6667},
        {"name": "c", "files": 0, "recall": None, "precision": None, "IoU": None},
    ]
    filled = {round(each["confidence"], 4): each["right"] for each in held["calibration"] if each["answers"]}
    assert filled == {0.6: 0.0, 0.7: 1.0, 0.8: 1.0}
    assert files(tmp_path) == ["confusion.png", "metrics.json", "reliability.png", "samples.png"]  # without a history


def test_masks_are_counted_by_pixel_and_shown_in_the_palette_with_what_is_wrong(tmp_path: Path) -> None:
    truth, answer = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    truth[:4], answer[:6] = 1, 1  # 32 pixels are 1; 16 more are taken for it
    truth[0, 0] = VOID
    example = Example([np.full((10, 8, 3), 99, np.uint8)], np.ones(1), truth, Region(1, 0, 8, 8))

    def predict(samples: Sequence[NDArray[np.generic]]) -> list[Outputs]:
        padded = np.full((10, 8), 2, np.uint8)  # what lies beside the picture is not to be seen
        padded[1:9] = answer
        return [(padded, np.full((10, 8), 0.9, np.float32)) for _ in samples]

    write_report(of("segment", ("0", "1", "2")), predict, [example], "test", tmp_path)
    held = content(tmp_path)
    assert held["confusion"] == [[16, 16, 0], [0, 31, 0], [0, 0, 0]]
    assert held["categories"][1] == {"name": "1", "pixels": 31, "recall": 1.0, "precision": 0.6596, "IoU": 0.6596}
    assert [each["answers"] for each in held["calibration"] if each["answers"]] == [63]
    drawn = colours(tmp_path / "samples.png")
    # Each panel's 64 pixels are drawn at one size: 0 covers 32 in the truth and 16 in the answer, 16 are wrong.
    assert drawn[PALETTE[0]] / drawn[WRONG] == pytest.approx(3, rel=0.03)
    assert drawn[PALETTE[1]] / drawn[WRONG] == pytest.approx((31 + 48) / 16, rel=0.03)
    assert PALETTE[2] not in drawn


def test_masks_that_are_void_everywhere_leave_no_report(tmp_path: Path) -> None:
    void = Example([np.zeros((4, 4, 3), np.uint8)], np.ones(1), np.full((4, 4), VOID, np.uint8), Region(0, 0, 4, 4))

    def predict(samples: Sequence[NDArray[np.generic]]) -> list[Outputs]:
        return [(np.zeros((4, 4), np.uint8), np.ones((4, 4), np.float32)) for _ in samples]

    with pytest.raises(DatasetError, match="void everywhere"):
        write_report(of("segment", ("0", "1")), predict, [void], "test", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_wrong_answers_shown_are_the_most_confident_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, tuple[Any, ...]] = {}
    monkeypatch.setattr(figures, "draw", lambda path, figure, heading, *held: drawn.update({path.stem: held}))
    scores = np.random.default_rng(0).permutation(np.linspace(0.51, 0.99, 60))
    examples, predict = answering([[score, 1 - score] for score in scores])
    examples = [example._replace(target=index % 2) for index, example in enumerate(examples)]
    write_report(of("classify", ("a", "b")), predict, examples, "val", tmp_path)
    wrong, right = cast(list[Group], drawn["samples"][0])
    shown = [tile.score for tile in wrong.tiles]
    assert shown == sorted(scores[1::2], reverse=True)[: len(shown)] and 8 <= len(shown) < 30
    assert {(tile.answer, tile.truth) for tile in wrong.tiles} == {("a", "b")}
    assert {(tile.answer, tile.truth) for tile in right.tiles} == {("a", "a")}
    assert all(tile.score == scores[tile.picture[0, 0, 0]] for tile in right.tiles)


def test_bins_sum_up_to_the_calibration_error() -> None:
    random = np.random.default_rng(0)
    confidence = np.concatenate([random.uniform(0.3, 1, 500), [0.0, 1.0]])
    right = random.random(502) < confidence**2
    bins = calibration_bins(confidence, right)
    total = sum(each.answers * abs(each.confidence - each.right) for each in bins if each.answers) / 502
    assert total == pytest.approx(expected_calibration_error(confidence, right))
    assert sum(each.answers for each in bins) == 502 and bins[-1].upper == 1.0
    for each in bins:
        inside = (confidence >= each.lower) & ((confidence < each.upper) | (each.upper == 1.0))
        assert each.answers == inside.sum()


# What is drawn


def drawn(figure: Any, *arguments: Any) -> Figure:
    with mpl.rc_context(figures._STYLE):
        made: Figure = figure(HEADING, *arguments)
        made.draw_without_rendering()
    return made


def test_each_row_of_a_confusion_matrix_sums_to_one() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    axes = drawn(figures.confusion_matrix, counts, ("a", "b", "c")).axes[0]
    shares = cast(Any, axes.images[0].get_array()).filled(np.nan)
    assert np.array_equal(shares, [[0.75, 0.25, 0], [np.nan] * 3, [0.5, 0, 0.5]], equal_nan=True)
    written = {(text.get_position(), text.get_text()) for text in axes.texts}  # at (column, row)
    assert written == {((0, 0), "75"), ((1, 0), "25"), ((0, 2), "50"), ((2, 2), "50")}
    assert axes.get_ylabel() == "true (grey: none)"


@pytest.mark.parametrize("number", [2, 10, 21, 150])
def test_a_confusion_matrix_names_every_category_and_no_name_lies_over_another(number: int) -> None:
    names = [f"category {index} of a kind" for index in range(number)]
    page = drawn(figures.confusion_matrix, np.eye(number, dtype=np.int64), names)
    axes = page.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    rows = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(rows))
    assert min(row.x0 for row in rows) > 0
    columns = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert min(column.y0 for column in columns) > 0
    if number > 20:  # upright; the others are slanted, and their boxes overlap though the letters do not
        assert all(left.x1 <= right.x0 for left, right in pairwise(columns))


def test_curves_go_on_from_the_epoch_that_the_history_begins_with() -> None:
    history = [{"training loss": 2.0, "accuracy": 0.5}, {"training loss": 1.0, "accuracy": 0.7}, {"training loss": 0.5}]
    page = drawn(figures.curves, history, 4, "validation")
    loss, right = page.axes
    assert [list(values) for values in cast(Any, loss.lines[0].get_data())] == [[4, 5, 6], [2.0, 1.0, 0.5]]
    # The last epoch was stopped before it was evaluated.
    assert [text.get_text() for text in cast(Any, right.get_legend()).get_texts()] == ["validation, accuracy: 70.0%"]


@pytest.mark.parametrize("history", [[{"training loss": 1.0, "mIoU": 0.5}], [{"pixel accuracy": 0.5}] * 3])
def test_epochs_are_whole_numbers(history: list[dict[str, float]]) -> None:
    for axes in drawn(figures.curves, history, 1, "validation").axes:
        low, high = axes.get_xlim()
        assert all(tick == round(tick) for tick in axes.get_xticks() if low <= tick <= high)


def test_a_reliability_diagram_shows_the_share_right_in_each_bin() -> None:
    bins = [Bin(0, 0.5, 0, math.nan, math.nan), Bin(0.5, 1, 4, 0.9, 0.75)]
    diagram, share = drawn(figures.reliability, bins, "files").axes
    right, gap = (cast(Any, container)[0] for container in diagram.containers)
    assert (right.get_x(), right.get_width(), right.get_height()) == (0.5, 0.5, 0.75)
    assert (gap.get_y(), gap.get_height()) == (0.75, pytest.approx(0.15))
    assert [bar.get_height() for bar in cast(Any, share.containers[0])] == [1.0]


def test_a_pure_tone_is_bright_at_its_pitch_and_silence_is_dark() -> None:
    times = np.arange(8000) / 8000
    brightness = figures.spectrogram(np.sin(2 * np.pi * 1000 * times), 8000).sum(axis=2, dtype=int)
    rows = brightness.shape[0]  # 0 to 4 kHz from the bottom: 1 kHz is a quarter up
    assert set(brightness.argmax(axis=0)) == {round((rows - 1) * 0.75)}
    assert figures.spectrogram(np.zeros(8000, np.float32), 8000).max() < 8


@pytest.mark.parametrize("samples", [1, 30, 255, 256])
def test_a_sound_shorter_than_a_window_has_a_spectrogram(samples: int) -> None:
    assert figures.spectrogram(np.ones(samples, np.float32), 8000).size


def test_a_film_strip_shows_the_first_the_middle_and_the_last_frame() -> None:
    frames = np.stack([np.full((4, 6, 3), index, np.uint8) for index in range(5)])
    assert figures.film_strip(frames)[2, :, 1].tolist() == [0] * 6 + [255] + [2] * 6 + [255] + [4] * 6


@pytest.mark.parametrize("name", ["$a^{$ 猫", "a very long name of a category, as nobody would write it" * 3])
def test_any_folders_name_can_be_drawn(tmp_path: Path, name: str) -> None:
    tiles = [Tile(np.zeros((4, 4, 3), np.uint8), name, 0.5, "other")]
    figures.draw(
        tmp_path / "tiles.png", figures.tiles, HEADING, [Group("wrong", False, tiles), Group("none", True, [])]
    )
    figures.draw(tmp_path / "matrix.png", figures.confusion_matrix, HEADING, np.eye(2, dtype=int), (name, "other"))
    flat = np.zeros((4, 4), np.uint8)
    scenes = [Scene(np.zeros((4, 4, 3), np.uint8), flat, flat, 1.0)]
    figures.draw(tmp_path / "scenes.png", figures.scenes, HEADING, scenes, (name,), PALETTE[:1], VOID)
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert max(picture.size) < 3000


# The command line


def saved(folder: Path, task: str, categories: tuple[str, ...]) -> Run:
    """An untrained run of two epochs."""
    torch.manual_seed(0)
    recipe = small_recipe(task)
    history = [{"training loss": 1.0, "training accuracy": 0.4}, {"training loss": 0.5, "training accuracy": 0.6}]
    weights = build_network(recipe, len(categories)).state_dict()
    run = Run(recipe, categories, 2, 12.5, weights, {}, {"train": 9}, history, "two threads")
    run.save(folder)
    return run


@pytest.mark.parametrize("task", NAMES)
def test_a_run_is_reported_on_for_every_task(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", task, train=1, test=2)
    saved(tmp_path / "run", task, SCENE if task == "segment" else category_folders(data / "train"))
    main([str(tmp_path / "run"), "--data", str(data)])
    place = tmp_path / "run" / "report-test"
    assert capsys.readouterr().out.endswith(f"report in {place}\n")
    assert files(place) == ["confusion.png", "curves.png", "metrics.json", "reliability.png", "samples.png"]
    held = content(place)
    assert (held["split"], held["files"], held["seconds"], held["hardware"]) == ("test", 4, 12.5, "two threads")
    assert held["history"][1]["training loss"] == 0.5
    assert held["recipe"]["preprocess"]["media"] == small_recipe(task).preprocess.media
    for path in place.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300


def test_training_reports_on_what_it_did_not_learn_from(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data" / "train", 6)
    write_pictures(tmp_path / "data" / "val", 2)
    run = train(small_recipe("classify"), tmp_path / "data", tmp_path / "run", report=tmp_path / "run" / "report")
    held = content(tmp_path / "run" / "report")
    assert (held["split"], held["files"], held["splits"]) == ("val", 4, {"train": 12, "val": 4})
    assert held["metrics"].items() <= run.history[-1].items()
    assert len(held["history"]) == held["epochs"] == 2
    assert held["hardware"] == Run.load(tmp_path / "run").hardware != ""
    assert (tmp_path / "run" / "report" / "curves.png").is_file()


def test_a_published_model_is_reported_on_outside_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = graphs.write_model(tmp_path / "repository", "segment")
    data = write_data(tmp_path / "data", "segment", train=1, test=2)
    write(data / "categories.txt", b"dark\nred\n")
    monkeypatch.chdir(tmp_path)
    main([str(folder), "--data", str(data), "--split", "train"])
    held = content(tmp_path / "runs" / "tiny-segment-1" / "report-train")
    assert (held["name"], held["card"]["architecture"]) == ("tiny-segment:1", "by hand")
    assert files(folder) == ["card.json", "model.onnx"]


def test_a_limit_takes_files_from_every_category(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", "classify", train=6)
    saved(tmp_path / "run", "classify", ("green", "red"))
    main([str(tmp_path / "run"), "--data", str(data), "--split", "train", "--limit", "4", "--to", str(tmp_path / "to")])
    assert [row["files"] for row in content(tmp_path / "to")["categories"]] == [2, 2]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["run", "--data", "data", "--split", "night"], "cannot report: data/night is not a folder"),
        (["data", "--data", "data"], "cannot report: data holds neither checkpoint.pt nor card.json"),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("data", "test"), 1)
    saved(Path("run"), "classify", ("green", "red"))
    with pytest.raises(SystemExit, match=complaint):
        main(arguments)


@pytest.mark.parametrize("limit", ["0", "-3", "many"])
def test_a_limit_is_a_number_of_files(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--data", "data", f"--limit={limit}"])
    assert f"{limit!r} is not a whole number above 0" in capsys.readouterr().err


def test_the_recipe_is_reported_as_it_was_changed() -> None:
    recipe = small_recipe("audio", epochs=7)
    facts = of_run(Run(recipe, ("a", "b"), 0, 0.0, {}, {}, {})).facts
    assert (facts["recipe"]["epochs"], facts["recipe"]["source"]["name"]) == (7, recipe.source.name)
    assert facts["recipe"]["preprocess"]["sample_rate_hz"] == 8000
