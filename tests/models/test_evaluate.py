"""Metrics against examples worked out by hand; one code for PyTorch and ONNX."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.datasets import VOID, DatasetError, Example
from models.evaluate import main
from models.masks import mask_confusion
from models.metrics import classification_metrics, show
from models.runs import Run, build_network
from models.tasks import TASKS
from service.media.image import Region
from service.repository.card import Metric
from service.tasks.task import Outputs
from service.tasks.windows import weighted_mean
from tests import graphs
from tests.folders import picture_png, small_recipe, sound_wav, write, write_data

Samples = Sequence[NDArray[np.generic]]


def values(metrics: list[Metric]) -> dict[str, float]:
    return {metric.name: metric.value for metric in metrics}


def echo(samples: Samples) -> list[Outputs]:
    """A model whose answer stands in the sample itself; of a mask it is sure."""
    return [(sample, np.ones(sample.shape, np.float32)) for sample in samples]


def metrics_of(
    task: str, predict: Any, examples: list[Example], categories: int, split: str, **options: Any
) -> list[Metric]:
    return TASKS[task].evaluate(predict, examples, categories, split, **options).metrics


def scene(truth: list[list[int]], answer: list[list[int]]) -> Example:
    target = np.array(truth, np.uint8)
    return Example([np.array(answer, np.uint8)], np.ones(1), target, Region(0, 0, *target.shape))


# Categories


def test_accuracy_and_likelihood_are_those_of_the_hand_computed_example() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
    found = values(classification_metrics(probabilities, np.array([0, 1, 2, 2]), "test"))
    # Three of four; -ln(0.7), -ln(0.6), -ln(0.25), -ln(0.6) are 0.3567, 0.5108, 1.3863, 0.5108.
    # Each answer is alone in its bin: |0.7 - 1|, |0.6 - 1| twice in one bin, |0.5 - 0|: (0.3 + 0.8 + 0.5) / 4.
    assert found == {
        "accuracy": 0.75,
        "negative log likelihood": pytest.approx(0.6911, abs=1e-4),
        "expected calibration error": 0.4,
    }


def test_a_truth_that_was_ruled_out_costs_much_but_not_infinitely() -> None:
    found = values(classification_metrics(np.array([[1.0, 0.0]]), np.array([1]), "test"))
    assert found["negative log likelihood"] == pytest.approx(27.631, abs=1e-3)  # -ln(1e-12)


def test_metrics_say_on_how_many_files_of_which_split() -> None:
    examples = [Example([np.array([0.9, 0.1], np.float32)], np.ones(1), 0)] * 3
    metrics = metrics_of("classify", echo, examples, 2, "val")
    assert {(metric.samples, metric.split) for metric in metrics} == {(3, "val")}
    assert (
        show(metrics) == "accuracy 1.0000 on 3 of val, negative log likelihood 0.1054 on 3 of val, "
        "expected calibration error 0.1000 on 3 of val"
    )


def test_a_files_windows_are_weighted_as_the_service_does_it() -> None:
    windows = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], np.float32)
    weights = np.array([4.0, 1.0, 1.0])
    # By hand: (3.6 + 0.2 + 0.3) / 6 = 0.6833 for the first; unweighted it would be 0.4667.
    served = weighted_mean(windows, weights)
    assert served[0] == pytest.approx(0.68333, abs=1e-5)
    metrics = metrics_of("audio", echo, [Example(list(windows), weights, 0)], 2, "test")
    assert values(metrics) == {
        "accuracy": 1.0,
        "negative log likelihood": pytest.approx(-np.log(float(served[0])), abs=5e-5),
        "expected calibration error": pytest.approx(1 - float(served[0]), abs=5e-5),
    }


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_windows_stay_with_their_file_however_they_are_batched(batch_size: int) -> None:
    sizes: list[int] = []

    def predict(samples: Samples) -> list[Outputs]:
        sizes.append(len(samples))
        return echo(samples)

    one, two = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    examples = [
        Example([one] * 3, np.ones(3), 0),
        Example([two], np.ones(1), 1),
        Example([two, two], np.ones(2), 1),
        Example([one], np.ones(1), 1),
    ]
    metrics = metrics_of("video", predict, examples, 2, "test", batch_size=batch_size)
    assert values(metrics)["accuracy"] == 0.75
    assert sum(sizes) == 7 and max(sizes) <= batch_size


# Masks


def test_miou_and_pixel_accuracy_are_those_of_the_hand_computed_example() -> None:
    truth = [[0, 0, 1, 1], [0, 2, 1, VOID]]
    answer = [[0, 1, 1, 1], [0, 2, 2, 0]]
    # Without the void pixel: category 0 has 2 right of a union of 3, 1 has 2 of 4, 2 has 1 of 2. Right are 5 of 7.
    found = values(metrics_of("segment", echo, [scene(truth, answer)], 3, "test"))
    assert found == {
        "mIoU": round((2 / 3 + 2 / 4 + 1 / 2) / 3, 4),
        "pixel accuracy": round(5 / 7, 4),
        "expected calibration error": round(2 / 7, 4),
    }


def test_a_category_absent_from_truth_and_answer_has_no_part_in_the_mean() -> None:
    example = scene([[0, 0, 3, 3]], [[0, 3, 3, 3]])
    # Of five categories, 1, 2 and 4 occur nowhere: the mean of 1/2 and 2/3.
    assert values(metrics_of("segment", echo, [example], 5, "test"))["mIoU"] == round((1 / 2 + 2 / 3) / 2, 4)


def test_a_category_that_is_only_in_the_answer_counts_as_0() -> None:
    assert values(metrics_of("segment", echo, [scene([[0, 0]], [[0, 1]])], 2, "test"))["mIoU"] == 0.25


def test_what_is_answered_on_void_does_not_count() -> None:
    assert values(metrics_of("segment", echo, [scene([[0, VOID]], [[0, 1]])], 2, "test")) == {
        "mIoU": 1.0,
        "pixel accuracy": 1.0,
        "expected calibration error": 0.0,
    }


def test_pixels_are_counted_over_the_whole_split_not_averaged_over_pictures() -> None:
    large = scene([[0] * 9 + [1]], [[0] * 9 + [1]])
    small = scene([[1, 1]], [[0, 0]])
    # Category 0: 9 right of a union of 11; category 1: 1 of 3. By picture, the mean would be 0.5.
    found = values(metrics_of("segment", echo, [large, small], 2, "test"))
    assert found == {
        "mIoU": round((9 / 11 + 1 / 3) / 2, 4),
        "pixel accuracy": round(10 / 12, 4),
        "expected calibration error": round(2 / 12, 4),
    }


def test_masks_that_are_void_everywhere_are_refused() -> None:
    with pytest.raises(DatasetError, match="the masks of test are void everywhere"):
        metrics_of("segment", echo, [scene([[VOID, VOID]], [[0, 1]])], 2, "test")


def test_an_answer_is_cut_to_the_picture_and_scaled_to_its_own_size() -> None:
    answer = np.full((6, 8), 2, np.uint8)  # what lies beside the picture is 2, and must not be seen
    answer[1:5, 2:6] = [[0, 0, 1, 1]] * 4
    target = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 8, axis=0).astype(np.uint8)
    example = Example([answer], np.ones(1), target, Region(1, 2, 4, 4))
    assert mask_confusion(answer, example, 3).tolist() == [[32, 0, 0], [0, 32, 0], [0, 0, 0]]


def test_confusion_has_the_truth_by_row() -> None:
    example = scene([[0, 0, 0, 1]], [[1, 1, 0, 1]])
    assert mask_confusion(np.array([[1, 1, 0, 1]], np.uint8), example, 2).tolist() == [[1, 2], [0, 1]]


# The command line, on published models whose answers are known by hand


def test_a_published_model_is_evaluated_as_it_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny model says loud by the mean magnitude: 0.8 * 0.64 and 0.3 * 0.36 ... weighted by energy."""
    folder = graphs.write_model(tmp_path / "repository", "audio")
    loud_then_soft = np.concatenate([np.full(800, 0.8), np.full(800, 0.3)])
    write(tmp_path / "data" / "test" / "loud" / "1.wav", sound_wav(loud_then_soft))
    write(tmp_path / "data" / "test" / "quiet" / "1.wav", sound_wav(np.full(400, 0.1)))
    main([str(folder), "--data", str(tmp_path / "data")])
    # The first: windows of magnitude 0.8, 0.55, 0.3 and energy 0.64, 0.365, 0.09, together (0.512 + 0.20075 + 0.027) /
    # 1.095 = 0.67557. The second: 0.1 over half the window, so 0.05 loud and 0.95 quiet.
    likelihood = -(np.log(0.67557) + np.log(0.95)) / 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"accuracy 1.0000 on 2 files of {tmp_path}/data/test"
    assert float(lines[1].split()[3]) == pytest.approx(likelihood, abs=5e-4)


