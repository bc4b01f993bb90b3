import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.scheduling.threads import wait_for_turns, workers


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no niceness of its own")
def test_a_worker_thread_is_nicer_than_the_one_that_made_it() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    with workers(1, "nice") as pool:
        assert pool.submit(niceness).result() == 10
        assert pool.submit(lambda: threading.current_thread().name).result().startswith("nice")
    assert niceness() == before < 10


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no such policy")
def test_only_the_thread_that_says_so_waits_for_its_turns() -> None:
    def policy() -> int:
        return os.sched_getscheduler(0)

    before = policy()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(wait_for_turns).result()
        assert pool.submit(policy).result() == os.SCHED_BATCH
    assert policy() == before != os.SCHED_BATCH
