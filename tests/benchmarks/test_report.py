"""Medians, merging, goals and tables, against figures that are worked out by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import bench, results, throughput
from benchmarks.chart import draw
from benchmarks.goals import Goal, goals
from benchmarks.measuring import Plan
from benchmarks.report import markdown, number, table
from benchmarks.results import Key, Measurement, Results, Spread

MACHINE = {"cores": 2, "processor": "an abacus", "system": "Linux", "python": "3.11"}
RUNS = {"then": {"command": "bench", "commit": "abc", "settings": "the defaults", "versions": {"numpy": "2"}}}


def served(
    contestant: str, connections: int, *rates: float, network: str = "resnet20", **values: float
) -> list[Measurement]:
    """A measurement a round, each beside a limit of its own, which is in none of the values as they are given."""
    return [
        Measurement("throughput", contestant, network, connections, number, beside(limit, rate, values), run="then")
        for number, (limit, rate) in enumerate(zip((1000, 2000, 500), rates, strict=False))
    ]


def beside(limit: float, rate: float, values: dict[str, float]) -> dict[str, float]:
    """On a machine that is as fast as the ``limit`` says; ``rate`` and latencies are what they would be at 1000."""
    at_speed = {name: value * 1000 / limit if name.endswith("_ms") else value for name, value in values.items()}
    found = {"requests_per_second": rate * limit / 1000, **at_speed}
    return found | throughput.against(limit, found) | {"limit_batch": 8}


@pytest.fixture
def found() -> Results:
    measurements = [
        *served("convserve", 64, 790, 800, 870, p50_ms=70, p99_ms=90),
        *served("starlette", 64, 820, 800, 780, p50_ms=70, p99_ms=95),
        *served("mosec", 64, 500, 600, 640, p50_ms=100, p99_ms=120),
        *served("litserve", 64, 300, 310, 400, p50_ms=200, p99_ms=100, failed=7),
        *served("convserve", 1, 300, p50_ms=3, p99_ms=5),
        *served("mosec", 1, 200, p50_ms=4, p99_ms=6),
        Measurement("throughput", "pytriton", "resnet20", problem="it | ended\nwith 1", run="then"),
        Measurement(
            "overload", "convserve", "resnet50", values={"share_of_peak": 0.93, "refusal_p99_ms": 60}, run="then"
        ),
        Measurement("start", "convserve", "bundled", values={"start_seconds": 5.5, "worker_rss_mb": 210}, run="then"),
    ]
    return Results(MACHINE, RUNS, measurements)


def test_a_median_stands_between_the_extremes_of_its_rounds(found: Results) -> None:
    shares = found.spreads("share_of_limit")[Key("throughput", "convserve", "resnet20", 64)]
    assert shares == pytest.approx(Spread(0.8, 0.79, 0.87))


@pytest.mark.parametrize(
    ("what", "value", "verdict"),
    [
        ("served ÷ limit, ResNet-20, 64 connections", 0.8, "must"),
        ("served ÷ bare uvicorn + Starlette, ResNet-20, 64 connections", 1.0, "aim"),
        ("requests/s ÷ best peer, resnet20, 64 connections", 800 / 600, "aim"),
        ("requests/s ÷ best peer, resnet20, 16 connections", None, "not measured"),
        ("p50 ÷ best peer, ResNet-20, 1 connection", 0.75, "must"),
        ("p99 ÷ best peer, ResNet-20, 64 connections", 0.9, "must"),
        ("overload, resnet50: good answers ÷ peak", 0.93, "must"),
        ("overload, resnet50: p99 of refusals", 60, "missed"),
        ("overload, resnet50: recovery", None, "not measured"),
        ("memory per worker, all bundled models", 210, "aim"),
        ("from start to the first answer", 5.5, "must"),
    ],
)
def test_goals_are_ratios_of_medians(found: Results, what: str, value: float | None, verdict: str) -> None:
    goal = {goal.what: goal for goal in goals(found)}[what]
    assert goal.value == (value if value is None else pytest.approx(value))
    assert goal.verdict == verdict


def test_a_bound_itself_is_good_enough() -> None:
    assert Goal("", 0.7, must=0.7, aim=0.8).verdict == "must"
    assert Goal("", 50, must=50, aim=None, at_most=True).verdict == "must"
    assert Goal("", 50.1, must=50, aim=None, at_most=True).verdict == "missed"


def test_results_survive_being_written(found: Results, tmp_path: Path) -> None:
    results.write(found, tmp_path / "new" / "cpu-2.json")
    assert results.read(tmp_path / "new" / "cpu-2.json") == found


def test_merging_replaces_what_was_measured_again_and_keeps_the_rest(found: Results) -> None:
    newer = Results(MACHINE, {"now": RUNS["then"]}, [replace(one, run="now") for one in served("mosec", 64, 700)])
    merged = found.merged(newer)
    shares = merged.spreads("share_of_limit")
    assert shares[Key("throughput", "mosec", "resnet20", 64)] == Spread(0.7, 0.7, 0.7)
    assert shares[Key("throughput", "litserve", "resnet20", 64)].median == 0.31
    assert list(merged.runs) == ["then", "now"]
    assert list(newer.merged(replace(newer, runs={"later": {}}, measurements=[])).runs) == ["now"]


def test_a_problem_is_over_once_something_was_measured(found: Results) -> None:
    assert any(one.problem for one in found.measurements)
    merged = found.merged(Results(MACHINE, RUNS, served("pytriton", 64, 700)))
    assert not any(one.problem for one in merged.measurements)


def test_the_report_names_everyone_the_fastest_first_and_what_failed(found: Results) -> None:
    lines = markdown(found, chart="cpu-2.png").splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| convserve", "| starlette", "| mosec", "| lits"))]
    assert [row[0] for row in rows] == ["| convserve", "| starlette", "| mosec 0.9.8", "| litserve 0.2.19"]
    assert rows[0][1:5] == ["0.300", "0.800 (0.790 to 0.870)", "300", "790"]
    assert rows[3][4] == "300, up to 7 failed"
    assert "Limit: 1,000 (500 to 2,000) requests/s, in batches of 8." in lines
    assert "| nvidia-pytriton 0.7.0 | resnet20 | it / ended with 1 |" in lines
    assert any("commit abc, settings the defaults: `bench`; numpy 2" in line for line in lines)


def test_a_table_is_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123"), (0, "0.000")],
)
def test_three_digits_count(value: float, text: str) -> None:
    assert number(value) == text


def test_a_chart_is_drawn(found: Results, tmp_path: Path) -> None:
    draw(found, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_measured_is_a_report_all_the_same(tmp_path: Path) -> None:
    path = bench.publish(Results(MACHINE, {}, []), tmp_path)
    assert path.name == "cpu-2.json"
    assert "not measured" in path.with_suffix(".md").read_text()


def test_what_was_measured_is_whole_at_every_moment(found: Results, tmp_path: Path) -> None:
    path = tmp_path / "cpu-2.json"
    results.write(found, path)
    before = path.read_bytes()
    with path.open("rb") as opened:  # as one would find it who came just then
        results.write(Results(MACHINE, {}, []), path)
        assert opened.read() == before
    assert results.read(path).measurements == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["cpu-2.json"]


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is measured next, in place of any scenario; when there is no more, the run is killed."""
    coming: list[float] = []

    def scenario(plan: Plan) -> Iterator[Measurement]:
        for turn in range(plan.rounds):
            if not coming:
                raise SystemExit("killed")
            yield replace(served("convserve", 64, coming.pop(0))[0], round=turn)

    monkeypatch.setattr(bench, "SCENARIOS", {"throughput": scenario})
    monkeypatch.setattr(bench, "generator", lambda: Path("wrk"))
    monkeypatch.setattr(results, "machine", lambda cores: MACHINE)
    return coming


