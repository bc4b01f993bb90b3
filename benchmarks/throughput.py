"""Everyone in turn: the limit, the service, bare Starlette and the peers, on each network, by number of connections.

In each round every contestant is started afresh, must answer right, and is warmed before it is measured; one runs at a
time, on all cores, beside wrk. Who comes first changes from round to round.

Answers come batch by batch, and what is amid a batch at the end is not counted: of a slow network a few seconds say
little, and less than they should.
"""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import limit, load
from benchmarks.contestants import CONTESTANTS, Contestant
from benchmarks.environments import NotInstalled, install
from benchmarks.measuring import Plan, loaded, memory, started, warm
from benchmarks.networks import Network
from benchmarks.results import Measurement
from benchmarks.servers import NotServing
from benchmarks.stages import Stages

LIMIT = "limit"
_LOOK_SECONDS = 1.0  # at how long an answer takes
PEER_CONNECTIONS = 64  # what peers do with more is not asked


def throughput(plan: Plan) -> Iterator[Measurement]:
    batches: dict[str, int] = {}
    plans = {network.name: replace(plan, seconds=_seconds(plan, network)) for network in plan.networks}
    given_up: set[tuple[str, str]] = set()
    for number in range(plan.rounds):
        turn = number % len(plan.contestants)
        for network in plan.networks:
            for name in [*plan.contestants[turn:], *plan.contestants[:turn]]:
                if (name, network.name) in given_up:
                    continue
                blank = Measurement("throughput", name, network.name, round=number)
                try:
                    if name == LIMIT:
                        yield replace(blank, values=_limit(plans[network.name], network, batches))
                    else:
                        yield from _served(plans[network.name], CONTESTANTS[name], network, blank)
                except (NotInstalled, NotServing, load.LoadError, limit.LimitError, OSError) as error:
                    given_up.add((name, network.name))
                    yield replace(blank, problem=str(error))


def _seconds(plan: Plan, network: Network) -> int:
    """That each measurement lasts: as planned, or until the machine could give ``plan.answers``."""
    done, took = limit.run(Stages(network.folder), network.body, batch=1, seconds=_LOOK_SECONDS)
    return max(plan.seconds, math.ceil(plan.answers * took / done / plan.cores))


def _limit(plan: Plan, network: Network, batches: dict[str, int]) -> dict[str, float]:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(network.body)
        what = (network.folder, Path(file.name))
        if network.name not in batches:
            batches[network.name] = limit.best_batch(*what, processes=plan.cores, seconds=plan.seconds / 4)
        batch = batches[network.name]
        rate = limit.measure(*what, processes=plan.cores, batch=batch, seconds=plan.seconds)
    return {"requests_per_second": rate, "batch": batch}


def _served(plan: Plan, contestant: Contestant, network: Network, blank: Measurement) -> Iterator[Measurement]:
    install(contestant)
    with started(contestant, network, plan.cores) as server:
        post = contestant.post(network)
        warm(server, post)
        for connections in plan.connections:
            if contestant.requires and connections > PEER_CONNECTIONS:
                continue
            values = loaded(server, post, connections, plan.seconds)
            yield replace(blank, connections=connections, values=values | memory(server, plan.cores))
