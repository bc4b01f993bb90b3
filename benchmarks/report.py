"""Results -> Markdown: what was to be reached, then every figure, as median (lowest to highest of the rounds)."""

import statistics
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.contestants import CONTESTANTS
from benchmarks.goals import Goal, goals
from benchmarks.results import Key, Results, Spread

_METHOD = """\
The limit is decoding, preprocessing and the ONNX session in as many processes as cores, at the batch size that gives
most here: no HTTP, no answer. It is measured before and after each load, as a shared machine may do twice as much in
one minute as in the next; what is compared is not requests/s but their share of what the limit was then, and latencies
as how many the limit would have done meanwhile. `starlette` is bare uvicorn and Starlette with a minimal batcher. All
run the same code between the bytes and the answer (`benchmarks/stages.py`), the same graph, and one ONNX Runtime
thread in each of as many workers as cores, and must answer as the service does before they are measured; what differs
is HTTP, queueing and batching. One server runs at a time, on all cores, beside its load (wrk, one thread), so that the
load's part of the machine is in every figure but the limit's. The service logs each request, as it does by default.
wrk's percentiles are corrected for coordinated omission. Medians over the rounds, in brackets the lowest and the
highest."""


def markdown(results: Results, chart: str) -> str:
    machine = results.machine
    parts = [
        f"# The service, its limit and its peers on {machine['cores']} CPU cores",
        f"{machine['processor']}, {machine['system']}, Python {machine['python']}.",
        "\n".join(_runs(results)),
        f"![served over the limit]({chart})",
        _METHOD,
        "## What is to be reached",
        table(("", "measured", "must", "aim", "reached"), (_goal(goal) for goal in goals(results))),
    ]
    for network in _networks(results, "throughput"):
        parts += [f"## {network}", _limit(results, network), _throughput(results, network)]
    for scenario, title in (
        ("start", "## Start and memory"),
        ("mixed", "## Two classes of requests at once"),
        ("overload", "## More than it can do"),
    ):
        if rows := list(_values(results, scenario)):
            parts += [title, table(("", "value", "median"), rows)]
    if problems := list(_problems(results)):
        parts += ["## What could not be measured", table(("", "network", "why"), problems)]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def number(value: float) -> str:
    """Three digits that count: 1234, 123, 12.3, 1.23, 0.123."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def spread(of: Spread | None) -> str:
    if of is None:
        return ""
    return number(of.median) if of.low == of.high else f"{number(of.median)} ({number(of.low)} to {number(of.high)})"


def _runs(results: Results) -> Iterator[str]:
    for began, facts in results.runs.items():
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        yield f"- {began}, commit {facts['commit']}, settings {facts['settings']}: `{facts['command']}`; {versions}"


def _goal(goal: Goal) -> tuple[str, ...]:
    figures = ("" if of is None else f"{number(of)} {goal.unit}".strip() for of in (goal.value, goal.must, goal.aim))
    return (goal.what, *figures, goal.verdict)


def _networks(results: Results, scenario: str) -> list[str]:
    return list(dict.fromkeys(one.network for one in results.measurements if one.scenario == scenario))


def _throughput(results: Results, network: str) -> str:
    """A row each, the fastest first."""
    rates, shares, p50, p99, batch, held, failed = (
        results.spreads(name)
        for name in ("requests_per_second", "share_of_limit", "p50_ms", "p99_ms", "batch", "all_pss_mb", "failed")
    )
    keys = [key for key in shares if key.scenario == "throughput" and key.network == network]
    counts = sorted({key.connections for key in keys})
    best: dict[str, float] = {}
    for key in keys:
        best[key.contestant] = max(best.get(key.contestant, 0.0), shares[key].median)
    head = ["", *(f"÷ limit at {count}" for count in counts), *(f"requests/s at {count}" for count in counts)]
    head += [*(f"p50, p99 ms at {count}" for count in counts), "batch", "memory MB"]
    rows = []
    for contestant in sorted(best, key=lambda name: -best[name]):
        of = [Key("throughput", contestant, network, count) for count in counts]
        row = [_label(contestant), *(spread(shares.get(key)) for key in of)]
        for key in of:
            fails = f", up to {failed[key].high:.0f} failed" if key in failed and failed[key].high else ""
            row.append(f"{number(rates[key].median)}{fails}" if key in rates else "")
        row += [f"{number(p50[key].median)}, {number(p99[key].median)}" if key in p50 else "" for key in of]
        last = max((key for key in of if key in rates), key=lambda key: key.connections)
        row += [number(values[last].median) if last in values else "" for values in (batch, held)]
        rows.append(row)
    return table(head, rows)


def _limit(results: Results, network: str) -> str:
    """Over all loads of ``network``."""
    found = [one.values for one in results.measurements if (one.scenario, one.network) == ("throughput", network)]
    rates = [values["limit_per_second"] for values in found if "limit_per_second" in values]
    if not rates:
        return "The limit could not be measured."
    batches = sorted({round(values["limit_batch"]) for values in found if "limit_batch" in values})
    told = spread(Spread(statistics.median(rates), min(rates), max(rates)))
    return f"Limit: {told} requests/s, in batches of {' or '.join(map(str, batches))}."


def _values(results: Results, scenario: str) -> Iterator[tuple[str, str, str]]:
    names = dict.fromkeys(name for one in results.measurements if one.scenario == scenario for name in one.values)
    for network in _networks(results, scenario):
        for name in names:
            for key, of in results.spreads(name).items():
                if (key.scenario, key.network) == (scenario, network):
                    yield network, name, spread(of)


def _problems(results: Results) -> Iterator[tuple[str, str, str]]:
    for one in results.measurements:
        if one.problem:
            yield _label(one.contestant), one.network, " ".join(one.problem.replace("|", "/").split())


def _label(contestant: str) -> str:
    return CONTESTANTS[contestant].label if contestant in CONTESTANTS else contestant
