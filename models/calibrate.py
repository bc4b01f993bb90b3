"""Calibration of scores by one temperature per model, which divides its logits and becomes part of the graph.

The temperature is found on validation data (Guo et al. 2017, "On calibration of modern neural networks", section 4.2).
It changes no answer for one sample, only the score; for a sound or clip of several windows it also changes how much a
confident window counts in their mean.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from models.datasets import Example
from models.graph import Served
from models.tasks.task import CalibrationLogits, TrainingTask

LEAST_EXAMPLES = 50  # files; fewer say nothing about one answer in ten
_LOWEST, _HIGHEST, _STEPS = 0.1, 10.0, 401  # temperatures tried, 1.2% apart


def fit_temperature(served: Served, examples: Sequence[Example], task: TrainingTask, device: torch.device) -> float:
    """The temperature that makes the truth of ``examples``, which training did not learn from, the likeliest.

    1.0 where there are too few. A file's windows are averaged as in an answer. ``served`` keeps its temperature.
    """
    if len(examples) < LEAST_EXAMPLES:
        return 1.0
    found = task.calibration_logits(served.eval(), examples, device)
    temperatures = np.geomspace(_LOWEST, _HIGHEST, _STEPS)
    losses = [_loss(found, float(temperature)) for temperature in temperatures]
    return round(float(temperatures[int(np.argmin(losses))]), 4)


def _loss(found: CalibrationLogits, temperature: float) -> float:
    """Mean negative log likelihood of the truth, over answers; an answer is the weighted sum of its windows."""
    truth = found.targets[found.owners][:, None]
    at_truth = F.softmax(found.logits / temperature, dim=1).gather(1, truth)[:, 0]
    answers = torch.zeros(len(found.targets)).index_add(0, found.owners, at_truth * found.weights)
    return float(-answers.clamp(min=1e-12).log().mean())
