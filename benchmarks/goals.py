"""What the service must reach and aims at on a CPU, against what one run measured."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.contestants import CONVSERVE, PEERS, STARLETTE
from benchmarks.results import Key, Results, Spread

SERVING, COMPUTING = "resnet20", "resnet50"  # networks that show what serving costs, and what computing costs
# What is compared in place of requests/s: the machine's speed changes, and the limit was measured beside each of them.
_RATE = "share_of_limit"
_MODELS = ("cifar10", "camvid", "digits", "camera-motion", COMPUTING)


@dataclass(frozen=True)
class Goal:
    """``value`` is None where it was not measured, a bound where none is set; ``at_most`` says that less is better."""

    what: str
    value: float | None
    must: float | None
    aim: float | None
    unit: str = ""
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """The highest bound that is reached."""
        if self.value is None:
            return "not measured"
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if bound is not None and (self.value <= bound if self.at_most else self.value >= bound):
                return name
        return "missed"


def goals(results: Results) -> list[Goal]:
    return [*_costs(results), *_peers(results), *_overload(results), *_holds(results)]


def _costs(results: Results) -> Iterator[Goal]:
    """Served over what decoding, preprocessing and the session alone did about then."""
    shares = results.spreads(_RATE)
    yield Goal("served ÷ limit, ResNet-20, 64 connections", _served(shares, SERVING, 64), 0.70, None)
    bare = _over(_served(shares, SERVING, 64), _median(shares, STARLETTE.name, SERVING, 64))
    yield Goal("served ÷ bare uvicorn + Starlette, ResNet-20, 64 connections", bare, None, 0.97)
    yield Goal("served ÷ limit, ResNet-50, 16 connections", _served(shares, COMPUTING, 16), 0.95, 0.98)
    for network in ("camvid", "digits", "camera-motion"):
        yield Goal(f"served ÷ limit, {network}, 16 connections", _served(shares, network, 16), 0.80, 0.92)


def _peers(results: Results) -> Iterator[Goal]:
    shares = results.spreads(_RATE)
    for network in (SERVING, *_MODELS):
        must, aim = (1.05, 1.3) if network == SERVING else (0.98, 1.05)
        for connections in (16, 64):
            best = max(_of_peers(shares, network, connections), default=None)
            value = _over(_served(shares, network, connections), best)
            yield Goal(f"requests/s ÷ best peer, {network}, {connections} connections", value, must, aim)
    for name, connections, aim in (("p50", 1, 0.7), ("p99", 64, 0.8)):
        latencies = results.spreads(f"{name}_of_limit")
        best = min(_of_peers(latencies, SERVING, connections), default=None)
        value = _over(_served(latencies, SERVING, connections), best)
        what = f"{name} ÷ best peer, ResNet-20, {connections} connection{'s' if connections > 1 else ''}"
        yield Goal(what, value, 1.0, aim, at_most=True)


def _overload(results: Results) -> Iterator[Goal]:
    for network in (COMPUTING, SERVING):
        said = {
            name: _median(results.spreads(name), CONVSERVE.name, network, scenario="overload")
            for name in ("share_of_peak", "refusal_p99_ms", "recovery_seconds")
        }
        yield Goal(f"overload, {network}: good answers ÷ peak", said["share_of_peak"], 0.90, 0.95)
        yield Goal(f"overload, {network}: p99 of refusals", said["refusal_p99_ms"], 50, None, "ms", at_most=True)
        yield Goal(f"overload, {network}: recovery", said["recovery_seconds"], 5, None, "s", at_most=True)


def _holds(results: Results) -> Iterator[Goal]:
    for what, name, must, aim, unit in (
        ("memory per worker, all bundled models", "worker_rss_mb", 350, 250, "MB"),
        ("from start to the first answer", "start_seconds", 6, 4, "s"),
    ):
        value = _median(results.spreads(name), CONVSERVE.name, "bundled", scenario="start")
        yield Goal(what, value, must, aim, unit, at_most=True)


def _median(
    spreads: Mapping[Key, Spread], contestant: str, network: str, connections: int = 0, scenario: str = "throughput"
) -> float | None:
    found = spreads.get(Key(scenario, contestant, network, connections))
    return found.median if found else None


def _served(spreads: Mapping[Key, Spread], network: str, connections: int) -> float | None:
    return _median(spreads, CONVSERVE.name, network, connections)


def _of_peers(spreads: Mapping[Key, Spread], network: str, connections: int) -> Iterable[float]:
    medians = (_median(spreads, peer.name, network, connections) for peer in PEERS)
    return (median for median in medians if median is not None)


def _over(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None
