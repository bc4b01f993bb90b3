import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.scheduling.threads import background_pool, schedule_in_batches


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no niceness of its own")
def test_threads_of_a_background_pool_are_nicer_than_the_one_that_made_it() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    with background_pool(1, "nice") as pool:
        assert pool.submit(niceness).result() == 10
        assert pool.submit(lambda: threading.current_thread().name).result().startswith("nice")
    assert niceness() == before < 10


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no such policy")
def test_only_the_calling_thread_is_scheduled_in_batches() -> None:
    def policy() -> int:
        return os.sched_getscheduler(0)

    before = policy()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(schedule_in_batches).result()
        assert pool.submit(policy).result() == os.SCHED_BATCH
    assert policy() == before != os.SCHED_BATCH
