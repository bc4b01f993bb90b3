"""Everyone in turn: the service, bare Starlette and the peers, on each network, by number of connections.

In each round every contestant is started afresh, must answer right, and is warmed before it is measured; one runs at a
time, on all cores, beside wrk. Who comes first changes from round to round.

A shared machine may do twice as much in one minute as in the next. So what the limit does is measured right before and
right after each load, and what was served then is compared with that.

Answers come batch by batch, and what is amid a batch at the end is not counted: of a slow network a few seconds say
little, and less than they should.
"""

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from benchmarks import limit
from benchmarks.contestants import CONTESTANTS, Contestant
from benchmarks.environments import NotInstalled, install
from benchmarks.limit import Limit, LimitError
from benchmarks.load import LoadError
from benchmarks.measuring import Plan, loaded, memory, started, stopped, warm
from benchmarks.networks import Network
from benchmarks.results import Measurement
from benchmarks.servers import NotServing
from benchmarks.stages import Stages

_LIMIT = "limit"  # in the place of a contestant, where it fails
_LOOK_SECONDS = 1.0  # at how long an answer takes
_LIMIT_SHARE = 0.25  # of a load's time, before it and after it
PEER_CONNECTIONS = 64  # what peers do with more is not asked


def throughput(plan: Plan) -> Iterator[Measurement]:
    plans = {network.name: replace(plan, seconds=_seconds(plan, network)) for network in plan.networks}
    batches: dict[str, int] = {}
    given_up: set[tuple[str, str]] = set()
    for number in range(plan.rounds):
        turn = number % len(plan.contestants)
        names = [*plan.contestants[turn:], *plan.contestants[:turn]]
        for network in plan.networks:
            blanks = [
                Measurement("throughput", name, network.name, round=number)
                for name in names
                if (name, network.name) not in given_up
            ]
            for measurement in _round(plans[network.name], network, blanks, batches):
                if measurement.problem:
                    given_up.add((measurement.contestant, network.name))
                yield measurement


def _seconds(plan: Plan, network: Network) -> int:
    """That each measurement lasts: as planned, or until the machine could give ``plan.answers``."""
    done, took = limit.run(Stages(network.folder), network.body, batch=1, seconds=_LOOK_SECONDS)
    return max(plan.seconds, math.ceil(plan.answers * took / done / plan.cores))


def _round(plan: Plan, network: Network, blanks: list[Measurement], batches: dict[str, int]) -> Iterator[Measurement]:
    """Of one network; ``batches`` has, and is given, the limit's batch size for each."""
    seconds = plan.seconds * _LIMIT_SHARE
    try:
        with Limit(network.folder, network.body, processes=plan.cores) as alone:
            batch = batches.get(network.name) or alone.best_batch(seconds=seconds)
            batches[network.name] = batch
            limit_hz = functools.partial(alone.requests_per_second, batch=batch, seconds=seconds)
            for blank in blanks:
                try:
                    for measurement in _served(plan, CONTESTANTS[blank.contestant], network, blank, limit_hz):
                        yield replace(measurement, values={**measurement.values, "limit_batch": batch})
                except (NotInstalled, NotServing, LoadError, OSError) as error:
                    yield replace(blank, problem=str(error))
    except LimitError as error:
        yield Measurement("throughput", _LIMIT, network.name, problem=str(error))


def _served(
    plan: Plan, contestant: Contestant, network: Network, blank: Measurement, limit_hz: Callable[[], float]
) -> Iterator[Measurement]:
    install(contestant)
    with started(contestant, network, plan.cores) as server:
        post = contestant.post(network)
        warm(server, post)
        with stopped([server]):
            before = limit_hz()
        for connections in plan.connections:
            if contestant.requires and connections > PEER_CONNECTIONS:
                continue
            values = loaded(server, post, connections, plan.seconds)
            with stopped([server]):
                after = limit_hz()
            values |= memory(server, plan.cores) | against(statistics.mean((before, after)), values)
            yield replace(blank, connections=connections, values=values)
            before = after


def against(limit_hz: float, values: Mapping[str, float]) -> dict[str, float]:
    """What was served, and how long it took, by what the limit did about then: as a share of its rate, and as how many
    it would have done meanwhile."""
    latencies = {
        f"{name}_of_limit": values[f"{name}_ms"] / 1000 * limit_hz for name in ("p50", "p99") if f"{name}_ms" in values
    }
    return {"limit_per_second": limit_hz, "share_of_limit": values["requests_per_second"] / limit_hz, **latencies}
