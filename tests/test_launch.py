import subprocess
import sys

import pytest

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
