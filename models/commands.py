"""Messages of commands beside their results: warnings, and the commands that follow."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from service.tasks import VARIABLE


def warn(message: str) -> None:
    """Prints on standard error, so that results can be piped."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def command(module: str, *arguments: str | Path, **variables: str) -> str:
    """``python -m module arguments``, quoted for a shell, by this very interpreter, for the present folder."""
    if tasks := os.environ.get(VARIABLE):
        variables = {VARIABLE: tasks} | variables
    assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " ".join([*assignments, shlex.join([_interpreter(), "-m", module, *map(str, arguments)])])


def serve_command(repository: Path) -> str:
    return command("service", CONVSERVE_REPOSITORY=str(repository.resolve()))


def _interpreter() -> str:
    """The shortest name of this interpreter that works in the present folder."""
    executable = Path(sys.executable)
    if executable.is_relative_to(Path.cwd()):
        return str(executable.relative_to(Path.cwd()))
    return "python" if shutil.which("python") == sys.executable else sys.executable
