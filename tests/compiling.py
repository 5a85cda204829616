"""Counts the programs that JAX compiles while a block runs."""

import contextlib
from collections.abc import Iterator

import jax

_RECORDS: list[list[float]] = []


def _listen(event: str, seconds: float, **_) -> None:
    if event.endswith("backend_compile_duration"):
        for record in _RECORDS:
            record.append(seconds)


# Listeners can be removed only all at once, so there is one for good.
jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds of each compilation within the block, in a list that fills meanwhile."""
    record: list[float] = []
    _RECORDS.append(record)
    try:
        yield record
    finally:
        _RECORDS[:] = [other for other in _RECORDS if other is not record]
