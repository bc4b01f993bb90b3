"""A virtual environment for each peer, made once and kept until what it requires changes."""

import shutil
import subprocess

from benchmarks.contestants import Contestant, stages_require

_INSTALL_SECONDS = 1200


class NotInstalled(Exception):
    """The message says what stood in the way."""


def install(contestant: Contestant) -> None:
    """Makes its environment if it is not there yet. Raises ``NotInstalled``."""
    if not contestant.requires:
        return
    folder, wanted = contestant.environment, "\n".join([*contestant.requires, *stages_require()])
    stamp = folder / "requirements.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _run(contestant.interpreter, "-m", "venv", str(folder))
        _run(str(contestant.python), "-m", "pip", "install", "--quiet", *wanted.splitlines())
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"installing took longer than {error.timeout:.0f} s") from error
    except FileNotFoundError as error:
        raise NotInstalled(f"{contestant.interpreter} is missing, which {contestant.label} needs") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith("ERROR")] or [error.stderr[-300:]]
        raise NotInstalled(f"{contestant.label} could not be installed: {lines[0]}") from error
    stamp.write_text(wanted)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
