"""Evaluation, by the same code for a training run (PyTorch) and for a published model (ONNX Runtime).

python -m models.evaluate RUN_OR_MODEL_FOLDER [--data FOLDER] [--split NAME]

Each file is answered as the service answers it: a sound's or a clip's windows weighted, a mask at the picture's size.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from models.datasets import VOID, DatasetError, Example, evaluated_splits
from models.graph import Served
from models.options import add_data
from models.runs import CHECKPOINT, Run
from models.tasks import TASKS, load_or_exit
from models.tasks.task import Predict, TrainingError, TrainingTask
from service.engines.onnxruntime import Engine
from service.errors import ModelRefused
from service.repository.card import ModelCard, Preprocess
from service.repository.folder import CARD, StoredModel, read_graph
from service.tasks.task import Outputs

FAILURES = (DatasetError, TrainingError, FileNotFoundError, ModelRefused)  # what a command reports in one line


def torch_predict(served: Served, device: torch.device) -> Predict:
    """The PyTorch model with the engine's interface: samples in, each sample's outputs out."""

    def predict(samples: Sequence[NDArray[np.generic]]) -> list[Outputs]:
        batch = torch.from_numpy(np.stack(samples)).to(device)
        with torch.inference_mode():
            outputs = served.eval()(batch)
        arrays = [output.cpu().numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
        return [tuple(array[row] for array in arrays) for row in range(len(samples))]

    return predict


class Model(NamedTuple):
    """A run, by PyTorch, or a published model, by ONNX Runtime; with the data and options that a run was made with."""

    predict: Predict
    task: TrainingTask
    categories: tuple[str, ...]
    preprocess: Preprocess
    source: Run | ModelCard
    data: Path | None = None
    ignore_index: int = VOID

    def examples(self, data: Path, split: str, ignore_index: int | None = None) -> list[Example]:
        index = self.ignore_index if ignore_index is None else ignore_index
        return self.task.load(data, split, self.categories, self.preprocess, index)


def read_model(folder: Path) -> Model:
    """The model in a run's folder or in ``<repository>/<name>/<version>``. Raises one of ``FAILURES``."""
    if (folder / CARD).is_file():
        card = read_card(folder)
        if card.task not in TASKS:
            raise TrainingError(f"the task {card.task!r} has no training side, which evaluation is part of")
        engine = Engine(card, read_graph(StoredModel(card, folder)), threads=0)
        return Model(engine.run, TASKS[card.task], card.categories, card.preprocess, card)
    if not (folder / CHECKPOINT).is_file():
        raise FileNotFoundError(
            f"{folder} holds neither {CHECKPOINT} nor {CARD}; expected a run's folder, or <repository>/<name>/<version>"
        )
    run = Run.load(folder)
    recipe = run.recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predict = torch_predict(run.served().to(device), device)
    return Model(predict, TASKS[recipe.task], run.categories, recipe.preprocess, run, run.data, recipe.ignore_index)


def read_card(folder: Path) -> ModelCard:
    """The card in a published model's folder. Raises ``ModelRefused``."""
    try:
        return ModelCard.model_validate_json((folder / CARD).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]["msg"]
        raise ModelRefused(str(folder), "card", f"{CARD} cannot be used: {first}") from error


def data_folder(stated: Path | None, model: Model | Run) -> Path:
    """The folder ``stated``, else the one that the run was trained on. Raises ``DatasetError`` for neither."""
    if stated is not None:
        return stated
    if model.data is None:
        raise DatasetError("state --data: only runs know the data folder that they were trained on")
    if not model.data.is_dir():
        raise DatasetError(f"{model.data}, which the run was trained on, is not a folder any more: state --data")
    return model.data


def main(argv: Sequence[str] | None = None) -> None:
    load_or_exit()
    parser = argparse.ArgumentParser(description="Evaluate a training run (PyTorch) or a published model (ONNX).")
    parser.add_argument("folder", type=Path, help="a run folder, or <repository>/<name>/<version>")
    add_data(parser)
    parser.add_argument("--split", help="default: every folder test and test-…, or val or train where there is none")
    arguments = parser.parse_args(argv)
    try:
        model = read_model(arguments.folder)
        data = data_folder(arguments.data, model)
        for split in [arguments.split] if arguments.split else evaluated_splits(data):
            examples = model.examples(data, split, arguments.ignore_index)
            for metric in model.task.evaluate(model.predict, examples, len(model.categories), split).metrics:
                print(f"{metric.name} {metric.value:.4f} on {metric.samples} files of {data}/{metric.split}")
    except FAILURES as error:
        raise SystemExit(f"cannot evaluate: {error}") from error


if __name__ == "__main__":
    main()
