"""The state of a training run between two epochs, and one epoch: the loop, in one place."""

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models import augment
from models.architectures.fcn import Segmenter
from models.architectures.resnet_fast import FastResNet
from models.datasets import VOID, Example, placed_mask
from models.graph import SERVED, Served
from models.recipes import Recipe
from models.runs import Run, build_network, hardware
from service.repository.card import AudioPreprocess, ImagePreprocess, Task, VideoPreprocess

# With these instructions bfloat16 takes about half the time of float32; without them it takes longer.
_CPU_MULTIPLIES_BFLOAT16 = bool(torch.cpu._is_avx512_bf16_supported())
# A sixth to a quarter faster, on the CPU too.
_CHANNELS_LAST: dict[Task, torch.memory_format] = {
    "classify": torch.channels_last,
    "segment": torch.channels_last,
    "video": torch.channels_last_3d,
}
_WHITENED = 2000  # pictures, from all over the data, whose patches a whitening stem is made from
_AVERAGED = 5  # a run is at least this many times as long as the average of its weights reaches back


class Trainer:
    """The whole state of a run between two epochs."""

    def __init__(
        self, recipe: Recipe, categories: tuple[str, ...], examples: list[Example], device: torch.device
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.categories, self.device = recipe, categories, device
        # oneDNN's bfloat16 gradients of some 3D convolutions hold memory that nothing wrote (torch 2.13): NaN.
        self.half = device.type == "cuda" or (_CPU_MULTIPLIES_BFLOAT16 and recipe.task != "video")
        self.examples = examples
        self.network = build_network(recipe, len(categories)).to(device)
        if recipe.task in _CHANNELS_LAST:
            # torch's stubs do not know this form of `to`.
            self.network = self.network.to(memory_format=_CHANNELS_LAST[recipe.task])  # type: ignore[call-overload]
        self.served: Served = SERVED[recipe.task](self.network).to(device)
        self.weights: Tensor | None = None
        if recipe.rare_counts is not None:
            self.weights = _category_weights(examples, len(categories), recipe.rare_counts).to(device)
        if isinstance(self.network, FastResNet):
            pictures = np.stack([example.samples[0] for example in examples[:: max(1, len(examples) // _WHITENED)]])
            self.network.initialise_from(self.served.prepare(torch.from_numpy(pictures).to(device)))
        steps = recipe.epochs * math.ceil(len(examples) / recipe.batch_size)
        decay = min(recipe.average_decay, max(0.0, 1 - _AVERAGED / steps))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self.optimizer = _optimizer(recipe, self.network)
        self.schedule = OneCycleLR(self.optimizer, recipe.peak_rate, total_steps=steps, pct_start=0.2)
        self.generator = torch.Generator(device=device).manual_seed(recipe.seed)
        self.random = np.random.default_rng(recipe.seed)
        self.epochs_done, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []

    def epoch(self) -> None:
        """Once over the data; ``history`` gains its mean loss and share of right answers on the augmented batches."""
        began = time.monotonic()
        self.network.train()
        label = f"epoch {self.epochs_done + 1}/{self.recipe.epochs}"
        count = math.ceil(len(self.examples) / self.recipe.batch_size)
        losses = shares = 0.0
        with tqdm(self._batches(), total=count, desc=label, unit="batch", mininterval=1) as progress:
            for step, (batch, targets) in enumerate(progress, start=1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    loss, logits = self._loss(batch, targets)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.schedule.step()
                self.averaged.update_parameters(self.network)
                losses += float(loss.detach())
                shares += _share_right(logits, targets)
                progress.set_postfix(loss=f"{losses / step:.3f}", right=f"{shares / step:.1%}", refresh=False)
        self.epochs_done += 1
        self.seconds += time.monotonic() - began
        self.history.append({"training loss": losses / count, "training accuracy": shares / count})

    def run(self, splits: dict[str, int]) -> Run:
        """What is to be kept of the state as it is now."""
        averaged = {
            name: value.detach().clone().contiguous() for name, value in self.averaged.module.state_dict().items()
        }
        state = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "order": self.random.bit_generator.state,
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
        )

    def resume(self, run: Run) -> None:
        """Goes on where ``run`` was saved, with its very random numbers if they were drawn on this kind of device."""
        self.network.load_state_dict(run.state["network"])
        self.averaged.load_state_dict(run.state["averaged"])
        self.optimizer.load_state_dict(run.state["optimizer"])
        self.schedule.load_state_dict(run.state["schedule"])
        self.epochs_done, self.seconds, self.history = run.epochs_done, run.seconds, list(run.history)
        self.random = np.random.default_rng((self.recipe.seed, run.epochs_done))
        if "order" in run.state:  # older checkpoints lack it
            self.random.bit_generator.state = run.state["order"]
        if run.state["generator"].shape == self.generator.get_state().shape:
            self.generator.set_state(run.state["generator"])
        else:
            self.generator.manual_seed(self.recipe.seed + run.epochs_done)
        if "torch" in run.state and run.state["torch"].shape == _torch_random_state(self.device).shape:
            _set_torch_random_state(self.device, run.state["torch"])

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches: samples (N, …) as the service makes them, targets (N,) or (N, H, W), or of mixed sounds
        (N, C) float."""
        order = self.random.permutation(len(self.examples))
        for start in range(0, len(order), self.recipe.batch_size):
            chosen = [self.examples[index] for index in order[start : start + self.recipe.batch_size]]
            yield from self._augmented(chosen)

    def _augmented(self, chosen: list[Example]) -> Iterator[tuple[Tensor, Tensor]]:
        spec, generator = self.recipe.preprocess, self.generator
        if self.recipe.task == "segment":
            assert self.recipe.crop is not None
            cuts = []
            for group in _by_shape(chosen):
                pictures = self._tensor(np.stack([example.samples[0] for example in group]))
                masks = [placed_mask(example, example.samples[0].shape[:2]) for example in group]
                cuts.append(
                    augment.scale_and_crop(pictures, self._tensor(np.stack(masks)), self.recipe.crop, generator)
                )
            yield torch.cat([cut for cut, _ in cuts]), torch.cat([mask for _, mask in cuts])
            return
        samples = self._tensor(np.stack([self._one_window(example) for example in chosen]))
        targets = self._tensor(np.array([example.target for example in chosen]))
        if isinstance(spec, ImagePreprocess):
            samples = augment.flip_and_shift(samples, generator, pad=max(spec.sizes[0]) // 8)
            yield augment.cut_out(samples, generator, self.recipe.cut_out) if self.recipe.cut_out else samples, targets
        elif isinstance(spec, AudioPreprocess):
            samples = augment.disturb_sound(samples, generator)
            if self.recipe.mixup:
                samples, targets = augment.mix_sounds(
                    samples, targets, len(self.categories), generator, self.recipe.mixup
                )
            yield samples, targets
        elif isinstance(spec, VideoPreprocess):
            if self.recipe.turns_motion and self.categories == self.recipe.categories:
                samples, targets = augment.turn_motion(samples, targets, self.categories, generator)
            yield augment.vary_light(samples, generator), targets

    def _one_window(self, example: Example) -> np.ndarray:
        """A window of the file, by chance, as often as it counts in the answer."""
        weights = example.weights / example.weights.sum()
        return example.samples[self.random.choice(len(weights), p=weights) if len(weights) > 1 else 0]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _loss(self, batch: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the logits (N, C) or (N, C, H, W)."""
        images = self.served.prepare(batch)
        smoothing = self.recipe.label_smoothing
        if not isinstance(self.network, Segmenter):
            logits: Tensor = self.network(images)
            return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing), logits
        logits, auxiliary = (head.float() for head in self.network.forward_with_auxiliary(images))
        if not (targets != VOID).any():  # nothing to learn; the mean over no pixel would be NaN
            return 0.0 * (logits.sum() + auxiliary.sum()), logits
        main, aside = (F.cross_entropy(each, targets, self.weights, ignore_index=VOID) for each in (logits, auxiliary))
        return main + self.recipe.auxiliary_weight * aside, logits


def _category_weights(examples: Sequence[Example], categories: int, constant: float) -> Tensor:
    """(C,): 1 / ln(constant + share of the pixels), so that rare categories count for more (Paszke et al. 2016, "ENet",
    section 5.2); the larger the constant, the less so. Their mean over the pixels is 1."""
    counts = np.zeros(categories)
    for example in examples:
        counts += np.bincount(np.asarray(example.target).ravel(), minlength=VOID + 1)[:categories]
    shares = counts / max(counts.sum(), 1)
    weights = 1 / np.log(constant + shares)
    return torch.tensor(weights / max((weights * shares).sum(), 1e-12), dtype=torch.float32)


def _share_right(logits: Tensor, targets: Tensor) -> float:
    """Of the batch's samples, or of its pixels but for void, the share whose likeliest category is the true one."""
    if targets.is_floating_point():  # shares of the categories that were mixed: the largest is the truth
        targets = targets.argmax(dim=1)
    right = logits.detach().argmax(dim=1) == targets
    if targets.dim() > 1:
        right = right[targets != VOID]
    return float(right.float().mean().nan_to_num())


def _torch_random_state(device: torch.device) -> Tensor:
    """That of torch's own generator, from which dropout is drawn."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_torch_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _by_shape(examples: list[Example]) -> list[list[Example]]:
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.samples[0].shape, []).append(example)
    return list(groups.values())


def _optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """Weights decay; biases and normalisation do not (Goyal et al. 2017, section 5.3)."""
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in learnt if parameter.dim() > 1]
    free = [parameter for parameter in learnt if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.peak_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, recipe.peak_rate)
