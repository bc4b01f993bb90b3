"""What every contestant runs between the bytes and the answer, with models whose answers are known by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.networks import ROOT
from benchmarks.stages import Setup, Stages
from tests import graphs, samples

BODIES = {
    "classify": samples.grey_png(77),
    "segment": samples.half_red_png(),
    "audio": samples.square_wav(0.75),
    "video": samples.grey_clip(255),
}


@pytest.fixture
def stages(tmp_path: Path, request: pytest.FixtureRequest) -> Stages:
    return Stages(graphs.write_model(tmp_path, request.param))


@pytest.mark.parametrize(
    ("stages", "best"),
    [("classify", ("77", 1.0)), ("audio", ("loud", 0.75)), ("video", ("bright", 1.0))],
    indirect=["stages"],
)
def test_a_batch_is_answered_in_order(stages: Stages, best: tuple[str, float]) -> None:
    answers = stages.answers([BODIES[stages.card.task]] * 3)
    assert len(answers) == 3
    for answer in answers:
        assert answer[0]["label"] == best[0]
        assert answer[0]["score"] == pytest.approx(best[1], abs=0.02)


@pytest.mark.parametrize("stages", ["segment"], indirect=True)
def test_a_segmenter_answers_with_masks(stages: Stages) -> None:
    answer = stages.answers([BODIES["segment"]])[0]
    assert {entry["label"] for entry in answer} == set(stages.card.categories)
    assert all(entry["mask"].startswith("iVBOR") for entry in answer)  # PNG in base64


@pytest.mark.parametrize("stages", ["classify"], indirect=True)
def test_neighbours_in_a_batch_keep_their_own_answers(stages: Stages) -> None:
    answers = stages.answers([samples.grey_png(level) for level in (3, 200, 91)])
    assert [answer[0]["label"] for answer in answers] == ["3", "200", "91"]


def test_they_need_no_more_than_a_peer_has() -> None:
    """Its environment holds ONNX Runtime, Pillow, PyAV, pydantic and what the peer brings."""
    absent = {"bentoml", "fastapi", "starlette", "onnx", "prometheus_client", "pydantic_settings", "torch", "models"}
    probe = f"import sys, benchmarks.stages; assert not {absent} & set(sys.modules), {absent} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, timeout=60)


def test_a_setup_comes_back_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(tmp_path, port=4321, workers=2, max_batch=32)
    for name, value in setup.environment().items():
        monkeypatch.setenv(name, value)
    assert Setup.read() == setup
