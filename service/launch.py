"""The start of the service, as by ``make serve`` and the container, and its message once it answers."""

import argparse
import errno
import ipaddress
import os
import resource
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from dotenv import dotenv_values

from service.version import VERSION

_ANNOUNCED = "_CONVSERVE_URL"
_PROJECT = Path(__file__).resolve().parent.parent
TUNED = "tuned.env"  # in the working folder, made by ``make tune``
_DESCRIPTORS = 65_536  # container engines without a bound state a milliard, and some programs loop over all of them
_GRACE_SECONDS = 30  # for requests in flight to finish after the drain; docs/deployment.md says so too


def serve(argv: Sequence[str] | None = None) -> None:
    """Becomes ``bentoml serve``, on HOST (127.0.0.1) and PORT (3000)."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serves the models of a repository over HTTP.",
        epilog="Settings are environment variables: HOST (127.0.0.1), PORT (3000) and those of docs/settings.md.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"convserve {VERSION}")
    parser.parse_args(argv)

    _read_tuned()
    host, port = _host(os.environ.get("HOST") or "127.0.0.1"), _port(os.environ.get("PORT") or "3000")
    _check_free(host, port)
    os.environ[_ANNOUNCED] = _url(host, port)
    arguments = ["serve", "service.app:ConvServe", "--host", host, "--port", str(port)]
    arguments += ["--timeout-graceful-shutdown", str(_GRACE_SECONDS)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *arguments])


def prepare_workers() -> None:
    """Sets what workers inherit, in the process that starts them, however it was started itself."""
    # glibc keeps a heap for each thread by default. Its thresholds are left alone: it adapts them to the load, and
    # fixed ones cost up to 9% of a large picture, in page faults.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    # Where BentoML finds it, killed workers stay dead. See docs/decisions/worker-restarts.md.
    os.environ.pop("BENTOML_CONTAINERIZED", None)
    # Each connection is a file; systemd and container engines allow 1,024 at first, for select(), which is not used.
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _read_tuned() -> None:
    """Reads the settings that ``make tune`` found for this machine; the environment overrides them."""
    if Path(TUNED).is_file():
        found = {name: value for name, value in dotenv_values(TUNED).items() if value and name not in os.environ}
        os.environ.update(found)
        print(f"settings of {TUNED}: {', '.join(f'{name}={value}' for name, value in found.items())}", flush=True)


def _host(name: str) -> str:
    """BentoML takes addresses only."""
    if name == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        _refuse(f"HOST has the value {name!r}; it must be an address, such as 0.0.0.0")


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65536):
        _refuse(f"PORT has the value {text!r}; it must be 1 to 65535")
    return int(text)


def _check_free(host: str, port: int) -> None:
    """Binds as the server will, to explain a failure in one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended hold no port
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                _refuse(f"port {port} of {host} is in use; choose another with PORT=…")
            _refuse(f"it cannot listen on port {port} of {host}: {error.strerror}")


def _url(host: str, port: int) -> str:
    """Returns the address as seen from this machine."""
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _refuse(reason: str) -> NoReturn:
    sys.exit(f"convserve does not start: {reason}")


def announce(folder: Path, samples: Mapping[str, Path | None]) -> None:
    """Prints where the service answers, and a call to try for each route whose sample file is here.

    Only the first worker to call it with the same ``folder`` prints, and none where ``serve`` did not start it.
    """
    url = os.environ.get(_ANNOUNCED)
    if not url:
        return
    try:
        (folder / "announced").touch(exist_ok=False)
    except FileExistsError:
        return
    calls = [
        f"  curl --data-binary @{shlex.quote(found)} {url}{route}"
        for route, sample in samples.items()
        if sample and (found := _from_here(sample))
    ]
    ready = f"convserve is ready at {url} (documentation: {url}/docs)."
    print("\n".join([f"{ready} Try:" if calls else ready, *calls]), flush=True)


def _from_here(sample: Path) -> str | None:
    """Returns the path to type here; None if the file is neither here nor in the project's folder."""
    found = next((path for path in (sample, _PROJECT / sample) if path.is_file()), None)
    if found and found.resolve().is_relative_to(Path.cwd()):
        return str(found.resolve().relative_to(Path.cwd()))
    return str(found) if found else None
