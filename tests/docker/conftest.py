import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.docker.engine import (
    BASE_IMAGE,
    BENTO_BASE_IMAGE,
    STAND_IN,
    Engine,
    certificates,
    daemon,
    find_client,
)
from tests.serving import ROOT

# As the images of docker/compose.yaml are: the same commands, folders and users.
_INSTALL = "RUN apt-get update -q && apt-get install -q -y --no-install-recommends"
_DEBIAN_S = {
    "prometheus": f"{_INSTALL} prometheus && mkdir -p /prometheus && chown 65534:65534 /prometheus\n"
    'VOLUME /prometheus\nUSER 65534:65534\nENTRYPOINT ["prometheus"]\n',
    "alertmanager": f"{_INSTALL} prometheus-alertmanager && mkdir -p /alertmanager && chown 65534:65534 /alertmanager\n"
    'VOLUME /alertmanager\nUSER 65534:65534\nENTRYPOINT ["prometheus-alertmanager"]\n',
    "edge": f"{_INSTALL} nginx-light\n",
    "grafana": None,  # Debian has none
}
_DEBIAN = "Debian: apt-get install docker.io debootstrap"


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The one that `docker` speaks to; where there is none, root starts one for these tests."""
    client = find_client()
    if client is None:
        pytest.fail(f"no docker client that can build with BuildKit; {_DEBIAN}")
    at_hand = Engine(client, None)
    if at_hand.attempt("info").returncode == 0:
        yield at_hand
        return
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        pytest.fail(f"no Docker engine answers, and only root can start one; {_DEBIAN}")
    with (
        tempfile.TemporaryDirectory(prefix="convserve-docker-", dir="/var/tmp") as folder,
        daemon(client, Path(folder)) as own,
    ):
        yield own


@pytest.fixture(scope="session")
def stand_in(engine: Engine) -> str:
    """Debian's own Python as a base image, for machines that reach no registry."""
    if engine.attempt("image", "inspect", STAND_IN).returncode:
        if os.geteuid() != 0 or not shutil.which("debootstrap"):
            pytest.fail(f"no registry is reachable, and only root can make a base image; {_DEBIAN}")
        script = Path(__file__).with_name("stand_in_base.sh")
        subprocess.run(["sh", script, STAND_IN], env=engine.environment(), check=True, timeout=600)
    return STAND_IN


@pytest.fixture(scope="session")
def base(engine: Engine, request: pytest.FixtureRequest) -> str:
    name = os.environ.get("BASE_IMAGE", BASE_IMAGE)
    return name if engine.has(name) else str(request.getfixturevalue("stand_in"))


@pytest.fixture(scope="session")
def image(engine: Engine, base: str) -> str:
    engine.build("cpu", "convserve:test-cpu", base)
    return "convserve:test-cpu"


@pytest.fixture(scope="session")
def bento_image(engine: Engine, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `bentoml build` and `bentoml containerize` make of this checkout."""
    if not engine.has(BENTO_BASE_IMAGE):  # a stand-in also of its name, which trusts whom we trust
        request.getfixturevalue("stand_in")
        folder = tmp_path_factory.mktemp("base")
        lines = [f"FROM {STAND_IN}", "RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED"]
        if authority := certificates():
            shutil.copy(authority, folder / "ca.crt")
            lines += ["COPY ca.crt /etc/ssl/certs/ca-certificates.crt"]
            lines += ["ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"]
        (folder / "Dockerfile").write_text("\n".join(lines))
        engine.run("build", f"--tag={BENTO_BASE_IMAGE}", str(folder))
    bentoml = [sys.executable, "-m", "bentoml"]
    environment = {**engine.environment(), "BENTOML_HOME": str(tmp_path_factory.mktemp("bentoml"))}
    containerize = ["containerize", "convserve:test", "--image-tag=convserve:test-bento", "--opt=network=host"]
    for command in (["build", "--version=test"], containerize):
        done = subprocess.run(
            [*bentoml, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return "convserve:test-bento"


@pytest.fixture(scope="session")
def watchers(engine: Engine, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The services of docker/compose.yaml beside ours whose images are at hand, or Debian's programs in their place."""
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    found = set()
    for name, stand_in in _DEBIAN_S.items():
        if not engine.has(services[name]["image"]):
            if stand_in is None:
                continue
            request.getfixturevalue("stand_in")
            folder = tmp_path_factory.mktemp(name)
            (folder / "Dockerfile").write_text(f"FROM {STAND_IN}\n{stand_in}")
            engine.run(*("build", "--network=host", f"--tag={services[name]['image']}", str(folder)), timeout=600)
        found.add(name)
    return found
