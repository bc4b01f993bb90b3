"""The clients that others wrote: Hugging Face's, BentoML's, curl."""

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.samples import grey_clip, grey_png, half_red_png, square_wav
from tests.serving import Server


@pytest.fixture
def hub(server: Server) -> InferenceClient:
    return InferenceClient(token="unused", timeout=30)


def test_hugging_faces_image_classification(hub: InferenceClient, server: Server) -> None:
    best = hub.image_classification(grey_png(42), model=f"{server.url}/classify")[0]
    assert (best.label, best.score) == ("42", 1.0)
    assert len(hub.image_classification(grey_png(42), model=f"{server.url}/classify", top_k=2)) == 2


def test_hugging_faces_image_segmentation(hub: InferenceClient, server: Server) -> None:
    segments = {part.label: part for part in hub.image_segmentation(half_red_png(), model=f"{server.url}/segment")}
    assert set(segments) == {"red", "dark"}
    mask: Any = segments["red"].mask  # a PIL picture, though the client's type says str
    assert mask.size == (60, 40)
    assert hub.image_segmentation(half_red_png(), model=f"{server.url}/segment", threshold=0.9) == []


def test_hugging_faces_image_segmentation_with_all_that_it_may_ask(hub: InferenceClient, server: Server) -> None:
    for mask_threshold, certain in ((0.7, True), (0.8, False)):  # the model is sure of everything by 0.75
        segments = hub.image_segmentation(
            half_red_png(), model=f"{server.url}/segment", subtask="semantic", mask_threshold=mask_threshold
        )
        masks: dict[str, Any] = {part.label: part.mask for part in segments}
        assert set(masks) == {"red", "dark"}
        assert np.asarray(masks["red"]).any() == np.asarray(masks["dark"]).any() == certain
    with pytest.raises(HfHubHTTPError, match="422"):
        hub.image_segmentation(half_red_png(), model=f"{server.url}/segment", subtask="instance")


def test_hugging_faces_audio_classification(hub: InferenceClient, server: Server) -> None:
    best = hub.audio_classification(square_wav(0.9), model=f"{server.url}/audio")[0]
    assert best.label == "loud"


@pytest.fixture
def bento(server: Server) -> Iterator[bentoml.SyncHTTPClient]:
    with bentoml.SyncHTTPClient(server.url) as opened:
        yield opened


def test_bentomls_client_calls_the_four_methods(bento: bentoml.SyncHTTPClient) -> None:
    assert bento.classify(grey_png(7))[0] == {"label": "7", "score": 1.0}
    assert {part["label"] for part in bento.segment(half_red_png())} == {"red", "dark"}
    assert bento.audio(square_wav(0.9))[0]["label"] == "loud"
    assert bento.video(grey_clip(250))[0]["label"] == "bright"


@pytest.mark.parametrize(
    ("media", "status"), [(b"", 400), (grey_png(3)[:-28], 400), (b"plain text", 415)], ids=["empty", "cut off", "text"]
)
def test_bentos_methods_keep_the_status(client: httpx.Client, media: bytes, status: int) -> None:
    response = client.post("/bento/classify", content=media, headers={"content-type": "application/octet-stream"})
    assert response.status_code == status
    assert "error" in response.text
    assert response.headers["x-request-id"]


def test_bentos_methods_have_the_same_limits(narrow: httpx.Client) -> None:
    binary = {"content-type": "application/octet-stream"}
    large = b"\xff\xd8\xff" + bytes(300_000)
    assert narrow.post("/bento/classify", content=large, headers=binary).status_code == 413
    assert narrow.post("/bento/classify", content=grey_png(5, (101, 100)), headers=binary).status_code == 413
    assert narrow.post("/bento/audio", content=square_wav(0.5, seconds=3), headers=binary).status_code == 413


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "multipart/form-data", "image/png", "application/json"]
)
def test_bentos_methods_read_raw_bytes_whatever_the_content_type_says(client: httpx.Client, content_type: str) -> None:
    response = client.post("/bento/classify", content=grey_png(5), headers={"content-type": content_type})
    assert response.json()[0]["label"] == "5"


def test_bentos_methods_fetch_nothing_that_a_string_names(client: httpx.Client) -> None:
    for body in (b"http://127.0.0.1:9/x", b'"http://127.0.0.1:9/x"', b'{"media": "file:///etc/passwd"}'):
        response = client.post("/bento/classify", content=body, headers={"content-type": "application/json"})
        assert 400 <= response.status_code < 500


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_as_the_readme_calls_it(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "grey.png"
    file.write_bytes(grey_png(99))
    for how in (["--data-binary", f"@{file}"], ["-F", f"file=@{file}"], ["-T", str(file), "-X", "POST"]):
        done = subprocess.run(
            ["curl", "-sS", *how, f"{server.url}/classify?top_k=1"], capture_output=True, timeout=30, check=True
        )
        assert done.stdout == b'[{"label":"99","score":1.0}]'


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_with_form_fields_and_with_the_wrong_option(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "grey.png"
    file.write_bytes(grey_png(10))

    def curl(*how: str) -> bytes:
        command = ["curl", "-sS", *how, f"{server.url}/classify"]
        return subprocess.run(command, capture_output=True, timeout=30, check=True).stdout

    assert curl("-F", f"file=@{file}", "-F", "top_k=1") == b'[{"label":"10","score":1.0}]'
    assert b"use --data-binary, as -d drops line ends" in curl("-d", f"@{file}")


def test_many_bento_clients_each_get_their_own_answer(server: Server) -> None:
    def ask(level: int) -> bool:
        headers = {"content-type": "application/octet-stream"}
        url = f"{server.url}/bento/classify"  # without certificates, which take long to load
        answer = httpx.post(url, content=grey_png(level), headers=headers, timeout=30, verify=False)
        return bool(answer.json()[0]["label"] == str(level))

    with ThreadPoolExecutor(16) as pool:
        assert np.all(list(pool.map(ask, range(128))))
