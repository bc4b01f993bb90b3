"""Layers of a network: parameters, multiply-accumulates (MACs), geometry and receptive field of each.

python -m models.inspect NAME [--size N ...] [--categories N]

NAME is, in this order, an architecture, perhaps with options (``"resnet_cifar(depth=56)"``), a recipe, a run's folder,
or a published model: its folder or, in the bundled repository, its name. Networks run on torch's meta device, which
computes shapes only; a published model's figures are its card's.
"""

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.architectures import ARCHITECTURES
from models.evaluate import read_card
from models.recipes import RECIPES, Recipe
from models.runs import CHECKPOINT, Run
from models.tasks import TASKS, load_or_exit
from models.tasks.task import TrainingError
from service.errors import ModelRefused
from service.repository.card import Complexity, Layer, ModelCard
from service.repository.folder import BUNDLED, CARD, find_models

INPUTS: dict[str, tuple[int, ...]] = {  # that each network was made for, channels first
    "alexnet": (3, 224, 224),
    "alexnet_cifar": (3, 32, 32),
    "resnet18": (3, 224, 224),
    "resnet34": (3, 224, 224),
    "resnet50": (3, 224, 224),
    "resnet101": (3, 224, 224),
    "resnet_cifar": (3, 32, 32),
    "resnet_fast": (3, 32, 32),
    "fcn_basic": (3, 360, 480),
    "fcn_context": (3, 360, 480),
    "fcn_resnet50": (3, 520, 520),
    "fcn_resnet101": (3, 520, 520),
    "audio_cnn": (1, 8000),
    "r3d_18": (3, 16, 112, 112),
    "video_cnn": (3, 16, 64, 64),
}

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ENDS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Linear)  # of the feature maps
_GEOMETRY = ("kernel", "stride", "padding", "dilation")
_ASIDE = "downsample"  # projections on shortcuts, which run beside the longest path


class InspectionError(Exception):
    """A name of nothing, or a network that cannot be built or run like this; the message says which."""


def complexity(network: nn.Module, sample: Tensor) -> Complexity:
    """Complexity of ``network`` in evaluation mode on one prepared ``sample`` (1, C, …).

    Layers that run and have parameters, or that pool, are listed in the order in which they run; a segmenter's
    auxiliary head does not run. The receptive field is that of one position of the last feature map, in input steps per
    axis: along the layers, r += (kernel - 1) * dilation * jump and jump *= stride (Araujo et al. 2019, section 2); an
    interpolation to a finer grid adds one jump of the coarser grid. Layers on shortcuts do not widen it. It can be
    larger than the input.
    """
    path = _Path(sample.dim() - 2)
    layers: list[Layer] = []

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            if parameters or isinstance(module, _POOLS + _ENDS):
                aside = _ASIDE in name.split(".")
                layers.append(
                    Layer(
                        name=name,
                        kind=type(module).__name__,
                        output=tuple(output.shape[1:]),
                        parameters=parameters,
                        macs=_macs(module, output),
                        aside=aside,
                        **path.step(module, inputs[0], output, aside),
                    )
                )

        return hook

    handles = [module.register_forward_hook(count(name)) for name, module in network.named_modules()]
    try:
        with torch.inference_mode():
            network.eval()(sample)
    finally:
        for handle in handles:
            handle.remove()
    return Complexity(
        parameters=sum(layer.parameters for layer in layers),
        macs=sum(layer.macs for layer in layers),
        receptive_field=tuple(path.field),
        layers=tuple(layers),
    )


