"""A task of one's own, from a folder of files to a server's answers, with no line of service/ or models/ changed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.serving import ROOT, Server, serving

TASK = "tests.fifth_task.serving:SERIES"
SHAPES = ("falling", "noise", "rising")
BINARY = {"Content-Type": "application/octet-stream"}


def series(shape: str, random: np.random.Generator) -> NDArray[np.float64]:
    """Between 30 and 200 numbers."""
    steps = np.arange(random.integers(30, 200))
    noise = random.normal(0, 1, len(steps))
    slope = {"falling": -1, "noise": 0, "rising": 1}[shape]
    return random.uniform(-50, 50) + slope * random.uniform(0.1, 1) * steps + noise


def as_json(numbers: NDArray[np.float64]) -> bytes:
    return json.dumps(numbers.round(3).tolist()).encode()


def as_csv(numbers: NDArray[np.float64]) -> bytes:
    return "\n".join(f"{number:.3f}" for number in numbers).encode()


def command(module: str, *arguments: str | Path) -> str:
    """The output of ``python -m module`` with the task in CONVSERVE_TASKS."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "CONVSERVE_TASKS": TASK},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder, a run that was trained on it, and a repository with its model."""
    made = tmp_path_factory.mktemp("fifth")
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 20), ("test", 10)):
        for shape in SHAPES:
            place = made / "shapes" / split / shape
            place.mkdir(parents=True)
            for number in range(count):
                numbers = series(shape, random)
                path = place / f"{number}.{'json' if number % 2 else 'csv'}"
                path.write_bytes(as_json(numbers) if number % 2 else as_csv(numbers))
    printed = command("models.train", "series", "--data", made / "shapes", "--run", made / "run")
    assert "epoch 12/12" in printed and f"CONVSERVE_TASKS={TASK} " in printed
    command("models.export", made / "run", "--repository", made / "repository", "--default")
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder / "log", repository=str(folder / "repository"), tasks=TASK, workers="1") as running:
        yield running


# Training


def test_the_run_and_the_published_model_are_evaluated(folder: Path) -> None:
    model = folder / "repository" / "series" / "1"
    by_torch = command("models.evaluate", folder / "run")
    by_onnx = command("models.evaluate", model, "--data", folder / "shapes")
    for printed in (by_torch, by_onnx):
        found = re.search(r"accuracy ([\d.]+) on 30 files of .*/test", printed)
        assert found and float(found[1]) >= 0.9


def test_the_card_states_task_recipe_and_preprocessing(folder: Path) -> None:
    card = json.loads((folder / "repository" / "series" / "1" / "card.json").read_text())
    assert (card["task"], card["training"]["recipe"], card["categories"]) == ("series", "series", list(SHAPES))
    assert card["preprocess"] == {"media": "series", "length": 64}
    assert card["description"] == "Whether a series rises, falls or is noise."
    assert card["parity"]["samples"] == 12 and card["calibration"]["samples"] == 60
    assert card["architecture"] == "series_cnn()" and card["complexity"]["parameters"] > 0


def test_the_report_draws_series(folder: Path) -> None:
    drawn = sorted(path.name for path in (folder / "run" / "report").iterdir())
    assert drawn == ["confusion.png", "curves.png", "metrics.json", "reliability.png", "samples.png"]


def test_the_network_can_be_inspected_by_name() -> None:
    printed = command("models.inspect", "series_cnn")
    assert "series_cnn() with an input of 1x64" in printed


def test_a_command_without_the_task_names_the_variable(folder: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CONVSERVE_TASKS"}
    done = subprocess.run(
        [sys.executable, "-m", "models.evaluate", str(folder / "run")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "was made by the recipe 'series', which is unknown; CONVSERVE_TASKS names a task" in done.stderr


# Serving


def test_requests_are_counted_from_zero(server: Server) -> None:
    """Before the first request: this test comes first of those that ask the server."""
    metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
    counted = re.findall(r'^convserve_requests_total\{endpoint="/series",status="\d+"\} (\S+)$', metrics, re.M)
    assert counted and set(counted) == {"0.0"}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["json", "csv"])
def test_lists_and_csv_are_answered(server: Server, shape: str, form: str) -> None:
    numbers = series(shape, np.random.default_rng(9))
    body, headers = (as_json(numbers), BINARY) if form == "json" else (as_csv(numbers), {"Content-Type": "text/csv"})
    response = httpx.post(f"{server.url}/series", content=body, headers=headers, params={"top_k": 2}, timeout=30)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert len(answer) == 2 and answer[0]["label"] == shape and answer[0]["score"] > 0.5
    assert response.headers["X-Model"] == "series:1"


def test_concurrent_requests_share_batches(server: Server) -> None:
    body = as_json(series("rising", np.random.default_rng(1)))
    with httpx.Client(base_url=server.url, timeout=30, headers=BINARY) as client, ThreadPoolExecutor(16) as pool:
        for _ in range(40):  # on a busy machine 16 threads may not meet at once
            responses = list(pool.map(lambda _: client.post("/series", content=body), range(16)))
            assert {response.status_code for response in responses} == {200}
            assert {response.json()[0]["label"] for response in responses} == {"rising"}
            if max(int(response.headers["X-Batch-Size"]) for response in responses) > 1:
                return
    pytest.fail("no two requests shared a batch")


@pytest.mark.parametrize("body", [b"1,2,three", b"[1, 2", b"", b"[]", b"[[1], [2]]", b"1,nan"])
def test_what_is_no_series_is_refused_with_a_problem_document(server: Server, body: bytes) -> None:
    response = httpx.post(f"{server.url}/series", content=body, headers={"Content-Type": "text/csv"}, timeout=30)
    assert response.status_code == 400
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["status"] == 400


def test_the_route_is_documented_with_its_parameters(server: Server) -> None:
    documented = httpx.get(f"{server.url}/openapi.json", timeout=30).json()["paths"]["/series"]["post"]
    assert {field["name"] for field in documented["parameters"]} == {"model", "timeout_ms", "top_k"}
    assert "a JSON list of numbers" in documented["requestBody"]["description"]


def test_the_model_is_listed_with_its_card(server: Server, folder: Path) -> None:
    (card,) = httpx.get(f"{server.url}/models", timeout=30).json()
    assert card == json.loads((folder / "repository" / "series" / "1" / "card.json").read_text())


def test_bentomls_method_answers(server: Server) -> None:
    body = as_csv(series("falling", np.random.default_rng(2)))
    response = httpx.post(f"{server.url}/bento/series", content=body, headers=BINARY, timeout=30)
    assert response.status_code == 200, response.text
    assert response.json()[0]["label"] == "falling"


def test_answers_are_counted_by_status(server: Server) -> None:
    metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
    assert re.search(r'convserve_requests_total\{endpoint="/series",status="200"\} [1-9]', metrics)
    assert re.search(r'convserve_requests_total\{endpoint="/series",status="400"\} [1-9]', metrics)


# Nothing names it


def test_neither_service_nor_training_names_the_task() -> None:
    for package in ("service", "models"):
        for path in (ROOT / package).rglob("*.py"):
            assert "fifth_task" not in path.read_text() and '"series"' not in path.read_text(), path
