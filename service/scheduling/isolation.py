"""Isolation of failing samples: if a batch fails, its samples run again one by one, and only failing ones are failed.

If even a blank sample fails, the engine is broken, and its worker has to be replaced.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from service.engines.engine import Sample

T = TypeVar("T")


class EngineBroken(Exception):
    """The engine answers not even a blank sample."""


async def run_one_by_one(
    run: Callable[[Sequence[Sample]], Awaitable[list[T]]],
    samples: Sequence[Sample],
    run_blank: Callable[[], Awaitable[None]],
) -> AsyncIterator[tuple[int, T | None]]:
    """Runs each sample of a failed batch alone; yields its number and its result, None for one that fails alone.

    Results come as soon as they are known, failures last. Raises ``EngineBroken`` if all fail, and ``run_blank`` too.
    """
    failed: list[int] = []
    for number, sample in enumerate(samples):
        try:
            (result,) = await run([sample])
        except Exception:  # an engine may fail in any way; none of them may stop the others' answers
            failed.append(number)
        else:
            yield number, result
    if len(failed) == len(samples):
        try:
            await run_blank()
        except Exception as error:  # as above
            raise EngineBroken from error
    for number in failed:
        yield number, None
