import importlib.metadata
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service import launch
from tests.serving import ROOT, environment, free_port


def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python -m service``, which must not get as far as serving."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env={**environment({}, 1), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_and_version_are_answers() -> None:
    helped, versioned = start("--help"), start("--version")
    assert (helped.returncode, versioned.returncode) == (0, 0)
    assert "PORT" in helped.stdout
    assert versioned.stdout == f"convserve {importlib.metadata.version('convserve')}\n"


@pytest.mark.parametrize("argument", ["--nonsense", "--vers", "serve"])
def test_an_argument_that_is_unknown_is_refused(argument: str) -> None:
    done = start(argument)
    assert done.returncode == 2
    assert argument in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_port_in_use_is_one_line(host: str) -> None:
    try:
        taken = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        pytest.skip(f"there is no {host} here")
    with taken:
        port = str(taken.getsockname()[1])
        done = start(HOST=host, PORT=port)
    assert done.returncode == 1
    assert done.stderr == f"convserve does not start: port {port} of {host} is in use; choose another with PORT=…\n"


def test_an_address_of_another_machine_is_one_line() -> None:
    done = start(HOST="192.0.2.1", PORT="3000")  # of the block for documentation
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot listen on port 3000 of 192.0.2.1" in done.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "eighty"), ("PORT", "0"), ("PORT", "70000"), ("HOST", "my-machine"), ("HOST", "1.2.3")]
)
def test_where_it_cannot_listen_it_says_so(name: str, value: str) -> None:
    done = start(**{"PORT": "3000", name: value})
    assert done.returncode == 1
    assert done.stderr.startswith(f"convserve does not start: {name} has the value {value!r}")


def test_it_becomes_bentoml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.chdir(tmp_path)  # where no settings were tuned
    port = str(free_port())
    monkeypatch.setattr(os, "environ", {"PORT": port})
    monkeypatch.setattr(os, "execv", lambda program, arguments: became.append(arguments))
    launch.serve([])
    assert became[0][:5] == [sys.executable, "-m", "bentoml", "serve", "service.app:ConvServe"]
    assert became[0][became[0].index("--port") + 1] == port


def test_a_connection_that_has_ended_holds_no_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            accepted.close()  # first, so that this end keeps the port for a minute
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {"PORT": str(port)})
    became: list[str] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: became.append(program))
    launch.serve([])
    assert became


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:"), ("localhost", "http://127.0.0.1:"), ("0.0.0.0", "http://localhost:")],
)
def test_it_says_where_it_answers_and_what_to_try_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str, url: str
) -> None:
    at = f"{url}{(port := free_port())}"
    here, elsewhere = tmp_path / "here", tmp_path / "else where"
    for folder in (here, elsewhere):
        folder.mkdir()
        (folder / "a.jpg").touch()
    samples = {"/classify": here / "a.jpg", "/segment": elsewhere / "a.jpg", "/audio": here / "absent.wav"}
    of_the_project: dict[str, Path | None] = {"/video": Path("samples/cat.jpg"), "/numbers": None}
    monkeypatch.chdir(here)
    monkeypatch.setattr(os, "environ", {"PORT": str(port), "HOST": host})
    monkeypatch.setattr(os, "execv", lambda program, arguments: None)
    launch.serve([])
    for _ in range(2):
        launch.announce(tmp_path, samples | of_the_project)
    assert capsys.readouterr().out.splitlines() == [
        f"convserve is ready at {at} (documentation: {at}/docs). Try:",
        f"  curl --data-binary @a.jpg {at}/classify",
        f"  curl --data-binary @'{elsewhere}/a.jpg' {at}/segment",
        f"  curl --data-binary @{ROOT}/samples/cat.jpg {at}/video",
    ]


def test_without_samples_it_says_where_it_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_CONVSERVE_URL", "http://[::1]:3000")
    launch.announce(tmp_path, {})
    assert capsys.readouterr().out == (
        "convserve is ready at http://[::1]:3000 (documentation: http://[::1]:3000/docs).\n"
    )


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
