import pytest

from service.scheduling.admission import LatencyEstimator, MovingAverage


def test_a_mean_begins_with_the_first_value_and_forgets() -> None:
    mean = MovingAverage()
    assert mean.value == 0
    mean.add(10.0)
    assert mean.value == pytest.approx(10.0)
    mean.add(20.0)
    assert mean.value == pytest.approx((0.8 * 10 + 20) / 1.8)
    for _ in range(100):
        mean.add(5.0)
    assert mean.value == pytest.approx(5.0)


def test_what_a_mean_is_taken_of_counts_by_its_number() -> None:
    mean = MovingAverage()
    mean.add(0.0, 64)
    mean.add(64 * 2.0, 64)
    mean.add(50.0)
    assert mean.value == pytest.approx(2.9, abs=0.05), "one slow one beside 64 quick ones"


@pytest.mark.parametrize(
    ("slow", "samples", "seconds"),
    [(0, 0, 0.0), (0, 10, 1.0), (6, 10, 1.5), (2, 10, 1.0), (0, 1, 0.1)],
    ids=["nothing", "engine", "decoders are longer", "engine is longer", "one"],
)
def test_the_longer_line_counts(slow: int, samples: int, seconds: float) -> None:
    pace = LatencyEstimator(decoders=2, on_cpu=True)
    assert pace.seconds_ahead(samples, slow=slow) == 0  # nothing is known yet
    pace.decoded(0.5, slow=True)
    pace.inference.add(0.1)
    assert pace.seconds_ahead(samples, slow=slow) == pytest.approx(seconds)
    assert pace.seconds_of_one(slow=True) == pytest.approx(0.6)
    assert pace.seconds_of_one(slow=False) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("on_cpu", "seconds"),
    [
        pytest.param(True, 2.0, id="the engine of a CPU rests meanwhile, so both count"),
        pytest.param(False, 1.5, id="a GPU does not, but there is one event loop, however many decoders"),
    ],
)
def test_what_is_decoded_at_once_is_decoded_one_by_one(on_cpu: bool, seconds: float) -> None:
    pace = LatencyEstimator(decoders=2, on_cpu=on_cpu)
    pace.decoded(0.5, slow=False)
    pace.inference.add(0.1)
    assert pace.seconds_ahead(5, quick=3) == pytest.approx(seconds)
    assert pace.seconds_of_one(slow=False) == pytest.approx(0.6)


@pytest.mark.parametrize(("on_cpu", "seconds"), [(True, 1.0 + 8.0), (False, 8.0)])
def test_what_is_quick_and_what_is_slow_are_told_apart(on_cpu: bool, seconds: float) -> None:
    pace = LatencyEstimator(decoders=2, on_cpu=on_cpu)
    for _ in range(3):
        pace.decoded(0.5, slow=False)
        pace.decoded(4.0, slow=True)
    assert pace.seconds_ahead(0, quick=2, slow=4) == pytest.approx(seconds)


@pytest.fixture
def known() -> LatencyEstimator:
    """A tenth of a second a sample, and of decoding nothing."""
    pace = LatencyEstimator(decoders=2, on_cpu=True)
    pace.inference.add(0.1)
    return pace


@pytest.mark.parametrize(
    ("at", "seconds"),
    [pytest.param(10.8, 2.0, id="twice as long"), pytest.param(10.2, 1.0, id="as the engine at least")],
)
def test_how_long_it_takes_in_company_is_measured_from_one_answer_to_the_next(
    known: LatencyEstimator, at: float, seconds: float
) -> None:
    known.answered(4, 10.0, waits_since=9.0)
    assert known.seconds_ahead(10) == pytest.approx(1.0)
    known.answered(4, at, waits_since=9.9)
    assert known.seconds_ahead(10) == pytest.approx(seconds)
    assert known.seconds_of_one(slow=False) == pytest.approx(0.1)


def test_of_company_the_last_counts_most(known: LatencyEstimator) -> None:
    for samples, at in ((4, 10.0), (4, 10.8), (10, 14.8)):
        known.answered(samples, at, waits_since=9.0)
    assert known.seconds_ahead(10) == pytest.approx(10 * (0.8 * 0.8 + 4.0) / (0.8 * 4 + 10))


def test_a_bad_moment_is_forgotten_also_where_nobody_is_let_in_because_of_it(known: LatencyEstimator) -> None:
    known.answered(1, 10.0, waits_since=9.0)
    known.answered(1, 40.0, waits_since=9.0)
    assert known.seconds_ahead(1) == pytest.approx(30.0)
    for number in range(1, 27):  # long after one another: none waited for the one before
        known.answered(1, 100.0 * number, waits_since=100.0 * number - 1)
    assert known.seconds_ahead(1) == pytest.approx(0.1)
