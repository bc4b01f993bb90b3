import pytest

from service.scheduling.batcher import _LongRequestLimit


def ran(quota: _LongRequestLimit, batches: int, *, seconds_each: float) -> list[int]:
    """Its samples, batch by batch, where there are more long requests than it lets in, and nothing else."""
    found = []
    for _ in range(batches):
        found.append(quota.samples)
        quota.ran(quota.samples, of=quota.samples, seconds=quota.samples * seconds_each)
    return found


def test_it_falls_until_a_batch_is_over_in_a_moment_and_stays_there() -> None:
    assert ran(_LongRequestLimit(16), 6, seconds_each=0.003) == [16, 8, 4, 4, 4, 4]


def test_it_is_never_none() -> None:
    assert ran(_LongRequestLimit(8), 6, seconds_each=1.0) == [8, 4, 2, 1, 1, 1]


def test_it_grows_again_where_twice_as_many_take_a_moment() -> None:
    quota = _LongRequestLimit(48)
    ran(quota, 6, seconds_each=1.0)
    assert ran(quota, 6, seconds_each=0.0025) == [1, 2, 4, 8, 8, 8]
    assert ran(quota, 5, seconds_each=0.0) == [8, 16, 32, 48, 48], "up to a batch"


@pytest.mark.parametrize(
    ("samples", "of", "seconds", "left"),
    [(4, 16, 0.04, 16), (4, 16, 0.1, 8), (0, 16, 1.0, 16), (8, 8, 0.04, 8)],
    ids=["their share is short", "their share is long", "none of them", "all of them"],
)
def test_the_time_of_others_in_the_batch_is_not_theirs(samples: int, of: int, seconds: float, left: int) -> None:
    quota = _LongRequestLimit(16)
    quota.ran(samples, of=of, seconds=seconds)
    assert quota.samples == left


def test_what_was_not_used_up_does_not_grow() -> None:
    quota = _LongRequestLimit(16)
    quota.ran(16, of=16, seconds=1.0)
    quota.ran(7, of=16, seconds=0.001)
    assert quota.samples == 8
