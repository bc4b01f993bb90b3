"""Starts the service as ``make serve`` and the container do, and says what to try once it answers.

python -m service
"""

import ipaddress
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

_ANNOUNCED = "_CONVSERVE_URL"
TUNED = "tuned.env"  # in the working folder, made by ``make tune``
_DESCRIPTORS = 65_536  # an engine that bounds nothing says a milliard, up to which some programs count
_GRACE_SECONDS = 30  # what is in flight may take so long to finish after the drain; the README says so too


def serve() -> None:
    """Becomes ``bentoml serve``, on HOST (127.0.0.1) and PORT (3000)."""
    _read_tuned()
    host, port = _host(os.environ.get("HOST") or "127.0.0.1"), os.environ.get("PORT") or "3000"
    if not (port.isdecimal() and 0 < int(port) < 65536):
        sys.exit(f"convserve does not start: PORT has the value {port!r}; it must be 1 to 65535")
    os.environ[_ANNOUNCED] = f"http://{'localhost' if host in ('0.0.0.0', '::') else host}:{port}"
    arguments = ["serve", "service.app:ConvServe", "--host", host, "--port", port]
    arguments += ["--timeout-graceful-shutdown", str(_GRACE_SECONDS)]
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")  # nobody is told that, or what, is served here
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *arguments])


def prepare_workers() -> None:
    """In the process that starts the workers, however it was started itself: what they inherit."""
    # glibc by itself keeps a heap for each thread. Which blocks it gives back at once is left to it, as it learns that
    # from what comes: bounds fixed here cost up to 9% of a large picture, in page faults.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    # The images of `bentoml containerize` set it. Where BentoML finds it, it starts no killed worker afresh, but leaves
    # that to an orchestrator, which sees nothing: the other workers still answer /livez.
    os.environ.pop("BENTOML_CONTAINERIZED", None)
    # Each connection is a file; systemd and container engines allow 1,024 at first, for the sake of select(), which
    # nothing here uses.
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _read_tuned() -> None:
    """What ``make tune`` found for this machine, but for what the environment says itself."""
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
        sys.exit(f"convserve does not start: HOST has the value {name!r}; it must be an address, such as 0.0.0.0")


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
    calls = [f"  curl --data-binary @{path} {url}{route}" for route, path in samples.items() if path and path.is_file()]
    print(
        "\n".join([f"convserve is ready at {url} (documentation: {url}/docs).{' Try:' if calls else ''}", *calls]),
        flush=True,
    )