def test_the_ignore_index_can_be_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = graphs.write_model(tmp_path / "repository", "segment")
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16, 0] = 255
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 1
    mask[:4] = 7
    write(tmp_path / "data" / "categories.txt", b"dark\nred\n")
    write(tmp_path / "data" / "val" / "images" / "1.png", picture_png(pixels))
    write(tmp_path / "data" / "val" / "masks" / "1.png", picture_png(mask))
    arguments = [str(folder), "--data", str(tmp_path / "data")]
    main([*arguments, "--ignore-index", "7"])
    assert "mIoU 1.0000 on 1 files" in capsys.readouterr().out  # of val, as there is no test split
    with pytest.raises(SystemExit, match=r"cannot evaluate: .*holds the value 7"):
        main(arguments)


def kept_run(tmp_path: Path) -> tuple[Path, Path]:
    """A run that was made with --ignore-index 1, and its data, where the sky's mask value 1 is void."""
    data = write_data(tmp_path / "scenes", "segment", train=1, test=1)
    write(data / "categories.txt", b"ground\n")
    recipe = small_recipe("segment", ignore_index=1)
    weights = build_network(recipe, 1).state_dict()
    Run(recipe, ("ground",), 1, 1.0, weights, {}, {"train": 2}, data=data).save(tmp_path / "run")
    return tmp_path / "run", data


