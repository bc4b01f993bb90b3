"""The service beside its limit, bare Starlette and its peers: one machine, one run, results as JSON, table and chart.

make bench                                                   everything: a few hours
python -m benchmarks.bench --quick                           everything, too briefly to rely on
python -m benchmarks.bench --networks resnet20 --only starlette convserve mosec --connections 16 64
python -m benchmarks.bench --scenarios overload --merge      adds to the machine's results
python -m benchmarks.bench --rounds 0 --merge                draws them again, as after a run that was killed
python -m benchmarks.bench --networks cifar10 --file photo.png --results elsewhere    as a load of one's own
"""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import endurance, networks, results
from benchmarks.chart import draw
from benchmarks.contestants import CONTESTANTS, CONVSERVE
from benchmarks.load import LoadError, generator
from benchmarks.measuring import Plan
from benchmarks.networks import Network
from benchmarks.report import markdown
from benchmarks.results import Measurement, Results
from benchmarks.servers import NotServing
from benchmarks.throughput import throughput
from service.settings import usable_cores

SCENARIOS = {
    "throughput": throughput,
    "start": endurance.start,
    "mixed": endurance.mixed,
    "overload": endurance.overload,
}


def measure(plan: Plan, scenarios: Sequence[str], run: str) -> Iterator[Measurement]:
    """Scenario by scenario; one that fails is a measurement that says so."""
    for scenario in scenarios:
        try:
            for measurement in SCENARIOS[scenario](plan):
                print(told(measurement), file=sys.stderr, flush=True)
                yield replace(measurement, run=run)
        except (NotServing, LoadError, OSError) as error:
            yield Measurement(scenario, CONVSERVE.name, "", problem=str(error), run=run)


def told(measurement: Measurement) -> str:
    """One line."""
    _, contestant, network, connections = measurement.key
    values = ", ".join(f"{name} {value:,.4g}" for name, value in measurement.values.items())
    place = f"{measurement.scenario} {measurement.round}: {contestant}, {network}"
    return f"{place}{f', {connections} connections' if connections else ''}: {values or measurement.problem}"


def publish(found: Results, folder: Path) -> Path:
    """Writes the JSON, the table and the chart; returns the JSON's place."""
    path = results.place(folder, found.machine)
    results.write(found, path)
    draw(found, path.with_suffix(".png"))
    path.with_suffix(".md").write_text(markdown(found, chart=path.with_suffix(".png").name))
    return path


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    everyone = list(CONTESTANTS)
    parser = argparse.ArgumentParser(description="Measure the service beside its limit and its peers.")
    parser.add_argument("--only", nargs="+", choices=everyone, default=everyone, metavar="NAME", help=f"of {everyone}")
    parser.add_argument("--networks", nargs="+", choices=networks.names(), default=networks.names(), metavar="NAME")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 16, 64, 256], metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of each measurement")
    parser.add_argument("--answers", type=int, default=400, help="for which slow networks are measured for longer")
    parser.add_argument("--overload-seconds", type=int, default=60, help="of open-loop load")
    parser.add_argument("--quick", action="store_true", help="one round of 2 seconds, 10 of open-loop load")
    parser.add_argument("--merge", action="store_true", help="keep what was measured before and is not measured now")
    parser.add_argument("--results", type=Path, default=results.FOLDER, metavar="FOLDER")
    parser.add_argument("--file", type=Path, help="sent to all instead of the usual; needs other --results")
    chosen = parser.parse_args(argv)
    if chosen.file and (chosen.merge or chosen.results.resolve() == results.FOLDER.resolve()):
        parser.error("what is measured with --file goes into a --results of its own, and is not merged")
    if chosen.file and not chosen.file.is_file():
        parser.error(f"--file {chosen.file} is not a file")
    if chosen.quick:
        chosen.rounds, chosen.seconds, chosen.answers, chosen.overload_seconds = 1, 2, 0, 10
    return chosen


def sent(chosen: argparse.Namespace) -> list[Network]:
    """The networks, each with what it is sent."""
    usual = [networks.network(name) for name in chosen.networks]
    if chosen.file is None:
        return usual
    body = chosen.file.read_bytes()
    return [replace(network, body=body) for network in usual]


def main(argv: Sequence[str] | None = None) -> None:
    chosen = options(argv)
    try:
        generator()
    except LoadError as error:
        raise SystemExit(f"cannot measure: {error}") from error
    run, machine = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), results.machine(usable_cores())
    plan = Plan(
        contestants=chosen.only,
        networks=sent(chosen),
        connections=chosen.connections,
        cores=machine["cores"],
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        answers=chosen.answers,
        overload_seconds=chosen.overload_seconds,
    )
    command = ["python", "-m", "benchmarks.bench", *(sys.argv[1:] if argv is None else argv)]
    facts = {run: results.run_facts(shlex.join(command))}
    path = results.place(chosen.results, machine)
    older = results.read(path) if chosen.merge and path.is_file() else Results(machine, {}, [])
    if older.machine != machine:
        raise SystemExit(f"cannot merge: {path} was measured on {older.machine}, and this is {machine}")
    latest, found = older, list[Measurement]()
    try:
        for measurement in measure(plan, chosen.scenarios, run):
            found.append(measurement)
            latest = older.merged(Results(machine, facts, found))
            results.write(latest, path)  # at once: hours of measuring must outlive what ends the run, be it a kill
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept", file=sys.stderr)
    print(f"written: {publish(latest, chosen.results)}", file=sys.stderr)


if __name__ == "__main__":
    main()
