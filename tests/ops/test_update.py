import signal
from pathlib import Path

from tests import graphs
from tests.serving import serving
from tests.update import DRAIN_SECONDS, assert_nothing_was_lost, update


def test_an_update_under_load_loses_nothing(tmp_path: Path) -> None:
    repository = graphs.write_all(tmp_path / "repository")
    drain_seconds = str(DRAIN_SECONDS)
    with serving(tmp_path / "log", repository=str(repository), workers="2", drain_seconds=drain_seconds) as server:
        seen = update(server.port, lambda: server.process.send_signal(signal.SIGTERM), server.process.poll)
    assert_nothing_was_lost(seen)
