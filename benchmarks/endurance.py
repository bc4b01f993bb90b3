"""The service alone: from its start to its first answer, under more than it can do, and with classes of requests that
differ in cost."""

import asyncio
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import uvloop

from benchmarks.contestants import CONVSERVE, Post
from benchmarks.measuring import Plan, loaded, memory, started, warm
from benchmarks.networks import Network, together
from benchmarks.openloop import GOOD, LATE, REFUSED, Outcome, Sender, Stream, patient, percentile
from benchmarks.results import Measurement
from service.repository.folder import BUNDLED

_BUSY_CONNECTIONS = 64
_SATURATING = (16, 64)
_OVERLOAD = {"resnet50": 10.0, "resnet20": 1.3}  # times what it can do
_OVERLOAD_TIMEOUT_MS = 2000
_RECOVERY_SECONDS = 60
_UTILISATION = 0.6  # of the machine, while classes are mixed
# Two classes, and the second's share of the requests; None gives both as much of the machine.
_MIXES = (("cifar10", "camera-motion", 0.1), ("resnet20", "resnet50", None))


def start(plan: Plan) -> Iterator[Measurement]:
    """Seconds from ``python -m service`` to the first right answer, and what a worker holds once every route's largest
    batches have run, all bundled models loaded."""
    bundled = [replace(network, repository=BUNDLED) for network in plan.networks]
    bundled = [network for network in bundled if network.folder.is_dir()]  # without those of random weights
    if not bundled:
        return
    for number in range(plan.rounds):
        with started(CONVSERVE, bundled[0], plan.cores) as server:
            for network in bundled:
                loaded(server, CONVSERVE.post(network), _BUSY_CONNECTIONS, plan.seconds)
            values = {"start_seconds": server.start_seconds} | memory(server, plan.cores)
            yield Measurement("start", CONVSERVE.name, "bundled", round=number, values=values)


def overload(plan: Plan) -> Iterator[Measurement]:
    """Far more than the service can do, for long: how much of it is still answered, how fast the rest is refused, and
    how soon it is itself again. What it can do is measured before and after, as the machine may have others to serve.
    """
    for number, network in itertools.product(range(plan.rounds), plan.networks):
        if (times := _OVERLOAD.get(network.name)) is None:
            continue
        with started(CONVSERVE, network, plan.cores) as server:
            post = CONVSERVE.post(network)
            warm(server, post)
            with patient():
                usual_seconds = uvloop.run(_usual(server.port, post))
                # By the same sender, which takes more of the machine than wrk does.
                before = _saturations(server.port, post, plan.seconds)
                hurried = replace(post, path=f"{post.path}?timeout_ms={_OVERLOAD_TIMEOUT_MS}")
                stream = Stream(network.name, hurried, times * max(before))
                outcomes, recovery = uvloop.run(_overload(server.port, stream, plan.overload_seconds, usual_seconds))
                after = _saturations(server.port, post, plan.seconds)
        peak = max(statistics.mean(both) for both in zip(before, after, strict=True))
        values = {"offered_per_second": stream.rate_hz, "peak_per_second": peak, "recovery_seconds": recovery}
        values |= tally(outcomes, plan.overload_seconds)
        values["share_of_peak"] = values["good_per_second"] / peak
        yield Measurement("overload", CONVSERVE.name, network.name, round=number, values=values)


def _saturations(port: int, post: Post, seconds: float) -> list[float]:
    return [uvloop.run(_saturated(port, post, connections, seconds)) for connections in _SATURATING]


async def _saturated(port: int, post: Post, connections: int, seconds: float) -> float:
    with closing(Sender(port)) as sender:
        return await sender.saturate(post, connections, seconds)


async def _usual(port: int, post: Post) -> float:
    with closing(Sender(port)) as sender:
        return await sender.usual(post)


