import re
import subprocess
import sys

from benchmarks.modules_of_a_request import ROOT

MOST_MODULES = 15


def test_a_request_passes_few_modules() -> None:
    """In a process of its own, as it starts the app and traces every call."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.modules_of_a_request"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *table, total = done.stdout.strip().splitlines()
    modules = {line.split()[0] for line in table[1:]}
    assert {"service.http.routes", "service.pipeline", "service.tasks.classify", "service.media.image"} <= modules
    assert re.fullmatch(rf"{len(modules)} modules, \d+ functions, \d+ crossings", total)
    assert len(modules) <= MOST_MODULES, done.stdout