class _Path:
    """Receptive field and jump along the longest path, up to the layer that ran last, per axis."""

    def __init__(self, dimensions: int) -> None:
        self.field = [1] * dimensions
        self.jump = [1] * dimensions  # input steps between neighbours on the grid
        self.grid: tuple[int, ...] = ()  # positions of the last layer's output; none before the first
        self.beside = self.field, self.jump  # the same, at the last layer on a shortcut
        self.ended = False

    def step(self, module: nn.Module, entering: Tensor, output: Tensor, aside: bool) -> dict[str, Any]:
        """The layer's geometry, and field and jump at its output; advances unless the layer is ``aside``."""
        self.ended = self.ended or isinstance(module, _ENDS)
        if self.ended:
            return {}
        if not isinstance(module, _CONVOLUTIONS + _POOLS):
            field, jump = self.beside if aside else (self.field, self.jump)
            return {"receptive_field": tuple(field), "jump": tuple(jump)}
        geometry = _geometry(module, len(self.field))
        field, jump = list(self.field), list(self.jump)
        for axis in range(len(field)):
            if self.grid and (finer := round(entering.shape[2 + axis] / self.grid[axis])) > 1:
                field[axis] += jump[axis]  # interpolated in between: each position lies between two of the coarser grid
                jump[axis] //= finer
            field[axis] += (geometry["kernel"][axis] - 1) * geometry["dilation"][axis] * jump[axis]
            jump[axis] *= geometry["stride"][axis]
        if aside:
            self.beside = field, jump
        else:
            self.field, self.jump, self.grid = field, jump, tuple(output.shape[2:])
        return {"receptive_field": tuple(field), "jump": tuple(jump), **geometry}


def _geometry(module: nn.Module, dimensions: int) -> dict[str, tuple[int, ...]]:
    """Kernel, stride, padding and dilation per axis; average poolings have no dilation."""
    values: tuple[Any, ...] = (module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1))
    axes = (value if isinstance(value, tuple) else (value,) * dimensions for value in values)
    return dict(zip(_GEOMETRY, axes, strict=True))


def _macs(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, _CONVOLUTIONS):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    return 0


def report(name: str, size: Sequence[int] = (), categories: int | None = None) -> str:
    """The table of layers, and a line of totals. Raises ``InspectionError``.

    ``size`` replaces the last axes of the input; a single number is the side of a square.
    """
    architecture, options = _call(name)
    if architecture in ARCHITECTURES:
        return _of_network(architecture, options, categories, _usual_input(architecture), size)
    folder = Path(name)
    run = Run.load(folder) if name not in RECIPES and (folder / CHECKPOINT).is_file() else None
    if run or name in RECIPES:
        recipe = run.recipe if run else RECIPES[name]
        named = run.categories if run else recipe.categories or recipe.palette
        count = categories or (len(named) if named else None)
        return _of_network(recipe.architecture, recipe.options, count, _input(recipe), size)
    card = _published(folder)
    if size or categories:
        raise InspectionError(f"{name} is published, its figures are its card's: leave out --size and --categories")
    return _shown(f"{card.key}, {card.architecture}", card.complexity)


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """``name`` or ``name(option=value, …)``, as cards write architectures."""
    name, bracket, rest = text.partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"options({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("no call by keywords")
        return name, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise InspectionError(f"{text!r} is not of the form NAME(OPTION=VALUE, …)") from error


def _usual_input(architecture: str) -> tuple[int, ...]:
    """The input that an architecture was made for: a task's own architecture has that of its recipe."""
    if architecture in INPUTS:
        return INPUTS[architecture]
    for recipe in RECIPES.values():
        if recipe.architecture == architecture:
            return _input(recipe)
    raise InspectionError(f"no recipe uses the architecture {architecture}, so the shape of its input is unknown")


def _input(recipe: Recipe) -> tuple[int, ...]:
    """The shape of the network's input, channels first."""
    with torch.device("meta"), torch.no_grad():
        served = TASKS[recipe.task].served(nn.Identity())
        return tuple(served.prepare(torch.empty(1, *recipe.preprocess.sample_shapes()[0])).shape[1:])


