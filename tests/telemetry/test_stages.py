import pytest

from service.telemetry.request import STAGES, Run, StageTimer, now


def test_a_stage_that_fails_is_timed_too() -> None:
    watch = StageTimer()
    with pytest.raises(ValueError), watch.stage("decode"):
        raise ValueError
    assert [interval.stage for interval in watch.intervals] == ["decode"]
    (interval,) = watch.intervals
    assert watch.seconds["decode"] == interval.ended - interval.began >= 0


def test_inference_is_told_apart_from_waiting_and_from_filling() -> None:
    watch = StageTimer()
    asked = now() - 10
    # 3 of 4 seconds on samples, a quarter on filling up the batch; then a second batch that was full.
    runs = [Run(asked + 2, 4, size=3, padded_size=4), Run(asked + 6, 2, size=4, padded_size=4)]
    watch.add_inference(asked, runs, filling=0.5)
    assert watch.seconds["queue"] == pytest.approx(4, abs=0.1)
    assert watch.seconds["padding"] == pytest.approx(1 + 0.5 * (6 - 1))
    assert watch.seconds["inference"] == pytest.approx(6 - 3.5)
    queue, inference = watch.intervals
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
