import json
import platform
import subprocess
import sys

import pytest

# As a model leaves it that was loaded: much that is free again below a little that is not, so that glibc keeps it all.
PROGRAM = """
import gc, json, psutil
from service import memory
resident = psutil.Process().memory_info().rss
blocks = [bytearray(b"x") * 100_000 for _ in range(1000)]
kept = blocks.pop()
blocks.clear()
before = psutil.Process().memory_info().rss
memory.settle()
after = psutil.Process().memory_info().rss
print(json.dumps([before - resident, after - resident, gc.get_freeze_count()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less by themselves")
def test_the_memory_of_the_start_is_returned_and_objects_that_stay_are_frozen() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, timeout=60).stdout
    before, after, frozen = json.loads(told)
    assert before > 90e6, "nothing was kept: this shows nothing"
    assert after < 10e6
    assert frozen > 1000
