"""Closed-loop load by wrk: so many connections, each of which asks again as soon as it is answered.

wrk corrects its percentiles for coordinated omission: an answer that took twice the mean counts as two.
"""

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("load.lua")
_TIMEOUT_SECONDS = 60  # of one answer; less would count slow answers as failures
_GRACE_SECONDS = 30


class LoadError(Exception):
    """wrk is missing, or did not say what came of the load."""


@dataclass(frozen=True)
class Load:
    requests_per_second: float  # good answers only
    p50_ms: float  # of all answers; NaN where there was none
    p99_ms: float
    failed: int  # answers of 400 and above, broken connections and timeouts


def generator() -> str:
    """Where wrk is. Raises ``LoadError``."""
    if (found := shutil.which("wrk")) is None:
        raise LoadError("wrk is missing; on Debian: apt-get install wrk")
    return found


def measure(url: str, body: bytes, headers: Mapping[str, str], *, connections: int, seconds: float) -> Load:
    """Posts ``body`` to ``url`` for so long. Raises ``LoadError``."""
    wrk = generator()
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        options = [f"--connections={connections}", f"--duration={seconds:g}s", f"--timeout={_TIMEOUT_SECONDS}s"]
        options += [option for item in headers.items() for option in ("--header", ": ".join(item))]
        command = [wrk, "--threads=1", *options, f"--script={SCRIPT}", url, "--", file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + _GRACE_SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise LoadError(f"{error}: {error.stderr!r}") from error
    return parse(done.stdout)


def parse(printed: str) -> Load:
    """What ``load.lua`` printed last. Raises ``LoadError``."""
    try:
        said = json.loads(printed.strip().splitlines()[-1])
        good, failed = said["requests"] - said["refused"], said["refused"] + said["broken"]
        p50_ms, p99_ms = (said[name] if said["requests"] else math.nan for name in ("p50_ms", "p99_ms"))
        return Load(good / said["seconds"], p50_ms, p99_ms, failed)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise LoadError(f"wrk printed no result: {printed[-500:]!r}") from error
