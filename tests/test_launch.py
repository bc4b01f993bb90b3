import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from service import launch
from tests.serving import ROOT, environment


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "eighty"), ("PORT", "0"), ("PORT", "70000"), ("HOST", "my-machine"), ("HOST", "1.2.3")]
)
def test_where_it_cannot_listen_it_says_so(name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=ROOT,
        env={**environment({}, 1), "PORT": "3000", name: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"convserve does not start: {name} has the value {value!r}")


def test_it_becomes_bentoml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.chdir(tmp_path)  # where no settings were tuned
    monkeypatch.setattr(os, "environ", {"PORT": "3456"})
    monkeypatch.setattr(os, "execv", lambda program, arguments: became.append(arguments))
    launch.serve()
    assert became[0][:5] == [sys.executable, "-m", "bentoml", "serve", "service.app:ConvServe"]
    assert became[0][became[0].index("--port") + 1] == "3456"
    assert os.environ["BENTOML_DO_NOT_TRACK"] == "True"


@pytest.mark.parametrize("said,found", [({}, "2"), ({"MALLOC_ARENA_MAX": "8"}, "8")])
def test_workers_get_the_allocator_s_setting_unless_set_already(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str], found: str
) -> None:
    monkeypatch.setattr(os, "environ", said | {"BENTOML_CONTAINERIZED": "true"})
    launch.prepare_workers()
    assert os.environ["MALLOC_ARENA_MAX"] == found
    assert "BENTOML_CONTAINERIZED" not in os.environ, "or BentoML would not start killed workers afresh"


_NO_BOUND = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("allowed", "wanted"),
    [
        ((1024, 524_288), [(65_536, 524_288)]),
        ((1024, 4096), [(4096, 4096)]),
        ((1024, _NO_BOUND), [(65_536, _NO_BOUND)]),
        ((1_048_576, 1_048_576), []),
        ((_NO_BOUND, _NO_BOUND), []),
    ],
)
def test_workers_may_hold_as_many_connections_as_the_machine_allows(
    monkeypatch: pytest.MonkeyPatch, allowed: tuple[int, int], wanted: list[tuple[int, int]]
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(resource, "getrlimit", lambda of: allowed)
    monkeypatch.setattr(resource, "setrlimit", lambda of, to: asked.append(to))
    launch.prepare_workers()
    assert asked == wanted
