"""The training loop: the state of a run between two epochs, and one epoch."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.architectures.resnet_fast import FastResNet
from models.datasets import Example
from models.progress import progress
from models.recipes import Recipe
from models.runs import Run, build_network, hardware
from models.tasks import TASKS
from models.tasks.task import Randomness

# With these instructions bfloat16 takes about half the time of float32; without them it takes longer.
_CPU_MULTIPLIES_BFLOAT16 = bool(torch.cpu._is_avx512_bf16_supported())
_WHITENED = 2000  # pictures, from all over the data, whose patches a whitening stem is made from
_AVERAGED = 5  # a run is at least this many times as long as the average of its weights reaches back
_WARM_UP = 0.2  # share of the steps in which the learning rate rises


class Trainer:
    """The whole state of a run between two epochs."""

    def __init__(
        self, recipe: Recipe, categories: tuple[str, ...], examples: list[Example], device: torch.device
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.categories, self.examples, self.device = recipe, categories, examples, device
        self.task = TASKS[recipe.task]
        self.bfloat16 = device.type == "cuda" or (_CPU_MULTIPLIES_BFLOAT16 and self.task.bfloat16_on_cpu)
        self.network = build_network(recipe, len(categories)).to(device)
        if self.task.memory_format is not None:
            # torch's stubs do not know this form of `to`.
            self.network = self.network.to(memory_format=self.task.memory_format)  # type: ignore[call-overload]
        self.served = self.task.wrap(self.network, recipe).to(device)
        weights = self.task.category_weights(examples, len(categories), recipe)
        self.weights = None if weights is None else weights.to(device)
        if isinstance(self.network, FastResNet):
            pictures = np.stack([example.samples[0] for example in examples[:: max(1, len(examples) // _WHITENED)]])
            self.network.initialise_from(self.served.prepare(torch.from_numpy(pictures).to(device)))
        self.steps_an_epoch = math.ceil(len(examples) / recipe.batch_size)
        steps = recipe.epochs * self.steps_an_epoch
        decay = min(recipe.average_decay, max(0.0, 1 - _AVERAGED / steps))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self.optimizer = _optimizer(recipe, self.network)
        self.schedule = OneCycleLR(self.optimizer, recipe.peak_rate, total_steps=steps, pct_start=_WARM_UP)
        self.randomness = Randomness(
            torch.Generator(device=device).manual_seed(recipe.seed), np.random.default_rng(recipe.seed), device
        )
        self.epochs_done, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []

    def epoch(self) -> None:
        """One pass over the data; ``history`` gains its mean loss and share of correct answers."""
        began = time.monotonic()
        self.network.train()
        label = f"epoch {self.epochs_done + 1}/{self.recipe.epochs}"
        losses = shares = 0.0
        with progress(self.batches(), label, "batch", self.steps_an_epoch, mininterval=1) as bar:
            for step, (batch, targets) in enumerate(bar, start=1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                    inputs = self.served.prepare(batch)
                    loss, logits = self.task.loss(self.network, inputs, targets, self.recipe, self.weights)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.schedule.step()
                self.averaged.update_parameters(self.network)
                losses += float(loss.detach())
                shares += self.task.share_correct(logits, targets)
                bar.set_postfix(loss=f"{losses / step:.3f}", correct=f"{shares / step:.1%}", refresh=False)
        self.epochs_done += 1
        self.seconds += time.monotonic() - began
        self.history.append(
            {"training loss": losses / self.steps_an_epoch, "training accuracy": shares / self.steps_an_epoch}
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches of all examples, in a random order, and their targets."""
        order = self.randomness.numpy.permutation(len(self.examples))
        for start in range(0, len(order), self.recipe.batch_size):
            chosen = [self.examples[index] for index in order[start : start + self.recipe.batch_size]]
            yield self.task.batch(chosen, self.recipe, self.categories, self.randomness)

    def run(self, splits: dict[str, int], data: Path | None = None) -> Run:
        """The present state, to be saved."""
        averaged = {
            name: value.detach().clone().contiguous() for name, value in self.averaged.module.state_dict().items()
        }
        state = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.randomness.torch.get_state(),
            "order": self.randomness.numpy.bit_generator.state,
            "torch": _torch_random_state(self.device),
        }
        return Run(
            recipe=self.recipe,
            categories=self.categories,
            epochs_done=self.epochs_done,
            seconds=self.seconds,
            averaged=averaged,
            state=state,
            splits=splits,
            history=self.history,
            hardware=hardware(),
            data=data,
        )

    def resume(self, run: Run) -> None:
        """Continues where ``run`` was saved, with its random numbers if they were drawn on this kind of device.

        A longer schedule than the run's is entered at the step that the run has reached: the learning rate is from then
        on that of a run which had so many epochs from the start.
        """
        self.network.load_state_dict(run.state["network"])
        self.averaged.load_state_dict(run.state["averaged"])
        self.optimizer.load_state_dict(run.state["optimizer"])
        if run.recipe.epochs == self.recipe.epochs:
            self.schedule.load_state_dict(run.state["schedule"])
        else:
            self._enter_schedule(run.epochs_done * self.steps_an_epoch)
        self.epochs_done, self.seconds, self.history = run.epochs_done, run.seconds, list(run.history)
        generator = np.random.default_rng((self.recipe.seed, run.epochs_done))
        if "order" in run.state:  # older checkpoints lack it
            generator.bit_generator.state = run.state["order"]
        self.randomness = self.randomness._replace(numpy=generator)
        if run.state["generator"].shape == self.randomness.torch.get_state().shape:
            self.randomness.torch.set_state(run.state["generator"])
        else:
            self.randomness.torch.manual_seed(self.recipe.seed + run.epochs_done)
        if "torch" in run.state and run.state["torch"].shape == _torch_random_state(self.device).shape:
            _set_torch_random_state(self.device, run.state["torch"])

    def _enter_schedule(self, step: int) -> None:
        """Sets rate and momentum to those of ``step``."""
        if step:
            self.schedule.load_state_dict(self.schedule.state_dict() | {"last_epoch": step - 1, "_step_count": step})
            self.schedule.step()


def _torch_random_state(device: torch.device) -> Tensor:
    """The state of torch's own generator, which dropout draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_torch_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """Weights decay; biases and normalisation do not (Goyal et al. 2017, section 5.3)."""
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in learnt if parameter.dim() > 1]
    free = [parameter for parameter in learnt if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.peak_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, recipe.peak_rate)
