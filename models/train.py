"""Trains one recipe on a folder of data, a checkpoint each epoch, and goes on from the checkpoint after a stop.

python -m models.train RECIPE --data FOLDER [--run runs/RECIPE]
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models import augment
from models.architectures.fcn import FCN
from models.datasets import VOID, DatasetError, Example, category_folders, placed_mask, read_categories
from models.evaluate import evaluate, torch_predict
from models.graph import SERVED, Served
from models.recipes import RECIPES, Recipe, Source
from models.runs import CHECKPOINT, Run, build_network, load_examples
from service.cards import AudioPreprocess, ImagePreprocess, VideoPreprocess

_VALIDATED = 500  # files of the training split that watch an epoch's progress where there is no validation split


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
            self.network = self.network.to(memory_format=torch.channels_last)  # a quarter faster, on the CPU too
        self.served: Served = SERVED[recipe.task](self.network).to(device)
        self.averaged = AveragedModel(
            self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay), use_buffers=True
        )
        self.optimizer = _optimizer(recipe, self.network)
        steps = recipe.epochs * math.ceil(len(examples) / recipe.batch_size)
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
        losses = 0.0
        with tqdm(self._batches(), total=count, desc=label, unit="batch", mininterval=1) as progress:
            for step, (batch, targets) in enumerate(progress, start=1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                    loss = self._loss(batch, targets)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.schedule.step()
                self.averaged.update_parameters(self.network)
                losses += float(loss.detach())
                progress.set_postfix(loss=f"{losses / step:.3f}")
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
        }
        return Run(self.recipe, self.categories, self.epochs_done, self.seconds, averaged, state, splits)

    def resume(self, run: Run) -> None:
        self.network.load_state_dict(run.state["network"])
        self.averaged.load_state_dict(run.state["averaged"])
        self.optimizer.load_state_dict(run.state["optimizer"])
        self.schedule.load_state_dict(run.state["schedule"])
        self.generator.set_state(run.state["generator"])
        self.random = np.random.default_rng((self.recipe.seed, run.epochs_done))
        self.epochs_done, self.seconds = run.epochs_done, run.seconds

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
            for group in _by_shape(chosen):
                pictures = self._tensor(np.stack([example.samples[0] for example in group]))
                masks = [placed_mask(example, example.samples[0].shape[:2]) for example in group]
                yield augment.scale_and_crop(pictures, self._tensor(np.stack(masks)), self.recipe.crop, generator)
            return
        samples = self._tensor(np.stack([self._one_window(example) for example in chosen]))
        targets = self._tensor(np.array([example.target for example in chosen]))
        if isinstance(spec, ImagePreprocess):
            yield augment.flip_and_shift(samples, generator, pad=max(spec.sizes[0]) // 8), targets
        elif isinstance(spec, AudioPreprocess):
            yield augment.disturb_sound(samples, generator), targets
        elif isinstance(spec, VideoPreprocess):
            if self.recipe.turns_motion:
                samples, targets = augment.turn_motion(samples, targets, self.categories, generator)
            yield augment.vary_light(samples, generator), targets

    def _one_window(self, example: Example) -> np.ndarray:
        """A window of the file, by chance, as often as it counts in the answer."""
        weights = example.weights / example.weights.sum()
        return example.samples[self.random.choice(len(weights), p=weights) if len(weights) > 1 else 0]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _loss(self, batch: Tensor, targets: Tensor) -> Tensor:
        images = self.served.prepare(batch)
        smoothing = self.recipe.label_smoothing
        if not isinstance(self.network, FCN):
            return F.cross_entropy(self.network(images), targets, label_smoothing=smoothing)
        logits, auxiliary = self.network.forward_with_auxiliary(images)
        loss = F.cross_entropy(logits, targets, ignore_index=VOID)
        return loss + self.recipe.auxiliary_weight * F.cross_entropy(auxiliary, targets, ignore_index=VOID)


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
    """Trains ``recipe`` on ``data`` until its last epoch, from the checkpoint in ``folder`` if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    categories = _categories(recipe, data)
    examples = load_examples(data, "train", recipe.task, categories, recipe.preprocess, ignore_index)
    watched_split = "val" if (data / "val").is_dir() else "train"
    watched = (
        load_examples(data, "val", recipe.task, categories, recipe.preprocess, ignore_index)
        if watched_split == "val"
        else examples[:: max(1, len(examples) // _VALIDATED)]
    )
    trainer = Trainer(recipe, categories, examples, device)
    splits = {split: _count(data / split) for split in ("train", "val", "test") if (data / split).is_dir()}
    if (folder / CHECKPOINT).is_file():
        trainer.resume(Run.load(folder))
        print(f"goes on after epoch {trainer.epochs_done} of {folder / CHECKPOINT}")
    run = trainer.run(splits)
    while trainer.epochs_done < recipe.epochs:
        trainer.epoch()
        run = trainer.run(splits)
        run.save(folder)
        predict = torch_predict(run.served().to(device), device)
        metrics = evaluate(predict, watched, recipe.task, len(categories), watched_split)
        print(
            f"epoch {run.epochs_done}: "
            + ", ".join(f"{m.name} {m.value:.4f}" for m in metrics)
            + f" on {watched_split}"
        )
    return run


def _categories(recipe: Recipe, data: Path) -> tuple[str, ...]:
    if recipe.task == "segment":
        return read_categories(data)
    found = category_folders(data / "train")
    return recipe.categories if recipe.categories and set(found) <= set(recipe.categories) else found


def _count(split: Path) -> int:
    return sum(1 for path in split.rglob("*") if path.is_file() and path.parent.name != "masks")


def adapted(recipe: Recipe, data: Path, arguments: argparse.Namespace) -> Recipe:
    """The recipe for this data and these options. One's own data is not called by the name of the bundled data set."""
    changed = {
        field: value
        for field in ("epochs", "batch_size", "peak_rate", "seed", "architecture")
        if (value := getattr(arguments, field)) is not None
    }
    if data.name != recipe.source.folder:
        own = Source(data.name, data.name, "a folder of one's own", "not stated")
        changed |= {"source": own, "categories": None, "turns_motion": False}
    if "architecture" in changed and changed["architecture"] != recipe.architecture:
        changed["options"] = {}
    if arguments.size:
        if recipe.task != "classify":
            raise SystemExit("--size is for classify; the other recipes state their own")
        side = (arguments.size, arguments.size)
        changed["preprocess"] = ImagePreprocess(resize="crop", sizes=(side,), shorter_side=arguments.size)
    if recipe.task == "segment":
        count = len(read_categories(data))
        palette = recipe.palette or ()
        changed["palette"] = tuple((*palette, *_spread_colours(count))[:count]) if count != len(palette) else palette
    return replace(recipe, **changed)


def _spread_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours that differ from their neighbours: hues a golden angle apart."""
    import colorsys

    hues = [index * 0.618 % 1 for index in range(count)]
    channels = [colorsys.hsv_to_rgb(hue, 0.75, 0.85) for hue in hues]
    return [(round(red * 255), round(green * 255), round(blue * 255)) for red, green, blue in channels]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model; after a stop, the same command goes on.")
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument(
        "--data", type=Path, required=True, help="the data set's folder, holding train/ and perhaps val/"
    )
    parser.add_argument("--run", type=Path, help="where the checkpoint is kept (default: runs/RECIPE)")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--peak-rate", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--architecture", help="another network for the task, e.g. resnet18")
    parser.add_argument("--size", type=int, help="classify: side of the square that the network sees, in pixels")
    parser.add_argument("--ignore-index", type=int, default=VOID, help="segment: the mask value that means void")
    arguments = parser.parse_args()
    try:
        recipe = adapted(RECIPES[arguments.recipe], arguments.data, arguments)
        run = train(recipe, arguments.data, arguments.run or Path("runs") / recipe.name, arguments.ignore_index)
    except DatasetError as error:
        raise SystemExit(f"the data cannot be used: {error}") from error
    print(f"trained {run.recipe.name}: {run.epochs_done} epochs in {run.seconds / 3600:.2f} hours")


if __name__ == "__main__":
    main()
