"""A score of 0.9 is right nine times in ten, and calibrating changes no answer."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.calibrate import LEAST_EXAMPLES, fit_temperature
from models.datasets import VOID, Example
from models.graph import Served, ServedAudioClassifier, ServedSegmenter
from models.metrics import expected_calibration_error
from models.tasks import TASKS
from service.media.image import Region

CPU = torch.device("cpu")
COUNT = 4000


class Stated(nn.Module):
    """Answers with the logits that stand in its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class ServedStated(Served):
    def prepare(self, batch: Tensor) -> Tensor:
        return batch


def overconfident(factor: float, count: int = COUNT) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (count, 5) that are ``factor`` times those from which the truth (count,) was drawn."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (count, 5))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (random.random((count, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(0, 4)
    return (logits * factor).astype(np.float32), truth


def examples_of(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> list[Example]:
    return [Example([row], np.ones(1), int(target)) for row, target in zip(logits, truth, strict=True)]


def test_the_calibration_error_by_hand() -> None:
    """Bins of 0.2: 0.9 and 0.86, one right of the two: a gap of 0.38; 0.5, right: 0.5; 0.1, wrong: 0.1."""
    confidence = np.array([0.9, 0.86, 0.5, 0.1])
    right = np.array([True, False, True, False])
    assert expected_calibration_error(confidence, right, bins=5) == pytest.approx((2 * 0.38 + 0.5 + 0.1) / 4)


@pytest.mark.parametrize("share, error", [(1.0, 0.0), (0.75, 0.25), (0.0, 1.0)])
def test_full_confidence_is_as_wrong_as_its_answers(share: float, error: float) -> None:
    right = np.arange(100) < 100 * share
    assert expected_calibration_error(np.ones(100), right) == pytest.approx(error)


def test_of_no_answer_there_is_no_calibration_error() -> None:
    with pytest.raises(ValueError, match="no answer"):
        expected_calibration_error(np.empty(0), np.empty(0, bool))


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_the_temperature_undoes_overconfidence(factor: float) -> None:
    served = ServedStated(Stated())
    logits, truth = overconfident(factor)
    temperature = fit_temperature(served, examples_of(logits, truth), TASKS["classify"], CPU)
    assert temperature == pytest.approx(factor, rel=0.06)
    assert float(served.temperature) == 1.0


def test_calibrated_scores_are_right_as_often_as_they_say_and_no_answer_changes() -> None:
    served = ServedStated(Stated())
    logits, truth = overconfident(2.5, 2 * COUNT)
    fitted, kept = slice(COUNT), slice(COUNT, None)
    before = served(torch.from_numpy(logits[kept])).numpy()
    temperature = fit_temperature(served, examples_of(logits[fitted], truth[fitted]), TASKS["classify"], CPU)
    served.temperature.fill_(temperature)
    after = served(torch.from_numpy(logits[kept])).numpy()

    def error(answers: NDArray[np.floating]) -> float:
        return expected_calibration_error(answers.max(axis=1), answers.argmax(axis=1) == truth[kept])

    assert error(before) > 0.1 and error(after) < 0.03
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))


def test_windows_are_averaged_as_in_an_answer() -> None:
    """A silent window that counts for nothing has no part in the temperature, however wrong it is."""
    logits, truth = overconfident(2.0)
    alone = examples_of(logits, truth)
    wrong = [np.roll(example.samples[0], 1) * 9 for example in alone]
    both = [
        example._replace(samples=[example.samples[0], window], weights=np.array([3.0, 0.0]))
        for example, window in zip(alone, wrong, strict=True)
    ]
    served = ServedStated(Stated())
    assert fit_temperature(served, both, TASKS["audio"], CPU) == fit_temperature(served, alone, TASKS["audio"], CPU)


def test_too_few_files_calibrate_nothing() -> None:
    logits, truth = overconfident(3.0, LEAST_EXAMPLES)
    served = ServedStated(Stated())
    assert fit_temperature(served, examples_of(logits, truth)[:-1], TASKS["classify"], CPU) == 1.0
    assert fit_temperature(served, examples_of(logits, truth), TASKS["classify"], CPU) > 1.5


def test_of_a_segmenter_the_pixels_are_calibrated_and_void_is_left_out() -> None:
    class Painted(nn.Module):
        """Two categories whose logits are the picture's red and green, as they were before normalisation."""

        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :2] - 128) / 16

    class ServedPainted(ServedSegmenter):
        def prepare(self, batch: Tensor) -> Tensor:
            return batch.float().permute(0, 3, 1, 2)

    random = np.random.default_rng(1)
    examples = []
    for _ in range(LEAST_EXAMPLES):
        picture = random.integers(96, 160, (20, 30, 3), dtype=np.uint8)
        gap = (picture[..., 1].astype(float) - picture[..., 0]) / 16 / 2  # the logits are twice what they should be
        mask = (random.random((20, 30)) < 1 / (1 + np.exp(-gap))).astype(np.uint8)
        mask[:10] = np.where(random.random((10, 30)) < 0.5, VOID, mask[:10])
        examples.append(Example([picture], np.ones(1), mask, Region(0, 0, 20, 30)))
    assert fit_temperature(ServedPainted(Painted()), examples, TASKS["segment"], CPU) == pytest.approx(2.0, rel=0.1)


def test_the_temperature_divides_the_logits_in_the_graph() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=2) * torch.tensor([[0.0, 4.0]])

    served: Any = ServedAudioClassifier(Halves())
    served.prepare = lambda batch: batch
    sound = torch.ones(1, 1, 8)
    served.temperature.fill_(2.0)
    expected = 1 / (1 + np.exp(-2.0))
    assert served(sound)[0, 1].item() == pytest.approx(expected, rel=1e-6)