def test_a_run_that_is_killed_leaves_what_it_had_measured_to_be_drawn(rates: list[float], tmp_path: Path) -> None:
    rates += [700, 800]
    options = ["--scenarios", "throughput", "--networks", "resnet20", "--results", str(tmp_path)]
    with pytest.raises(SystemExit, match="killed"):
        bench.main([*options, "--rounds", "3"])
    bench.main([*options, "--rounds", "0", "--merge"])
    held = results.read(tmp_path / "cpu-2.json")
    assert list(held.spreads("requests_per_second").values()) == [Spread(750, 700, 800)]
    assert "| 0.750 (0.700 to 0.800) | 750 |" in (tmp_path / "cpu-2.md").read_text()


def test_what_another_processor_did_is_not_merged_with(rates: list[float], tmp_path: Path) -> None:
    bench.publish(Results({**MACHINE, "processor": "a slide rule"}, {}, served("mosec", 64, 1)), tmp_path)
    before = (tmp_path / "cpu-2.json").read_bytes()
    rates += [700]
    with pytest.raises(SystemExit, match="a slide rule"):
        bench.main(["--networks", "resnet20", "--rounds", "1", "--merge", "--results", str(tmp_path)])
    assert (tmp_path / "cpu-2.json").read_bytes() == before


def test_where_the_limit_failed_the_report_says_so() -> None:
    failed = Measurement("throughput", "limit", "resnet20", problem="no memory", run="then")
    text = markdown(Results(MACHINE, RUNS, [failed]), "chart.png")
    assert "The limit could not be measured." in text
    assert "| limit | resnet20 | no memory |" in text


def test_quick_is_one_round() -> None:
    chosen = bench.options(["--quick", "--networks", "resnet20", "--only", "starlette", "mosec"])
    assert (chosen.rounds, chosen.only, chosen.networks) == (1, ["starlette", "mosec"], ["resnet20"])
    assert chosen.answers == 0, "or slow networks would not be quick"


def test_a_file_of_one_s_own_is_what_every_network_is_sent(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"pixels")
    chosen = bench.options(["--networks", "cifar10", "digits", "--file", str(photo), "--results", str(tmp_path)])
    assert [(network.name, network.body) for network in bench.sent(chosen)] == [
        ("cifar10", b"pixels"),
        ("digits", b"pixels"),
    ]


@pytest.mark.parametrize(
    "options,why",
    [
        (["--file", "PHOTO"], "of its own"),
        (["--file", "PHOTO", "--results", "elsewhere", "--merge"], "not merged"),
        (["--file", "nowhere.png", "--results", "elsewhere"], "nowhere.png is not a file"),
    ],
)
def test_another_load_is_not_mixed_with_the_usual_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], why: str
) -> None:
    photo = tmp_path / "photo.png"
    photo.touch()
    with pytest.raises(SystemExit):
        bench.options([str(photo) if option == "PHOTO" else option for option in options])
    assert why in capsys.readouterr().err


def test_an_unknown_peer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.options(["--only", "triton"])
    assert "invalid choice: 'triton'" in capsys.readouterr().err
