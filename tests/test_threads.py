import os
import sys
import threading

import pytest

from service.threads import workers


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no niceness of its own")
def test_a_worker_thread_is_nicer_than_the_one_that_made_it() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    with workers(1, "nice") as pool:
        assert pool.submit(niceness).result() == 10
        assert pool.submit(lambda: threading.current_thread().name).result().startswith("nice")
    assert niceness() == before < 10
