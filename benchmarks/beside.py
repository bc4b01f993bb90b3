"""Servers beside each other, asked in turn, in bursts of a few seconds: which of two is faster, and by how much.

A machine's speed drifts by more within an hour than most changes gain; neighbouring bursts see the same of it. Who is
not asked is stopped: some servers take a part of a core for waiting.

python -m benchmarks.beside convserve mosec --network camera-motion --connections 16 64
python -m benchmarks.beside convserve ../before        another checkout's service, with this one's interpreter
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks import networks
from benchmarks.contestants import CONTESTANTS, CONVSERVE, Contestant, Post
from benchmarks.environments import install
from benchmarks.measuring import loaded, started, stopped, warm
from benchmarks.servers import Server
from service.settings import usable_cores

_LOOKS, _SECONDS_BETWEEN_LOOKS, _IDLE_SHARE = 20, 0.5, 0.2
Rates = list[list[float]]  # requests/s: a row for each round, with one of each server


def contestant(name: str) -> Contestant:
    """One of them by its name, or the service of the checkout in a folder. Raises ``ArgumentTypeError``."""
    if name in CONTESTANTS:
        return CONTESTANTS[name]
    root = Path(name).resolve()
    if not (root / "service" / "__main__.py").is_file():
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(CONTESTANTS)}, and no folder with a service")
    return replace(CONVSERVE, name=root.name, root=root)


def table(names: Sequence[str], rates: Rates) -> list[str]:
    """A line for each name: the median of its requests/s, and of its neighbours' in time the first's over its own, with
    the extremes."""
    lines = []
    for number, name in enumerate(names):
        of_one = [row[number] for row in rates]
        line = f"{name}: {statistics.median(of_one):,.1f} requests/s"
        if number:
            ratios = sorted(row[0] / row[number] for row in rates)
            line += f"; {names[0]} is at {statistics.median(ratios):.3f} of it ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        lines.append(line)
    return lines


def rest(server: Server) -> None:
    """Until it does next to nothing, for a while at most: some go on with what nobody waits for any more."""
    for _ in range(_LOOKS):
        before = _busy_seconds(server)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        if _busy_seconds(server) - before < _IDLE_SHARE * _SECONDS_BETWEEN_LOOKS:
            return


def _busy_seconds(server: Server) -> float:
    """Of a core, since it was started."""
    seconds = 0.0
    for process in server.processes():
        with suppress(psutil.NoSuchProcess):
            spent = process.cpu_times()
            seconds += spent.user + spent.system
    return seconds


def bursts(servers: Sequence[Server], posts: Sequence[Post], connections: int, rounds: int, seconds: int) -> Rates:
    """Who goes last in one round goes first in the next."""
    rates: Rates = []
    for number in range(rounds):
        row = [0.0] * len(servers)
        for at in sorted(range(len(servers)), reverse=number % 2 == 1):
            with stopped([server for server in servers if server is not servers[at]]):
                values = loaded(servers[at], posts[at], connections, seconds)
                rest(servers[at])
            row[at] = values["requests_per_second"]
            if values["failed"]:
                print(f"{servers[at].contestant.name}: {values['failed']:g} failed", file=sys.stderr)
        rates.append(row)
    return rates


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Load servers in turn, burst by burst, and tell their ratio.")
    offered = f"of {[*CONTESTANTS]}, or a checkout's folder"
    parser.add_argument("contestants", nargs="+", type=contestant, metavar="NAME", help=offered)
    parser.add_argument("--network", choices=networks.names(), default="resnet20", metavar="NAME")
    parser.add_argument("--connections", nargs="+", type=int, default=[16, 64], metavar="N")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=3, help="of each burst")
    chosen = parser.parse_args(argv)
    network = networks.network(chosen.network)
    posts = [asked.post(network) for asked in chosen.contestants]
    with ExitStack() as running:
        servers = []
        for asked, post in zip(chosen.contestants, posts, strict=True):
            install(asked)
            servers.append(running.enter_context(started(asked, network, usable_cores())))
            warm(servers[-1], post)
        for connections in chosen.connections:
            rates = bursts(servers, posts, connections, chosen.rounds, chosen.seconds)
            print(f"{network.name}, {connections} connections, {chosen.rounds} bursts of {chosen.seconds} s each")
            print("\n".join(table([server.contestant.name for server in servers], rates)), flush=True)


if __name__ == "__main__":
    main()
