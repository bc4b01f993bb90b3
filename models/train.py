"""Trains one recipe on a folder of data, a checkpoint each epoch, and goes on from the checkpoint after a stop.

python -m models.train RECIPE --data FOLDER [--run runs/RECIPE]

A run is a function of its recipe, its data and its seed: one that was stopped and gone on with ends with the weights of
one that was not (on the same hardware).
"""

import argparse
import colorsys
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models import augment
from models.architectures import ARCHITECTURES
from models.architectures.fcn import FCN
from models.datasets import VOID, DatasetError, Example, category_folders, placed_mask, read_categories
from models.evaluate import evaluate, show, torch_predict
from models.graph import SERVED, Served
from models.recipes import RECIPES, Recipe, Source
from models.runs import CHECKPOINT, RECORDED, Run, build_network, load_examples
from service.cards import AudioPreprocess, ImagePreprocess, VideoPreprocess

_VALIDATED = 500  # files of the training split that watch an epoch's progress where there is no validation split
_AVERAGED = 5  # a run is at least this many times as long as the average of its weights reaches back
_FEW_STEPS = 100  # with fewer, a network that starts from nothing has hardly begun


class TrainingError(Exception):
    """Options that do not suit the task, the data or the run that is to be gone on with; the message says which."""


class Trainer:
    """The whole state of a run between two epochs."""

    def __init__(
        self, recipe: Recipe, categories: tuple[str, ...], examples: list[Example], device: torch.device
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.categories, self.device = recipe, categories, device
        self.examples = examples
        self.network = build_network(recipe, len(categories)).to(device)
        if recipe.task in ("classify", "segment"):
            # A quarter faster, on the CPU too. torch's stubs do not know this form of `to`.
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.served: Served = SERVED[recipe.task](self.network).to(device)
        steps = recipe.epochs * math.ceil(len(examples) / recipe.batch_size)
        decay = min(recipe.average_decay, max(0.0, 1 - _AVERAGED / steps))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self.optimizer = _optimizer(recipe, self.network)
        self.schedule = OneCycleLR(self.optimizer, recipe.peak_rate, total_steps=steps, pct_start=0.2)
        self.generator = torch.Generator(device=device).manual_seed(recipe.seed)
        self.random = np.random.default_rng(recipe.seed)
        self.epochs_done, self.seconds = 0, 0.0

    def epoch(self) -> None:
        """Once over the data."""
        began = time.monotonic()
        self.network.train()
        label = f"epoch {self.epochs_done + 1}/{self.recipe.epochs}"
        count = math.ceil(len(self.examples) / self.recipe.batch_size)
        losses = shares = 0.0
        with tqdm(self._batches(), total=count, desc=label, unit="batch", mininterval=1) as progress:
            for step, (batch, targets) in enumerate(progress, start=1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
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
        return Run(self.recipe, self.categories, self.epochs_done, self.seconds, averaged, state, splits)

    def resume(self, run: Run) -> None:
        """Goes on where ``run`` was saved, with its very random numbers if they were drawn on this kind of device."""
        self.network.load_state_dict(run.state["network"])
        self.averaged.load_state_dict(run.state["averaged"])
        self.optimizer.load_state_dict(run.state["optimizer"])
        self.schedule.load_state_dict(run.state["schedule"])
        self.epochs_done, self.seconds = run.epochs_done, run.seconds
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
        """Augmented batches: samples (N, …) as the service makes them, targets (N,) or (N, H, W)."""
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
            yield augment.flip_and_shift(samples, generator, pad=max(spec.sizes[0]) // 8), targets
        elif isinstance(spec, AudioPreprocess):
            yield augment.disturb_sound(samples, generator), targets
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
        if not isinstance(self.network, FCN):
            logits: Tensor = self.network(images)
            return F.cross_entropy(logits, targets, label_smoothing=smoothing), logits
        logits, auxiliary = self.network.forward_with_auxiliary(images)
        if not (targets != VOID).any():  # nothing to learn; the mean over no pixel would be NaN
            return 0.0 * (logits.sum() + auxiliary.sum()), logits
        loss = F.cross_entropy(logits, targets, ignore_index=VOID)
        loss = loss + self.recipe.auxiliary_weight * F.cross_entropy(auxiliary, targets, ignore_index=VOID)
        return loss, logits


def _share_right(logits: Tensor, targets: Tensor) -> float:
    """Of the batch's samples, or of its pixels but for void, the share whose likeliest category is the true one."""
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
    decayed = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    free = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.peak_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, recipe.peak_rate)


def train(recipe: Recipe, data: Path, folder: Path, ignore_index: int = VOID) -> Run:
    """Trains ``recipe`` on ``data`` until its last epoch, from the checkpoint in ``folder`` if there is one.

    Raises ``DatasetError`` for the data, and ``TrainingError`` where recipe, data and checkpoint do not go together.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    categories = _categories(recipe, data)
    begun = Run.load(folder) if (folder / CHECKPOINT).is_file() else None
    if begun:
        _require_same(begun, recipe, categories, folder)
    splits = {split: _count(data / split) for split in ("train", "val", "test") if (data / split).is_dir()}
    _require_fit(recipe, len(categories), splits.get("train", 0))
    examples = load_examples(data, "train", recipe.task, categories, recipe.preprocess, ignore_index)
    watched_split = "val" if (data / "val").is_dir() else "train"
    watched = (
        load_examples(data, "val", recipe.task, categories, recipe.preprocess, ignore_index)
        if watched_split == "val"
        else examples[:: max(1, len(examples) // _VALIDATED)]
    )
    trainer = Trainer(recipe, categories, examples, device)
    if begun:
        if begun.splits["train"] != splits["train"]:
            raise TrainingError(
                f"{folder} was begun with {begun.splits['train']} files in {data}/train, which now holds "
                f"{splits['train']}; begin another run (--run)"
            )
        trainer.resume(begun)
        done = "is complete" if trainer.epochs_done >= recipe.epochs else "goes on"
        print(f"{folder} {done} after epoch {trainer.epochs_done} of {recipe.epochs}")
    elif (steps := trainer.schedule.total_steps) < _FEW_STEPS:
        print(
            f"{len(examples)} files make {steps} steps in all, which is few: state more --epochs or less --batch-size"
        )
    run = trainer.run(splits)
    while trainer.epochs_done < recipe.epochs:
        trainer.epoch()
        served = trainer.run(splits).served().to(device)
        run = trainer.run(splits)  # after served(), which draws weights: dropout goes on from torch's generator
        run.save(folder)
        metrics = evaluate(torch_predict(served, device), watched, recipe.task, len(categories), watched_split)
        print(f"epoch {run.epochs_done}/{recipe.epochs}: {show(metrics)}; {_time_left(run)}", flush=True)
    return run


def _categories(recipe: Recipe, data: Path) -> tuple[str, ...]:
    if recipe.task == "segment":
        return read_categories(data)
    found = category_folders(data / "train")
    if len(found) < 2:
        raise DatasetError(f"{data}/train holds one category, {found[0]!r}; there is nothing to tell it from")
    return recipe.categories if recipe.categories and set(found) <= set(recipe.categories) else found


def _require_same(begun: Run, recipe: Recipe, categories: tuple[str, ...], folder: Path) -> None:
    """A run goes on as it was begun: its schedule, its network and its data are laid out for that."""
    fields = ("name", *RECORDED, "options", "preprocess", "source")
    before = {field: getattr(begun.recipe, field) for field in fields} | {"categories": begun.categories}
    now = {field: getattr(recipe, field) for field in fields} | {"categories": categories}
    for field in before:
        if before[field] != now[field]:
            raise TrainingError(
                f"{folder} was begun with {field} {_plain(before[field])}, now it is {_plain(now[field])}; "
                "state what it was begun with to go on, or begin another run (--run)"
            )


def _plain(value: Any) -> str:
    return value.name if isinstance(value, Source) else repr(value)


def _require_fit(recipe: Recipe, categories: int, files: int) -> None:
    """Runs the network on the smallest batch that will come, on torch's meta device, which computes shapes only."""
    spec, size = recipe.preprocess, recipe.crop
    batch = files % recipe.batch_size or recipe.batch_size
    if isinstance(spec, AudioPreprocess):
        shape: tuple[int, ...] = (1, spec.window_samples)
    elif isinstance(spec, VideoPreprocess):
        shape = (spec.frames, *spec.size, 3)
    else:
        shape = (*(size or spec.sizes[0]), 3)
    expected = (batch, categories, *shape[:2]) if recipe.task == "segment" else (batch, categories)
    complaint = (
        f"the network {recipe.architecture!r} cannot be trained to {recipe.task} on batches of {(batch, *shape)}"
    )
    try:
        with torch.device("meta"), torch.no_grad():
            served = SERVED[recipe.task](build_network(recipe, categories))
            logits = served.network(served.prepare(torch.empty(batch, *shape)))
    except (RuntimeError, ValueError, TypeError) as error:
        raise TrainingError(f"{complaint}: {error}") from error
    if logits.shape != expected or (recipe.task == "segment" and not isinstance(served.network, FCN)):
        raise TrainingError(f"{complaint}: it answers {tuple(logits.shape)} where {expected} belongs")


def _count(split: Path) -> int:
    """How many samples' files there are; a picture and its mask count once."""
    if (split / "images").is_dir() and (split / "masks").is_dir():
        split = split / "images"
    return sum(1 for path in split.rglob("*") if path.is_file() and not path.name.startswith("."))


def _time_left(run: Run) -> str:
    seconds = run.seconds / run.epochs_done * (run.recipe.epochs - run.epochs_done)
    return f"about {seconds / 60:.0f} minutes left" if seconds else "done"


def adapted(recipe: Recipe, data: Path, arguments: argparse.Namespace) -> Recipe:
    """The recipe for this data and these options. One's own data is not called by the name of the bundled data set."""
    changed: dict[str, Any] = {field: value for field in RECORDED if (value := getattr(arguments, field)) is not None}
    name = data.name if data.name not in ("", "..") else data.resolve().name
    own = name != recipe.source.folder
    if own:
        source = Source(name, name, "a folder of one's own", "not stated")
        changed |= {"source": source, "categories": None, "turns_motion": False}
    if "architecture" in changed and changed["architecture"] != recipe.architecture:
        changed["options"] = {}
    if arguments.size is not None:
        if recipe.task != "classify":
            raise TrainingError("--size is for classify; the other recipes state their own")
        side = (arguments.size, arguments.size)
        changed["preprocess"] = ImagePreprocess(resize="crop", sizes=(side,), shorter_side=arguments.size)
    if recipe.task == "segment":
        count = len(read_categories(data))
        if own or count != len(recipe.palette or ()):
            changed["palette"] = _spread_colours(count)
    return replace(recipe, **changed)


def _spread_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours that differ from their neighbours: hues a golden angle apart."""
    hues = [index * 0.618 % 1 for index in range(count)]
    channels = [colorsys.hsv_to_rgb(hue, 0.75, 0.85) for hue in hues]
    return tuple((round(red * 255), round(green * 255), round(blue * 255)) for red, green, blue in channels)


def within(low: int, high: int) -> Callable[[str], int]:
    """An option's type: a whole number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def _rate(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train a model; after a stop, the same command goes on.")
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument(
        "--data", type=Path, required=True, help="the data set's folder, holding train/ and perhaps val/ and test/"
    )
    parser.add_argument("--run", type=Path, help="where the checkpoint is kept (default: runs/RECIPE)")
    parser.add_argument("--epochs", type=within(1, 100_000))
    parser.add_argument("--batch-size", type=within(1, 100_000))
    parser.add_argument("--peak-rate", type=_rate, help="the highest learning rate of the cycle")
    parser.add_argument("--seed", type=within(0, 2**32 - 1))
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), help="another network for the task")
    parser.add_argument(
        "--size", type=within(8, 4096), help="classify: side of the square that the network sees, in pixels"
    )
    parser.add_argument(
        "--ignore-index", type=within(0, VOID), default=VOID, help="segment: the mask value that means void"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    folder = arguments.run or Path("runs") / arguments.recipe
    try:
        recipe = adapted(RECIPES[arguments.recipe], arguments.data, arguments)
        run = train(recipe, arguments.data, folder, arguments.ignore_index)
    except DatasetError as error:
        raise SystemExit(f"the data cannot be used: {error}") from error
    except TrainingError as error:
        raise SystemExit(f"cannot train: {error}") from error
    except KeyboardInterrupt as stop:
        raise SystemExit(f"\nstopped; the same command goes on after the last whole epoch in {folder}") from stop
    hours = run.seconds / 3600
    print(f"trained {run.recipe.name}: {run.epochs_done} epochs in {hours:.2f} hours, in {folder}")
    print(f"next: python -m models.evaluate {folder} --data {arguments.data}")
    print(f"      python -m models.export {folder} --data {arguments.data} --repository FOLDER")


if __name__ == "__main__":
    main()
