"""The HTTP contract, from outside, against a real server with models whose answers are known by hand."""

import asyncio
import base64
import contextlib
import io
import json
import re
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.types import Message

from service.errors import REFUSALS
from service.http.middleware import RequestId
from service.http.routes import CLIENT_LEFT, TaskRoutes, create_app
from service.http.state import State
from service.pipeline import Answer, Pipeline
from service.settings import Settings
from service.tasks import TASKS
from service.tasks.task import Task
from service.telemetry.metrics import STAGES
from tests.http.asgi import Call
from tests.samples import grey_clip, grey_png, half_red_png, square_wav
from tests.serving import ROOT, Server


def _problem(response: httpx.Response, status: int, slug: str) -> str:
    """Checks that this is the problem it should be; its detail."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "request_id"}
    assert (problem["type"], problem["status"]) == (f"/problems/{slug}", status)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert str(ROOT) not in problem["detail"] and "Traceback" not in problem["detail"]
    detail: str = problem["detail"]
    return detail


def _mask(encoded: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert image.format == "PNG"
    return np.asarray(image.convert("L"))


# --- the four routes ---


def test_classify_answers_labels_best_first(client: httpx.Client) -> None:
    answer = client.post("/classify", content=grey_png(77)).json()
    assert answer[0] == {"label": "77", "score": 1.0}
    assert len(answer) == 5
    assert [entry["score"] for entry in answer] == sorted((entry["score"] for entry in answer), reverse=True)


def test_segment_answers_one_mask_per_category_at_the_pictures_own_size(client: httpx.Client) -> None:
    answer = client.post("/segment", content=half_red_png(60, 100)).json()
    assert {entry["label"] for entry in answer} == {"red", "dark"}
    assert all(entry["score"] == 0.75 for entry in answer)
    red = _mask(next(entry["mask"] for entry in answer if entry["label"] == "red"))
    assert red.shape == (60, 100)
    assert set(np.unique(red)) == {0, 255}
    assert (red[:, :48] == 255).all() and (red[:, 52:] == 0).all()


def test_audio_answers_for_the_whole_sound(client: httpx.Client) -> None:
    answer = client.post("/audio", content=square_wav(0.8, seconds=0.5)).json()
    assert [entry["label"] for entry in answer] == ["loud", "quiet"]
    assert answer[0]["score"] == pytest.approx(0.8, abs=0.02)


def test_video_answers_for_the_whole_clip(client: httpx.Client) -> None:
    answer = client.post("/video", content=grey_clip(200, frames=20)).json()
    assert [entry["label"] for entry in answer] == ["bright", "dark"]
    assert answer[0]["score"] == pytest.approx(200 / 255, abs=0.03)


def test_windows_answer_a_timeline(client: httpx.Client) -> None:
    sound = square_wav(0.9, seconds=0.25)
    answer = client.post("/audio?windows=true&top_k=1", content=sound).json()
    assert set(answer) == {"predictions", "windows"}
    spans = [[window["start_seconds"], window["end_seconds"]] for window in answer["windows"]]
    assert np.allclose(spans, [[0.0, 0.1], [0.05, 0.15], [0.1, 0.2], [0.15, 0.25]])
    assert all(len(window["predictions"]) == 1 for window in answer["windows"])


def test_segment_answers_a_palette_png_on_request(client: httpx.Client) -> None:
    response = client.post("/segment", content=half_red_png(), headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    assert (image.mode, image.size) == ("P", (60, 40))
    assert np.asarray(image)[20, 5] == 1 and np.asarray(image)[20, 55] == 0
    assert image.convert("RGB").getpixel((5, 20)) == (255, 0, 0)


def test_overlay_blends_the_mask_over_the_picture(client: httpx.Client) -> None:
    response = client.post("/segment?overlay=true", content=half_red_png(), headers={"accept": "image/png"})
    image = Image.open(io.BytesIO(response.content)).convert("RGB")
    assert image.size == (60, 40)
    assert image.getpixel((5, 20)) == (255, 0, 0) and image.getpixel((55, 20)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("accept", "png"),
    [
        ("image/png", True),
        ("image/png, */*;q=0.5", True),
        ("application/json;q=0.5, image/png", True),
        ("*/*", False),
        ("image/*", False),
        ("image/png;q=0, application/json", False),
        ("application/json, image/png;q=0.1", False),
        ("image/png;q=high", False),
    ],
)
def test_png_is_for_those_who_prefer_it_by_name(client: httpx.Client, accept: str, png: bool) -> None:
    response = client.post("/segment", content=half_red_png(), headers={"accept": accept})
    assert response.headers["content-type"] == ("image/png" if png else "application/json")


# --- the forms of the body ---


def test_the_same_bytes_answer_the_same_in_every_form(client: httpx.Client) -> None:
    picture = grey_png(123)
    encoded = base64.b64encode(picture).decode()
    answers = [
        client.post("/classify", content=picture),
        client.post("/classify", content=picture, headers={"content-type": "application/x-www-form-urlencoded"}),
        client.post("/classify", content=picture, headers={"content-type": "image/jpeg"}),
        client.post("/classify", files={"file": ("../../etc/passwd", picture, "text/plain")}),
        client.post("/classify", json={"inputs": encoded}),
        client.post("/classify", json={"inputs": encoded, "parameters": {"top_k": 5, "model": None}}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert all(answer.json() == answers[0].json() for answer in answers)


def test_several_files_answer_in_order_and_a_bad_one_fails_alone(client: httpx.Client) -> None:
    files = [("file", ("a.png", grey_png(1))), ("file", ("b.txt", b"not a picture")), ("file", ("c.png", grey_png(3)))]
    response = client.post("/classify?top_k=1", files=files)
    assert response.status_code == 200
    first, second, third = response.json()["results"]
    assert first == {"filename": "a.png", "predictions": [{"label": "1", "score": 1.0}]}
    assert (second["filename"], second["error"]["status"]) == ("b.txt", 415)
    assert second["error"]["type"] == "/problems/unsupported-media"
    assert third["predictions"][0]["label"] == "3"


def test_more_files_than_the_queue_takes_wait_for_one_another(narrow: httpx.Client) -> None:
    files = [("file", (f"{number}.png", grey_png(number))) for number in range(3)]
    results = narrow.post("/classify?top_k=1", files=files).json()["results"]
    assert [file["predictions"][0]["label"] for file in results] == ["0", "1", "2"]


def test_several_files_are_200_even_if_all_fail(client: httpx.Client) -> None:
    response = client.post("/classify", files=[("file", ("a", b"x")), ("file", ("b", b"y"))])
    assert response.status_code == 200
    assert [result["error"]["status"] for result in response.json()["results"]] == [415, 415]


def test_several_files_cannot_be_one_png(client: httpx.Client) -> None:
    files = [("file", ("a.png", half_red_png())), ("file", ("b.png", half_red_png()))]
    _problem(client.post("/segment", files=files, headers={"accept": "image/png"}), 422, "invalid-parameter")


def test_a_chunked_body_is_read(client: httpx.Client) -> None:
    picture = grey_png(9)
    chunks = (picture[at : at + 7] for at in range(0, len(picture), 7))
    assert client.post("/classify", content=chunks).json()[0]["label"] == "9"


# --- parameters ---


@pytest.mark.parametrize(
    ("route", "query", "named"),
    [
        ("/classify", "top_k=0", "top_k"),
        ("/classify", "top_k=many", "top_k"),
        ("/classify", "timeout_ms=0", "timeout_ms"),
        ("/classify", "timeout_ms=30001", "timeout_ms"),
        ("/classify", "function_to_apply=sigmoid", "function_to_apply"),
        ("/classify", "threshold=0.5", "threshold"),
        ("/classify", "windows=true", "windows"),
        ("/classify", "colour=red", "colour"),
        ("/classify", "top_k=1&top_k=2", "top_k"),
        ("/segment", "threshold=1.5", "threshold"),
        ("/segment", "threshold=nan", "threshold"),
        ("/segment", "top_k=1", "top_k"),
        ("/segment", "overlay=true", "overlay"),
        ("/audio", "windows=perhaps", "windows"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_named(client: httpx.Client, route: str, query: str, named: str) -> None:
    assert named in _problem(client.post(f"{route}?{query}", content=b"not even media"), 422, "invalid-parameter")


@pytest.mark.parametrize(
    "parameters", [{"top_k": "a"}, {"top_k": 0}, {"top_k": True}, {"nonsense": 1}, {"top_k": [1]}, {"timeout_ms": 1e9}]
)
def test_the_same_holds_in_json(client: httpx.Client, parameters: dict[str, Any]) -> None:
    body = {"inputs": base64.b64encode(grey_png(1)).decode(), "parameters": parameters}
    detail = _problem(client.post("/classify", json=body), 422, "invalid-parameter")
    assert next(iter(parameters)) in detail


def test_json_parameters_that_are_no_object_are_refused_and_null_is_no_value(client: httpx.Client) -> None:
    encoded = base64.b64encode(grey_png(1)).decode()
    values: list[object] = [[], "", 0, False, "top_k=1"]
    for parameters in values:
        response = client.post("/classify", json={"inputs": encoded, "parameters": parameters})
        assert "parameters" in _problem(response, 422, "invalid-parameter")
    assert client.post("/classify", json={"inputs": encoded, "parameters": None}).status_code == 200


def test_top_k_beyond_the_categories_means_all(client: httpx.Client) -> None:
    assert len(client.post("/classify?top_k=100000", content=grey_png(5)).json()) == 256


def test_threshold_leaves_out_what_scores_lower(client: httpx.Client) -> None:
    assert client.post("/segment?threshold=0.76", content=half_red_png()).json() == []
    assert len(client.post("/segment?threshold=0.75", content=half_red_png()).json()) == 2


def test_a_model_is_chosen_by_name_and_version(client: httpx.Client) -> None:
    for name in ("tiny-classify", "tiny-classify:1"):
        response = client.post(f"/classify?model={name}", content=grey_png(5))
        assert response.headers["x-model"] == "tiny-classify:1"


@pytest.mark.parametrize("name", ["nobody", "tiny-classify:2", "tiny-audio", "../../etc/passwd", ""])
def test_an_unknown_model_is_404_before_the_media_is_looked_at(client: httpx.Client, name: str) -> None:
    detail = _problem(client.post("/classify", params={"model": name}, content=b"no media"), 404, "model-not-found")
    assert "tiny-classify" in detail


def test_form_fields_are_parameters(client: httpx.Client) -> None:
    file = {"file": ("a.png", grey_png(5))}
    assert len(client.post("/classify", files=file, data={"top_k": "3"}).json()) == 3
    assert len(client.post("/classify?top_k=2", files=file, data={"top_k": "3"}).json()) == 3, "as in JSON"
    form = {"top_k": "1", "model": "tiny-classify", "timeout_ms": "20000"}
    response = client.post("/classify", files=[("file", ("a.png", grey_png(5))), ("file", ("b.png", b"no"))], data=form)
    assert response.headers["x-model"] == "tiny-classify:1"
    assert response.json()["results"][0]["predictions"] == [{"label": "5", "score": 1.0}]


def test_form_fields_that_make_no_sense_are_named(client: httpx.Client) -> None:
    file = {"file": ("a.png", grey_png(5))}
    detail = _problem(client.post("/classify", files=file, data={"colour": "red"}), 422, "invalid-parameter")
    assert "'colour'" in detail and "top_k" in detail and "model" in detail, "and those that there are"
    detail = _problem(client.post("/classify", files=file, data={"top_k": ["1", "2"]}), 422, "invalid-parameter")
    assert "'top_k' is given twice" in detail
    assert "top_k" in _problem(client.post("/classify", files=file, data={"top_k": "no"}), 422, "invalid-parameter")
    assert "model" in _problem(client.post("/classify", files=file, data={"model": "no"}), 404, "model-not-found")


# --- headers ---


def test_answers_carry_id_model_batch_and_timing(client: httpx.Client) -> None:
    headers = client.post("/classify", content=grey_png(5), headers={"x-request-id": "order-66.a"}).headers
    assert headers["x-request-id"] == "order-66.a"
    assert headers["x-model"] == "tiny-classify:1"
    assert int(headers["x-batch-size"]) >= 1
    stages = re.findall(r"(\w+);dur=([\d.]+)", headers["server-timing"])
    assert [name for name, _ in stages] == ["decode", "preprocess", "queue", "inference", "padding", "postprocess"]


@pytest.mark.parametrize(("height", "width", "filling"), [(32, 64, 0.0), (32, 128, 0.5), (128, 32, 0.5), (30, 30, 0.0)])
def test_inference_on_a_pictures_frame_is_told_apart(
    client: httpx.Client, height: int, width: int, filling: float
) -> None:
    timing = client.post("/segment", content=half_red_png(height, width)).headers["server-timing"]
    spent = {name: float(milliseconds) for name, milliseconds in re.findall(r"(\w+);dur=([\d.]+)", timing)}
    assert spent["padding"] / (spent["padding"] + spent["inference"]) == pytest.approx(filling, abs=0.02)


def test_a_request_id_that_is_not_sane_is_replaced(client: httpx.Client) -> None:
    for insane in ("a b", "x" * 129, '"};DROP', ""):
        response = client.post("/classify", content=grey_png(5), headers={"x-request-id": insane})
        assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


def test_refusals_name_the_model_once_it_is_known_and_what_they_cost(client: httpx.Client) -> None:
    headers = client.post("/classify", content=grey_png(5)[:-28]).headers
    assert (headers["x-model"], headers["x-batch-size"]) == ("tiny-classify:1", "0")
    timing = dict(re.findall(r"(\w+);dur=([\d.]+)", headers["server-timing"]))
    assert float(timing["decode"]) > 0 and float(timing["inference"]) == 0
    headers = client.post("/classify?top_k=0", content=grey_png(5)).headers
    assert "x-model" not in headers and "server-timing" in headers


# --- every row of the error table ---


def test_an_empty_body_is_400(client: httpx.Client) -> None:
    _problem(client.post("/classify", content=b""), 400, "empty-body")
    _problem(client.post("/classify", json={"inputs": ""}), 400, "empty-body")
    _problem(client.post("/classify", files={"file": ("a.png", b"")}), 400, "empty-body")


@pytest.mark.parametrize(
    ("route", "media"),
    [
        ("/classify", grey_png(5)[:-28]),
        ("/segment", half_red_png()[:60]),
        ("/audio", square_wav(0.5)[:44]),
        ("/video", grey_clip(9)[:200]),
    ],
    ids=["picture", "mask", "sound", "clip"],
)
def test_media_that_is_cut_off_is_400(client: httpx.Client, route: str, media: bytes) -> None:
    _problem(client.post(route, content=media), 400, "corrupt-media")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"inputs": 3}', b'{"inputs": "***"}', b'"x"', b"\xff", b"[" * 100_000])
def test_json_that_cannot_be_read_is_400(client: httpx.Client, body: bytes) -> None:
    response = client.post("/classify", content=body, headers={"content-type": "application/json"})
    _problem(response, 400, "malformed-body")


def test_multipart_that_cannot_be_read_is_400(client: httpx.Client) -> None:
    response = client.post("/classify", content=b"--x\r\nrubbish", headers={"content-type": "multipart/form-data"})
    _problem(response, 400, "malformed-body")
    response = client.post("/classify", files={"file": (None, "a field")})
    _problem(response, 400, "malformed-body")


def test_multipart_that_ends_early_is_400(client: httpx.Client) -> None:
    request = client.build_request("POST", "/classify", files={"file": ("a.png", grey_png(5))})
    body = request.read()
    headers = {"content-type": request.headers["content-type"]}
    for end in (1, 60, len(body) // 2, len(body) - 5):
        response = client.post("/classify", content=body[:end], headers=headers)
        assert "multipart" in _problem(response, 400, "malformed-body")


def test_a_large_file_is_read(client: httpx.Client) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (1000, 1000), (77, 77, 77)).save(picture, "BMP")  # 3 MB
    for form in ({"content": picture.getvalue()}, {"files": {"file": ("a.bmp", picture.getvalue())}}):
        assert client.post("/classify", **form).json()[0]["label"] == "77"


@pytest.mark.parametrize("route", ["/classify", "/segment", "/video"])
def test_media_that_curl_damaged_gets_a_hint(client: httpx.Client, route: str) -> None:
    """``curl -d @FILE`` drops line ends."""
    media = {"/classify": grey_png(5), "/segment": half_red_png(), "/video": b"\r\nplain text"}[route]
    damaged = media.replace(b"\r", b"").replace(b"\n", b"")
    form = {"content-type": "application/x-www-form-urlencoded"}
    hinted = client.post(route, content=damaged, headers=form)
    assert hinted.status_code in (400, 415) and "--data-binary" in hinted.json()["detail"]
    assert "--data-binary" not in client.post(route, content=damaged).json()["detail"]
    assert "--data-binary" not in client.post(route, content=b"", headers=form).json()["detail"]


@pytest.mark.parametrize("charset", ["undefined", "utf-7", "unicode_escape", "utf-16", "idna"])
def test_the_charset_of_a_form_is_not_for_the_client_to_choose(client: httpx.Client, charset: str) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="+2AA-\\ud800"\r\n\r\n'
    body = (part + grey_png(5) + b"\r\n") * 2 + b"--x--\r\n"
    headers = {"content-type": f"multipart/form-data; charset={charset}; boundary=x"}
    results = client.post("/classify?top_k=1", content=body, headers=headers).json()["results"]
    assert [result["predictions"][0]["label"] for result in results] == ["5", "5"]


def test_a_part_or_key_without_meaning_is_422(client: httpx.Client) -> None:
    assert "image" in _problem(client.post("/classify", files={"image": grey_png(5)}), 422, "invalid-parameter")
    body = {"inputs": base64.b64encode(grey_png(5)).decode(), "top_k": 3}
    assert "top_k" in _problem(client.post("/classify", json=body), 422, "invalid-parameter")


def test_an_unknown_path_is_404_and_a_wrong_method_405(client: httpx.Client) -> None:
    assert "POST /classify" in _problem(client.get("/nothing/here"), 404, "not-found")
    assert "POST" in _problem(client.get("/classify"), 405, "method-not-allowed")
    assert client.get("/classify").headers["allow"] == "POST"
    _problem(client.delete("/models"), 405, "method-not-allowed")
    for method in ("GET", "PUT", "OPTIONS"):
        response = client.request(method, "/bento/classify")
        _problem(response, 405, "method-not-allowed")
        assert response.headers["allow"] == "POST"
    _problem(client.get("/models/nobody"), 404, "model-not-found")


@pytest.mark.parametrize("media", [b"%PDF-1.4 page", b"<svg></svg>", b"plain text", b"\0" * 100, square_wav(0.5)])
def test_what_is_no_picture_is_415_and_says_what_would_be(client: httpx.Client, media: bytes) -> None:
    assert "JPEG" in _problem(client.post("/classify", content=media), 415, "unsupported-media")


def test_a_body_over_the_limit_is_413_whether_declared_or_not(narrow: httpx.Client) -> None:
    large = b"\xff\xd8\xff" + bytes(300_000)
    assert "MAX_BODY_BYTES" in _problem(narrow.post("/classify", content=large), 413, "body-too-large")
    undeclared = (large[at : at + 10_000] for at in range(0, len(large), 10_000))
    with contextlib.suppress(httpx.WriteError):  # the server may hang up before all was sent
        assert "MAX_BODY_BYTES" in _problem(narrow.post("/classify", content=undeclared), 413, "body-too-large")
    _problem(narrow.post("/classify", files={"file": ("a", large)}), 413, "body-too-large")


def test_too_many_files_are_413(narrow: httpx.Client) -> None:
    files = [("file", (f"{number}.png", grey_png(number))) for number in range(4)]
    assert "MAX_FILES" in _problem(narrow.post("/classify", files=files), 413, "body-too-large")


@pytest.mark.parametrize(
    ("route", "media", "limit"),
    [
        ("/classify", grey_png(5, (101, 100)), "MAX_PIXELS"),
        ("/audio", square_wav(0.5, seconds=2.5), "MAX_SECONDS"),
        ("/audio", square_wav(0.5, channels=3), "MAX_CHANNELS"),
        ("/video", grey_clip(5, frames=8, size=(72, 72)), "MAX_FRAME_PIXELS"),
        ("/video", grey_clip(5, frames=20), "MAX_SECONDS"),
        ("/video", grey_clip(5, frames=41, rate_hz=30), "MAX_FRAMES"),
    ],
    ids=["pixels", "seconds", "channels", "frame pixels", "clip seconds", "frames"],
)
def test_media_over_a_limit_is_413_and_names_it(narrow: httpx.Client, route: str, media: bytes, limit: str) -> None:
    assert limit in _problem(narrow.post(route, content=media), 413, "media-too-large")


def test_a_body_that_comes_too_slowly_is_408(narrow_server: Server) -> None:
    with socket.create_connection(("127.0.0.1", narrow_server.port), timeout=20) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nstart")
        answer = b""
        while chunk := connection.recv(65536):  # the server answers, and hangs up
            answer += chunk
    assert b" 408 " in answer.splitlines()[0] and b"/problems/body-timeout" in answer


def test_a_deadline_that_passes_is_504(client: httpx.Client) -> None:
    response = client.post("/video?timeout_ms=1", content=grey_clip(5, frames=200))
    _problem(response, 504, "deadline-exceeded")


def test_a_full_queue_is_503_with_retry_after(narrow: httpx.Client) -> None:
    clip = grey_clip(5, frames=16)

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{narrow.base_url}/video", content=clip, timeout=30, verify=False)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(48)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert {answer.status_code for answer in answers} == {200, 503}
    for answer in refused:
        _problem(answer, 503, "queue-full")
        assert int(answer.headers["retry-after"]) >= 1


def test_every_problem_type_can_be_looked_up(client: httpx.Client) -> None:
    problem = client.post("/classify", content=b"").json()
    looked_up = client.get(problem["type"]).json()
    assert looked_up == {key: problem[key] for key in ("type", "title", "status")}
    assert all(client.get(f"/problems/{slug}").json()["status"] == error.status for slug, error in REFUSALS.items())
    _problem(client.get("/problems/none-such"), 404, "not-found")


def test_a_sound_louder_than_any_is_answered(client: httpx.Client) -> None:
    samples = np.full(800, 3e38, "<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, 8000, 32000, 4, 32)  # WAVE_FORMAT_IEEE_FLOAT
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(samples)) + samples
    wav = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
    assert client.post("/audio", content=wav).json()[0] == {"label": "loud", "score": 1.0}


# --- concurrency ---


def test_many_clients_each_get_their_own_answer(server: Server) -> None:
    def ask(number: int) -> bool:
        level = number % 256
        with httpx.Client(base_url=server.url, timeout=60, verify=False) as one:  # certificates take long to load
            if number % 10 == 0:
                return one.post("/classify", content=b"\x89PNG\r\n\x1a\nbroken").status_code == 400
            answer = one.post("/classify?top_k=1", content=grey_png(level))
            return bool(answer.json() == [{"label": str(level), "score": 1.0}])

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(512)))


def test_clients_that_leave_hurt_nobody(server: Server, client: httpx.Client) -> None:
    picture = grey_png(5)
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    for sent in (head[:20], head, head + picture[:20], head + picture) * 5:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(sent)
    assert client.post("/classify", content=grey_png(6)).json()[0]["label"] == "6"


class SlowPipeline:
    """A pipeline with one model, that answers after so many seconds, and its registry."""

    def __init__(self, seconds: float) -> None:
        self.registry, self.started, self.cancelled = self, 0, 0
        self.card = SimpleNamespace(key="slow:1")
        self.batcher = SimpleNamespace(admission=SimpleNamespace(has_room_for_more=lambda: True))
        self._seconds = seconds

    def find(self, task: str, name: str | None) -> Any:
        return self

    async def answer(self, *asked: object, **how: object) -> Answer:
        self.started += 1
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Answer([], dict.fromkeys(STAGES, 0.0), 1)


async def _ask(pipeline: SlowPipeline, call: Call) -> httpx.Response:
    state = State(Settings(), cast(Pipeline, pipeline))
    return await call.to(RequestId(TaskRoutes(create_app(state), state), lambda path: path, state))


FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\npicture\r\n'


@pytest.mark.parametrize(
    ("body", "files"), [([b"picture"], 1), ([FORM + FORM + b"--x--\r\n"], 2)], ids=["one file", "two files"]
)
async def test_what_a_client_that_left_asked_for_is_cancelled(body: list[bytes], files: int) -> None:
    pipeline = SlowPipeline(seconds=60)
    content_type = b"multipart/form-data; boundary=x" if files > 1 else b"image/png"
    async with asyncio.timeout(10):
        response = await _ask(pipeline, Call("/classify", headers=[(b"content-type", content_type)], body=body))
    assert response.status_code == CLIENT_LEFT
    assert pipeline.started == pipeline.cancelled == files


async def test_a_client_that_leaves_before_its_body_is_whole_asks_for_nothing() -> None:
    pipeline = SlowPipeline(seconds=60)
    call = Call("/classify", body=[b"pict", b"ure"])
    call.scope["headers"] = []

    async def leaves() -> Message:
        message = await Call.receive(call)
        return {"type": "http.disconnect"} if call.received > 1 else message

    call.receive = leaves  # type: ignore[method-assign]
    assert (await _ask(pipeline, call)).status_code == CLIENT_LEFT
    assert not pipeline.started


async def test_whoever_is_answered_soon_is_not_watched() -> None:
    call = Call("/classify", body=[b"picture"])
    assert (await _ask(SlowPipeline(seconds=0.01), call)).status_code == 200
    assert call.received == 1


async def test_a_cancellation_from_elsewhere_is_no_client_that_left() -> None:
    asking = asyncio.create_task(_ask(SlowPipeline(seconds=60), Call("/classify", body=[b"picture"])))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


# --- what stands beside the routes ---


def test_models_lists_the_cards(client: httpx.Client) -> None:
    cards = client.get("/models").json()
    assert {card["name"] for card in cards} == {"tiny-classify", "tiny-segment", "tiny-audio", "tiny-video"}
    assert client.get("/models/tiny-audio").json() == next(card for card in cards if card["name"] == "tiny-audio")
    assert client.get("/models/tiny-audio:1").json()["categories"] == ["loud", "quiet"]


def test_health_and_documentation_answer(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
    assert client.get("/docs").status_code == 200
    assert client.get("/").headers["location"] == "/docs"
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {*(f"/{task}" for task in TASKS), "/models", "/models/{name}", "/problems/{slug}"}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_documentation_tells_parameters_and_answers(client: httpx.Client, task: Task) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"][f"/{task.name}"]["post"]
    known = set(task.parameters.model_fields)
    in_query = {parameter["name"]: parameter for parameter in operation["parameters"] if parameter["in"] == "query"}
    assert set(in_query) == known and not any(parameter["required"] for parameter in in_query.values())
    assert in_query["timeout_ms"]["schema"]["description"]
    forms = operation["requestBody"]["content"]
    assert set(forms) == {"application/octet-stream", "multipart/form-data", "application/json"}
    assert set(forms["multipart/form-data"]["schema"]["properties"]) == {"file", *known}
    assert set(forms["application/json"]["schema"]["properties"]["parameters"]["properties"]) == known
    assert {"200", "400", "404", "408", "413", "415", "422", "503", "504"} <= set(operation["responses"])
    assert set(operation["responses"]["200"]["content"]) == set(task.media_types)
    for status, response in operation["responses"].items():
        assert status == "200" or set(response["content"]) == {"application/problem+json"}


def test_the_documentation_refers_to_nothing_that_is_missing(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for reference in re.findall(r'"\$ref":"#/components/schemas/(\w+)"', json.dumps(document, separators=(",", ":"))):
        assert reference in document["components"]["schemas"]
    answer = document["paths"]["/segment"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    one_file, several = answer["anyOf"]
    assert one_file["items"]["$ref"].endswith("/Segment")
    assert set(document["components"]["schemas"]["Segment"]["properties"]) == {"label", "score", "mask"}
    assert set(document["components"]["schemas"][several["$ref"].rpartition("/")[2]]["properties"]) == {"results"}


def test_paths_of_a_clients_own_make_no_series(client: httpx.Client) -> None:
    for path in ("/models/tiny-audio", "/models/nobody", "/problems/none-such", "/nothing/here", "/classify/x"):
        client.get(path)
    text = client.get("/metrics").text
    endpoints = set(re.findall(r'endpoint="([^"]*)"', text))
    assert {"/models/{name}", "/problems/{slug}", "unknown", "/classify"} <= endpoints
    fixed = {"/", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/metrics", "/models"}
    fixed |= {"/livez", "/readyz", "/healthz"}
    tasks = {f"{prefix}/{task}" for prefix in ("", "/bento") for task in TASKS}
    assert endpoints <= fixed | tasks | {"/models/{name}", "/problems/{slug}", "unknown"}
