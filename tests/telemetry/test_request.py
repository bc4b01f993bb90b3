import pytest
from prometheus_client import REGISTRY

from service.telemetry.metrics import STAGES
from service.telemetry.request import (
    BatchRun,
    RequestContext,
    StageTimer,
    cost_headers,
    count_refusal,
    now,
    observe_request,
    observe_stages,
    start_at_zero,
)


def test_a_stage_that_fails_is_timed_too() -> None:
    timer = StageTimer()
    with pytest.raises(ValueError), timer.stage("decode"):
        raise ValueError
    assert [interval.stage for interval in timer.intervals] == ["decode"]
    (interval,) = timer.intervals
    assert timer.seconds["decode"] == interval.ended - interval.began >= 0


def test_a_stage_that_runs_twice_adds_up() -> None:
    timer = StageTimer()
    timer.add("decode", 1.0, 1.5)
    timer.add("decode", 3.0, 3.25)
    assert timer.seconds["decode"] == 0.75
    assert [(interval.began, interval.ended) for interval in timer.intervals] == [(1.0, 1.5), (3.0, 3.25)]


def test_inference_is_told_apart_from_queueing_and_padding() -> None:
    timer = StageTimer()
    asked = now() - 10
    # 3 of 4 seconds on samples, a quarter on padding up the batch; then a second batch that was full.
    runs = [BatchRun(asked + 2, 4, size=3, padded_size=4), BatchRun(asked + 6, 2, size=4, padded_size=4)]
    timer.add_inference(asked, runs, padding=0.5)
    assert timer.seconds["queue"] == pytest.approx(4, abs=0.1)
    assert timer.seconds["padding"] == pytest.approx(1 + 0.5 * (6 - 1))
    assert timer.seconds["inference"] == pytest.approx(6 - 3.5)
    queue, inference = timer.intervals
    assert (queue.began, queue.ended) == (asked, asked + 2)
    assert inference.began == asked + 2 and list(inference.runs) == runs


def test_several_files_have_their_seconds_alone_and_their_intervals_in_common() -> None:
    whole = StageTimer()
    one, other = StageTimer(whole.intervals), StageTimer(whole.intervals)
    one.add("decode", 0, 1)
    other.add("decode", 0, 2)
    assert (one.seconds["decode"], other.seconds["decode"], whole.seconds["decode"]) == (1, 2, 0)
    assert len(whole.intervals) == 2
    assert tuple(whole.seconds) == STAGES


def test_the_context_of_a_request_is_found_in_its_scope() -> None:
    scope: dict[str, object] = {}
    context = RequestContext("an-id", "/classify")
    context.attach(scope)
    assert RequestContext.of(scope) is context


def test_headers_state_milliseconds_by_stage_and_the_batch() -> None:
    stages = {stage: number / 1000 for number, stage in enumerate(STAGES)}
    headers = dict(cost_headers(stages, 7))
    assert headers[b"x-batch-size"] == b"7"
    assert headers[b"server-timing"].decode().split(", ") == [
        f"{stage};dur={number:.3f}" for number, stage in enumerate(STAGES)
    ]


def series(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"convserve_{name}", labels)


def test_a_request_is_counted_with_its_duration_stages_and_refusal() -> None:
    observe_request(RequestContext("an-id", "/counted", status=200), 0.03)
    observe_request(RequestContext("an-id", "/counted", status=503), 0.2)
    assert series("requests_total", endpoint="/counted", status="200") == 1
    assert series("requests_total", endpoint="/counted", status="503") == 1
    assert series("request_duration_seconds_sum", endpoint="/counted") == pytest.approx(0.23)
    observe_stages("/counted", dict.fromkeys(STAGES, 0.5))
    for stage in STAGES:
        assert series("stage_duration_seconds_sum", endpoint="/counted", stage=stage) == 0.5
    count_refusal("/counted", "queue-full")
    count_refusal("/counted", "queue-full")
    assert series("rejected_total", endpoint="/counted", reason="queue-full") == 2


def test_series_that_alerts_count_start_at_zero() -> None:
    start_at_zero(["/started"])
    assert series("requests_total", endpoint="/started", status="200") == 0
    assert series("requests_total", endpoint="/started", status="503") == 0
    assert series("rejected_total", endpoint="/started", reason="queue-full") == 0
    assert series("rejected_total", endpoint="/started", reason="corrupt-media") is None, "the client's own fault"