async def _overload(port: int, stream: Stream, seconds: float, usual_seconds: float) -> tuple[list[Outcome], float]:
    with closing(Sender(port)) as sender, closing(Sender(port)) as prober:
        sending = asyncio.create_task(sender.send([stream], seconds))
        await asyncio.sleep(seconds)
        recovery = await prober.recover(stream.post, usual_seconds, limit_seconds=_RECOVERY_SECONDS)
        return await sending, recovery


def tally(outcomes: Sequence[Outcome], seconds: float) -> dict[str, float]:
    """What came of requests that were due within ``seconds``; only good answers that came by then make the rate."""
    good = [outcome.seconds for outcome in outcomes if outcome.status == GOOD]
    refused = [outcome.seconds for outcome in outcomes if outcome.status == REFUSED]
    late = sum(outcome.status == LATE for outcome in outcomes)
    in_time = sum(outcome.due + outcome.seconds <= seconds for outcome in outcomes if outcome.status == GOOD)
    told = {
        "sent": len(outcomes),
        "good": len(good),
        "refused": len(refused),
        "late": late,
        "failed": len(outcomes) - len(good) - len(refused) - late,
        "good_per_second": in_time / seconds,
        "p50_ms": percentile(good, 0.5) * 1000,
        "p99_ms": percentile(good, 0.99) * 1000,
        "refusal_p99_ms": percentile(refused, 0.99) * 1000,
    }
    return {name: value for name, value in told.items() if math.isfinite(value)}  # no latency where nothing came


def mixed(plan: Plan) -> Iterator[Measurement]:
    """Two classes of requests, each alone and both together, at rates that leave the machine some room: latency is that
    of a service that is not overloaded, so what one class loses in company is what the other takes from it."""
    networks = {network.name: network for network in plan.networks}
    for number, (first, second, share) in itertools.product(range(plan.rounds), _MIXES):
        if not {first, second} <= set(networks):
            continue
        pair = together([networks[first], networks[second]])
        with started(CONVSERVE, pair[0], plan.cores, CONVSERVE_DEFAULT_MODELS=_defaults(pair)) as server:
            posts = [replace(CONVSERVE.post(one), path=f"{one.route}?model={one.name}") for one in pair]
            capacities = [loaded(server, post, 16, plan.seconds)["requests_per_second"] for post in posts]
            rates = mixed_rates(capacities, share)
            streams = [Stream(one.name, *of) for one, of in zip(pair, zip(posts, rates, strict=True), strict=True)]
            alone = [uvloop.run(_send(server.port, [stream], plan.overload_seconds)) for stream in streams]
            both = uvloop.run(_send(server.port, streams, plan.overload_seconds))
        for stream, quiet in zip(streams, alone, strict=True):
            company = [outcome for outcome in both if outcome.stream == stream.name]
            values = {"offered_per_second": stream.rate_hz}
            for name, outcomes in (("alone", quiet), ("mixed", company)):
                told = tally(outcomes, plan.overload_seconds)
                values |= {f"{name}_{key}": told[key] for key in ("p50_ms", "p99_ms") if key in told}
                values[f"{name}_good_share"] = told["good"] / max(1.0, told["sent"])
            mix = f"{stream.name} of {first} and {second}"
            yield Measurement("mixed", CONVSERVE.name, mix, round=number, values=values)


def _defaults(pair: Sequence[Network]) -> str:
    return ",".join(f"{network.card.task}={network.name}" for network in reversed(pair))


def mixed_rates(capacities: Sequence[float], share: float | None) -> list[float]:
    """Requests per second of two classes that keep the machine busy for ``_UTILISATION`` of the time: the second is
    ``share`` of all requests, or, where that is None, takes as much of the machine as the first."""
    first, second = capacities
    if share is None:
        return [_UTILISATION / 2 * first, _UTILISATION / 2 * second]
    total = _UTILISATION / ((1 - share) / first + share / second)
    return [(1 - share) * total, share * total]


async def _send(port: int, streams: Sequence[Stream], seconds: float) -> list[Outcome]:
    with closing(Sender(port)) as sender:
        return await sender.send(streams, seconds)
