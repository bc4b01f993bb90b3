"""The bundled models, on the sample files of the README."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic_core import to_json

from service.engines.onnxruntime import Engine
from service.media import NO_DEADLINE, Limits
from service.repository.folder import BUNDLED, StoredModel, find_models, read_graph
from service.tasks import TASKS
from service.tasks.task import JSON

README = Path(__file__).resolve().parents[2] / "README.md"
SAMPLES = README.parent / "samples"
MAX_BYTES = 24 * 10**6


def test_every_bundled_model_is_sound_and_its_card_tells_how_good_it_is() -> None:
    models, refused = find_models(BUNDLED)
    assert not refused
    for model in models:
        read_graph(model)
        assert model.card.metrics and all(metric.samples > 0 for metric in model.card.metrics)
        assert all(metric.split.startswith("test") for metric in model.card.metrics)
        assert 0 < model.card.parity.largest_difference <= 1e-4 and model.card.parity.samples == 12
        layers = model.card.complexity.layers
        assert model.card.complexity.parameters == sum(layer.parameters for layer in layers) > 0
        assert model.card.complexity.macs == sum(layer.macs for layer in layers) > 0
    assert {model.card.task for model in models if model.card.default} == {"classify", "segment", "audio", "video"}


def test_scores_are_calibrated_where_there_were_files_to_do_it_by() -> None:
    """ESC-10 is too small to spare any: the folds that are learnt from share their recordings' sources."""
    for model in find_models(BUNDLED)[0]:
        calibration = model.card.calibration
        assert calibration is not None
        assert (calibration.samples >= 50) == (model.card.name != "sounds")
        assert calibration.error_after <= calibration.error_before + 0.01, model.card.key


def test_they_are_small_enough_to_live_in_git() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) <= MAX_BYTES


@pytest.mark.parametrize("model", find_models(BUNDLED)[0], ids=lambda model: model.card.key)
def test_a_sample_is_answered_the_same_alone_and_among_others(model: StoredModel) -> None:
    engine = Engine(model.card, read_graph(model))
    rng = np.random.default_rng(0)
    shape = model.card.sample_shapes()[0]
    if model.card.input.dtype == "uint8":
        samples = [rng.integers(0, 256, shape, np.uint8) for _ in range(3)]
    else:
        samples = [rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(3)]
    for sample, together in zip(samples, engine.run(samples), strict=True):
        for alone, shared in zip(engine.run([sample])[0], together, strict=True):
            if alone.dtype.kind == "f":
                np.testing.assert_allclose(np.asarray(alone, float), np.asarray(shared, float), atol=1e-5)
            else:
                assert np.mean(alone != shared) < 1e-4


def answer(task: str, file: str) -> Any:
    """The service's default answer: the task's own steps, and its default model's engine."""
    (model,) = (model for model in find_models(BUNDLED)[0] if model.card.task == task and model.card.default)
    steps, card = TASKS[task], model.card
    parameters = steps.parameters()
    spec = steps.decode_spec(card.preprocess, parameters)
    blocks = steps.decode((SAMPLES / file).read_bytes(), spec, Limits(), NO_DEADLINE)
    prepared = steps.prepare(blocks, card.preprocess)
    outputs = Engine(card, read_graph(model)).run(prepared.samples)
    return json.loads(to_json(steps.finish(outputs, prepared, card, parameters, JSON)))


@pytest.mark.parametrize(
    ("task", "file", "label"),
    [("classify", "cat.jpg", "cat"), ("audio", "seven.wav", "seven"), ("video", "pan-left.mp4", "pan left")],
)
def test_the_samples_are_answered_well(task: str, file: str, label: str) -> None:
    assert answer(task, file)[0]["label"] == label


def test_the_readme_shows_what_is_answered() -> None:
    shown = re.findall(r"^\$ curl --data-binary @samples/(\S+) \S+/(\w+)\n(\[.*)$", README.read_text(), re.MULTILINE)
    assert len(shown) == 4
    for file, task, text in shown:
        entries = re.findall(r'"label":"([^"]+)","score":([0-9.]+)', text)
        assert len(entries) == 2
        for (label, score), given in zip(entries, answer(task, file), strict=False):
            assert label == given["label"]
            assert float(score) == pytest.approx(given["score"], abs=0.002)


def test_every_pixel_of_a_picture_gets_one_category() -> None:
    segments = answer("segment", "tower.jpg")
    masks = [np.asarray(Image.open(io.BytesIO(base64.b64decode(part["mask"])))) for part in segments]
    with Image.open(SAMPLES / "tower.jpg") as picture:
        assert all(mask.shape == (picture.height, picture.width) for mask in masks)
    assert (np.sum([mask == 255 for mask in masks], axis=0) == 1).all()
    assert [part["score"] for part in segments] == sorted((part["score"] for part in segments), reverse=True)
