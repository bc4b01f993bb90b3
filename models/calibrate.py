"""Scores that mean what they say: of the answers given with 0.9, nine in ten should be right.

One number per model, the temperature by which its logits are divided (Guo et al. 2017, "On calibration of modern neural
networks", section 4.2), found on validation data, then part of the graph. Of one sample it changes no answer, only the
score; of a sound or clip of several windows it also changes how much a sure window counts in their mean.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from models.datasets import VOID, Example, placed_mask
from models.graph import Served
from service.repository.card import Task

LEAST_EXAMPLES = 50  # files; fewer tell nothing about one answer in ten
_PIXELS = 2000  # of each picture, by chance: neighbours say the same
_BATCH = 64
_LOWEST, _HIGHEST, _STEPS = 0.1, 10.0, 401  # temperatures tried, 1.2% apart


def expected_calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_], bins: int = 15) -> float:
    """The mean over answers of |confidence - share right| of their bin: ``confidence`` (n,) in 0 to 1, ``right`` (n,).

    Bins of equal width (Guo et al. 2017, section 2). Raises ``ValueError`` where there is no answer.
    """
    if not len(confidence):
        raise ValueError("there is no answer whose confidence could be compared")
    index = np.clip((np.asarray(confidence) * bins).astype(int), 0, bins - 1)
    gaps = np.bincount(index, weights=np.asarray(confidence, np.float64) - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def fit_temperature(served: Served, examples: Sequence[Example], task: Task, device: torch.device) -> float:
    """The temperature under which ``examples``, which training did not learn from, are likeliest; 1.0 of too few.

    ``served`` is left with the temperature that it had. A file's windows are averaged as in an answer.
    """
    if len(examples) < LEAST_EXAMPLES:
        return 1.0
    logits, weights, owners, targets = _collected(served.eval(), examples, task, device)
    temperatures = np.geomspace(_LOWEST, _HIGHEST, _STEPS)
    losses = [_loss(logits, weights, owners, targets, float(temperature)) for temperature in temperatures]
    return round(float(temperatures[int(np.argmin(losses))]), 4)


def _loss(
    logits: torch.Tensor, weights: torch.Tensor, owners: torch.Tensor, targets: torch.Tensor, temperature: float
) -> float:
    """Negative log likelihood of the truth; windows (W,C) of the same owner are one answer, by their weights (W,)."""
    at_truth = F.softmax(logits / temperature, dim=1).gather(1, targets[owners][:, None])[:, 0]
    answers = torch.zeros(len(targets)).index_add(0, owners, at_truth * weights)
    return float(-answers.clamp(min=1e-12).log().mean())


def _collected(
    served: Served, examples: Sequence[Example], task: Task, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (W,C), the weight of each, which answer it belongs to (W,), and the truth of each answer (A,)."""
    if task == "segment":
        return _collected_pixels(served, examples, device)
    samples = [sample for example in examples for sample in example.samples]
    logits = torch.cat(
        [_logits(served, samples[start : start + _BATCH], device) for start in range(0, len(samples), _BATCH)]
    )
    weights = torch.cat([torch.as_tensor(example.weights / example.weights.sum()) for example in examples])
    counts = torch.tensor([len(example.samples) for example in examples])
    owners = torch.repeat_interleave(torch.arange(len(examples)), counts)
    targets = torch.tensor([int(np.asarray(example.target)) for example in examples])
    return logits, weights.float(), owners, targets


def _collected_pixels(
    served: Served, examples: Sequence[Example], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    logits, targets = [], []
    for example in examples:
        sample = example.samples[0]
        mask = placed_mask(example, sample.shape[:2])
        known = np.flatnonzero(mask.ravel() != VOID)
        chosen = torch.as_tensor(random.permutation(known)[:_PIXELS])
        logits.append(_logits(served, [sample], device)[0].flatten(1).T[chosen])
        targets.append(torch.as_tensor(mask.ravel())[chosen].long())
    every = torch.arange(sum(map(len, targets)))
    return torch.cat(logits), torch.ones(len(every)), every, torch.cat(targets)


def _logits(served: Served, samples: Sequence[NDArray[np.generic]], device: torch.device) -> torch.Tensor:
    batch = torch.from_numpy(np.stack(samples)).to(device)
    with torch.inference_mode():
        logits: torch.Tensor = served.logits(batch).float().cpu()
    return logits
