"""Starting contestants, asking them each in its own way, and ending all that they started."""

import email
import email.policy
import json
from pathlib import Path

import psutil
import pytest

from benchmarks import servers
from benchmarks.contestants import CONTESTANTS, PEERS, Contestant
from benchmarks.networks import Network
from benchmarks.servers import NotServing, free_ports, same, serving
from benchmarks.stages import Setup
from service.repository.card import ModelCard
from tests import graphs, samples

RIGHT = [{"label": "77", "score": 1.0}]
FAKE = Contestant("fake", "tests.bench_server", CONTESTANTS["starlette"].post)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    monkeypatch.setattr(servers, "WORK", tmp_path / "work")
    monkeypatch.setattr(servers, "_STOP_SECONDS", 1)
    folder = graphs.write_model(tmp_path / "repository", "classify")
    card = ModelCard.model_validate_json((folder / "card.json").read_bytes())
    return Network(card, tmp_path / "repository", samples.grey_png(77))


def setup(network: Network) -> Setup:
    return Setup(network.folder, free_ports(), workers=1, max_batch=4)


def test_what_a_server_leaves_behind_is_ended_too(network: Network) -> None:
    others = psutil.Process().children(recursive=True)
    with serving(FAKE, network, setup(network), RIGHT, TEST_ANSWER=json.dumps(RIGHT)) as server:
        started = set(psutil.Process().children(recursive=True)) - set(others)
        assert server.process in started
        assert any("time.sleep(600)" in " ".join(process.cmdline()) for process in started)
    assert not any(process.is_running() for process in started)


def test_others_are_left_alone(network: Network) -> None:
    with serving(FAKE, network, setup(network), RIGHT, TEST_ANSWER=json.dumps(RIGHT)) as first:
        with serving(FAKE, network, setup(network), RIGHT, TEST_ANSWER=json.dumps(RIGHT)):
            pass
        assert first.process.is_running()


def test_a_wrong_answer_is_no_contestant(network: Network) -> None:
    wrong = json.dumps([{"label": "78", "score": 1.0}])
    with (
        pytest.raises(NotServing, match=r"it answers .*78.* where .*77.* is right"),
        serving(FAKE, network, setup(network), RIGHT, TEST_ANSWER=wrong),
    ):
        pass


def test_one_that_does_not_start_is_quoted(network: Network) -> None:
    with (
        pytest.raises(NotServing, match="it ended with 1: it has nothing to say"),
        serving(FAKE, network, setup(network), RIGHT, TEST_ANSWER="none"),
    ):
        pass


def test_answers_agree_but_for_rounding() -> None:
    answer = [{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}]
    assert same(answer, [{"label": "a", "score": 0.6002}, {"label": "b", "score": 0.3998}])
    assert not same(answer, answer[:1])
    assert not same(answer, answer[::-1])
    assert not same([{**answer[0], "mask": "x"}], [{**answer[0], "mask": "y"}])


def test_each_peer_gets_the_same_bytes(network: Network) -> None:
    """Whatever they are wrapped in, as another reader unwraps it."""
    for name in ("convserve", "starlette", "mosec", "litserve", "ray-serve", "torchserve"):
        assert CONTESTANTS[name].post(network).body == network.body
    form = CONTESTANTS["bentoml"].post(network)
    head = f"Content-Type: {form.headers['Content-Type']}\r\n\r\n".encode()
    parts = list(email.message_from_bytes(head + form.body, policy=email.policy.HTTP).iter_parts())
    assert [part.get_payload(decode=True) for part in parts] == [network.body]
    binary = CONTESTANTS["pytriton"].post(network)
    length = int(binary.headers["Inference-Header-Content-Length"])
    tensor = json.loads(binary.body[:length])["inputs"][0]
    assert tensor["parameters"]["binary_data_size"] == len(binary.body) - length
    assert binary.body[length:] == len(network.body).to_bytes(4, "little") + network.body


def test_peers_are_pinned() -> None:
    assert all("==" in peer.requires[0] for peer in PEERS)
