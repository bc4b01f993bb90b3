"""The cards' figures once more, through the running service: every file of the test splits is sent as a client would.

make serve                                                           in one terminal; in another
python -m benchmarks.accuracy data                                   each served model on its own recipe's data
python -m benchmarks.accuracy my_photos --model cifar10 --split new  one model on any folder of its categories
"""

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from models.datasets import VOID, DatasetError, category_folders, evaluated_splits
from models.masks import read_categories
from models.metrics import classification_metrics, intersection_over_union
from models.recipes import RECIPES
from service.repository.card import Metric, ModelCard

CLIENTS = 4
_T = TypeVar("_T")


def measure(client: httpx.Client, card: ModelCard, data: Path, split: str) -> list[Metric]:
    """The metrics of ``card`` on ``data/split``, from the answers to its files alone. Raises ``DatasetError`` for the
    folder and ``httpx.HTTPError`` for what is refused."""
    if card.task == "segment":
        return _measure_masks(client, card, data, split)
    if unknown := set(category_folders(data / split)) - set(card.categories):
        raise DatasetError(f"{data / split} holds {sorted(unknown)}, which {card.key} does not know")
    files = [
        (path, card.categories.index(category))
        for category in category_folders(data / split)
        for path in sorted((data / split / category).iterdir())
    ]

    def ask(item: tuple[Path, int]) -> list[float]:
        answer = _post(client, card, item[0], {"top_k": len(card.categories)}).json()
        scores = {entry["label"]: entry["score"] for entry in answer}
        return [scores[category] for category in card.categories]

    probabilities = np.array(list(_asked(ask, files, f"{card.key} on {split}")))
    return classification_metrics(probabilities, np.array([target for _, target in files]), split)


def _measure_masks(client: httpx.Client, card: ModelCard, data: Path, split: str) -> list[Metric]:
    if (found := read_categories(data)) != card.categories:
        raise DatasetError(f"{data}/categories.txt names {list(found)}; {card.key} knows {list(card.categories)}")
    count = len(card.categories)

    def ask(path: Path) -> NDArray[np.int64]:
        answer = _post(client, card, path, accept="image/png")
        with Image.open(io.BytesIO(answer.content)) as image:
            answered = np.asarray(image)
        with Image.open(data / split / "masks" / f"{path.stem}.png") as image:
            true = np.asarray(image)
        known = true != VOID
        pairs = true[known].astype(np.int64) * count + answered[known]
        return np.bincount(pairs, minlength=count**2).reshape(count, count)

    files = sorted((data / split / "images").iterdir())
    confusion = np.sum(list(_asked(ask, files, f"{card.key} on {split}")), axis=0)
    return intersection_over_union(confusion, len(files), split)


def _post(
    client: httpx.Client, card: ModelCard, path: Path, parameters: dict[str, Any] | None = None, accept: str = "*/*"
) -> httpx.Response:
    response = client.post(
        f"/{card.task}",
        content=path.read_bytes(),
        params={"model": card.key} | (parameters or {}),
        headers={"Accept": accept},
    )
    if response.is_error:
        raise httpx.HTTPStatusError(f"{path}: {response.text}", request=response.request, response=response)
    return response


def _asked(ask: Callable[[_T], Any], files: Sequence[_T], label: str) -> Iterator[Any]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        yield from tqdm(pool.map(ask, files), total=len(files), desc=label, unit="file")


def _own_folder(card: ModelCard) -> str:
    """Where `models.fetch` lays out what the model was trained on."""
    recipe = RECIPES.get(card.training.recipe)
    return recipe.source.folder if recipe else card.name


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the served models through HTTP.")
    parser.add_argument("data", type=Path, help="the folder of data sets; with --model, one data set's")
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--model", help="only this one")
    parser.add_argument("--split", help="default: test and every test-…")
    arguments = parser.parse_args(argv)
    try:
        with httpx.Client(base_url=arguments.url, timeout=60) as client:
            path = f"/models/{arguments.model}" if arguments.model else "/models"
            answer = client.get(path).raise_for_status().json()
            for card in map(ModelCard.model_validate, answer if isinstance(answer, list) else [answer]):
                data = arguments.data if arguments.model else arguments.data / _own_folder(card)
                for split in [arguments.split] if arguments.split else evaluated_splits(data):
                    for metric in measure(client, card, data, split):
                        print(f"{card.key}: {metric.name} {metric.value:.4f} on {metric.samples} of {data / split}")
    except (DatasetError, OSError, httpx.HTTPError) as error:
        raise SystemExit(f"cannot measure: {error}") from error


if __name__ == "__main__":
    main()
