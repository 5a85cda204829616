"""Counts the programs that JAX compiles while a block runs."""

import contextlib
from collections.abc import Iterator

import jax

_RECORDS: list[list[float]] = []


def _listen(event: str, seconds: float, **_) -> None:
    if event.endswith("backend_compile_duration"):
        for record in _RECORDS:
            record.append(seconds)


# JAX can only remove all listeners at once, so this one is registered once and stays.
jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """Yields a list to which the seconds of each compilation are added while the block runs."""
    record: list[float] = []
    _RECORDS.append(record)
    try:
        yield record
    finally:
        _RECORDS[:] = [other for other in _RECORDS if other is not record]
