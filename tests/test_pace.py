import pytest

from service.pace import Mean, Pace


def test_a_mean_begins_with_the_first_value_and_forgets() -> None:
    mean = Mean()
    assert mean.value == 0
    mean.add(10.0)
    assert mean.value == 10.0
    mean.add(20.0)
    assert mean.value == pytest.approx(12.0)
    for _ in range(100):
        mean.add(5.0)
    assert mean.value == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("undecoded", "samples", "seconds"),
    [(0, 0, 0.0), (0, 10, 1.0), (6, 10, 1.5), (2, 10, 1.0), (0, 1, 0.1)],
    ids=["nothing", "engine", "decoders are longer", "engine is longer", "one"],
)
def test_the_longer_line_counts(undecoded: int, samples: int, seconds: float) -> None:
    pace = Pace(decoders=2)
    assert pace.seconds_ahead(undecoded, samples) == 0  # nothing is known yet
    pace.decoding.add(0.5)
    pace.inference.add(0.1)
    assert pace.seconds_ahead(undecoded, samples) == pytest.approx(seconds)
    assert pace.seconds_of_one() == pytest.approx(0.6)