def _of_network(
    architecture: str, options: Any, categories: int | None, shape: tuple[int, ...], size: Sequence[int]
) -> str:
    axes = tuple(size) * 2 if len(size) == 1 and len(shape) > 2 else tuple(size)
    if len(axes) >= len(shape):
        raise InspectionError(f"--size names {len(axes)} axes, the input of {architecture} has {len(shape) - 1}")
    shape = shape[: len(shape) - len(axes)] + axes
    classes = {} if categories is None else {"num_classes": categories}
    try:
        with torch.device("meta"):
            network = ARCHITECTURES[architecture](**{**options, **classes})
            found = complexity(network, torch.empty(1, *shape))
    except (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        said = str(error).partition("\n")[0]  # torch appends its stack
        raise InspectionError(f"{architecture} with an input of {_times(shape)}: {said}") from error
    called = ", ".join(f"{key}={value}" for key, value in {**options, **classes}.items())
    text = _shown(f"{architecture}({called}) with an input of {_times(shape)}", found)
    rest = sum(parameter.numel() for parameter in network.parameters()) - found.parameters
    return f"{text}\nIn training alone: an auxiliary head of {rest:,} parameters." if rest else text


def _published(folder: Path) -> ModelCard:
    """Card of a model, by its folder or by its name (``name`` or ``name:version``) in the bundled repository."""
    if (folder / CARD).is_file():
        return read_card(folder)
    models, _ = find_models(BUNDLED)
    cards = [model.card for model in models if str(folder) in (model.card.name, model.card.key)]
    if not cards:
        raise InspectionError(
            f"there is no {str(folder)!r}; there are the architectures {', '.join(ARCHITECTURES)}, the recipes "
            f"{', '.join(RECIPES)}, the models {', '.join(model.card.name for model in models)}, and folders of runs "
            "and models"
        )
    return max(cards, key=lambda card: card.version)


def _shown(title: str, found: Complexity) -> str:
    totals = (
        f"{title}: {found.parameters:,} parameters, {found.macs:,} MACs, "
        f"receptive field {_times(found.receptive_field)}."
    )
    if not found.layers:
        return f"{totals}\nThis card does not list the layers: it was written before cards did. Export the model again."
    lines = [table(found.layers), totals]
    if any(layer.aside for layer in found.layers):
        lines.append("* on a shortcut, beside the longest path: widens no field.")
    return "\n".join(lines)


def table(layers: Sequence[Layer]) -> str:
    """A line per layer: text aligned left, counts right; field and jump are in input steps."""
    rows: list[tuple[str, ...]] = [("layer", "kind", "output", "parameters", "MACs", *_GEOMETRY, "field", "jump")]
    for layer in layers:
        counts = (f"{layer.parameters:,}", f"{layer.macs:,}")
        axes = (layer.kernel, layer.stride, layer.padding, layer.dilation, layer.receptive_field, layer.jump)
        name = f"{layer.name} *" if layer.aside else layer.name
        rows.append((name, layer.kind, _times(layer.output), *counts, *(_times(axis) for axis in axes)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in (3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _times(axes: Sequence[int] | None) -> str:
    return "x".join(map(str, axes)) if axes else "-"


def main(argv: Sequence[str] | None = None) -> None:
    load_or_exit()
    parser = argparse.ArgumentParser(description="Print a network layer by layer: sizes, costs, receptive fields.")
    parser.add_argument("name", metavar="NAME", help="an architecture, recipe, run's folder or published model")
    parser.add_argument("--size", type=int, nargs="+", default=(), metavar="N", help="of the input's last axes")
    parser.add_argument("--categories", type=int, help="how many (default: the network's own)")
    arguments = parser.parse_args(argv)
    if min(*arguments.size, 1 if arguments.categories is None else arguments.categories, 1) < 1:
        parser.error("--size and --categories are numbers from 1 up")
    try:
        print(report(arguments.name, arguments.size, arguments.categories))
    except (InspectionError, ModelRefused, TrainingError, FileNotFoundError) as error:
        raise SystemExit(f"cannot inspect: {error}") from error


if __name__ == "__main__":
    main()