def test_a_run_is_evaluated_with_the_data_and_the_void_value_of_its_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = kept_run(tmp_path)
    main([str(run)])
    assert f"mIoU 1.0000 on 2 files of {data}/test" in capsys.readouterr().out
    main([str(run), "--split", "train"])
    assert f"on 2 files of {data}/train" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"cannot evaluate: .*holds the value 1; expected 0 to 0"):
        main([str(run), "--ignore-index", "255"])


def test_data_that_has_moved_has_to_be_stated(tmp_path: Path) -> None:
    run, data = kept_run(tmp_path)
    data.rename(tmp_path / "moved")
    with pytest.raises(SystemExit, match=rf"cannot evaluate: {data}, which .* is not a folder any more: state --data"):
        main([str(run)])
    main([str(run), "--data", str(tmp_path / "moved")])


def test_data_of_a_published_model_has_to_be_stated(tmp_path: Path) -> None:
    folder = graphs.write_model(tmp_path / "repository", "audio")
    with pytest.raises(SystemExit, match="cannot evaluate: state --data"):
        main([str(folder)])


@pytest.mark.parametrize("task", ["classify", "audio"])
def test_a_split_that_is_not_there_is_named(tmp_path: Path, task: str) -> None:
    folder = graphs.write_model(tmp_path / "repository", task)
    with pytest.raises(SystemExit, match=r"cannot evaluate: .*data/night is not a folder"):
        main([str(folder), "--data", str(tmp_path / "data"), "--split", "night"])


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds neither checkpoint.pt nor card.json; expected a run's folder"):
        main([str(tmp_path), "--data", str(tmp_path)])


def test_a_card_of_an_unknown_task_is_told(tmp_path: Path) -> None:
    folder = graphs.write_model(tmp_path / "repository", "audio")
    (folder / "card.json").write_text((folder / "card.json").read_text().replace('"task": "audio"', '"task": "smell"'))
    with pytest.raises(SystemExit, match=r"cannot evaluate: .*card.json cannot be used: .*no task is called 'smell'"):
        main([str(folder), "--data", str(tmp_path)])


def test_a_model_whose_bytes_were_changed_is_refused(tmp_path: Path) -> None:
    folder = graphs.write_model(tmp_path / "repository", "audio")
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"more")
    with pytest.raises(SystemExit, match=r"cannot evaluate: .*sha256"):
        main([str(folder), "--data", str(tmp_path)])
