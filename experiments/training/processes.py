"""Several processes that train as one: joining them, who writes, and stopping together."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments._errors import UsageError
from experiments.training.config import TrainConfig

# A process that has died or stands still is missed for this long before the others end with an error.
HEARTBEAT_SECONDS = 20


def connector(config: TrainConfig) -> Callable[[], int] | None:
    """What joins the other processes of a run and returns how many there are; None for a run of one process."""
    if not config.distributed and config.coordinator_address is None:
        return None

    def connect() -> int:
        if jax.distributed.is_initialized():
            return jax.process_count()
        try:
            jax.distributed.initialize(
                coordinator_address=config.coordinator_address,
                num_processes=config.num_processes,
                process_id=config.process_id,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except ValueError as error:
            raise UsageError(
                f"the other processes are not found ({error}); give --coordinator_address=HOST:PORT, --num_processes "
                "and --process_id"
            ) from error
        return config.num_processes or jax.process_count()

    return connect


class PeerError(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Says what a failed collective means, when there are several processes.

    A process that stands still fails no collective: JAX itself ends the others when it is missed.

    Raises:
      PeerError: in place of JAX's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise PeerError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one "
            f"({str(error).partition(chr(10))[0][:200]}). Start the same command again in every process: the run goes "
            "on from its last checkpoint"
        ) from error


def gathered(answers: Sequence[bool]) -> np.ndarray:
    """The answers of every process, shape (processes, answers); to be asked by every process."""
    here = np.array(answers, bool)
    return here[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(here))


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


class Termination:
    """Remembers a SIGTERM, so that the loop can end after a whole step. Only the main thread can listen.

    Use it as a context. Of several processes, all end after the same step, whichever was told.
    """

    def __enter__(self):
        self._received = False
        self._before = None
        # With several processes JAX listens, and tells the others.
        if jax.process_count() == 1:
            try:
                self._before = signal.signal(signal.SIGTERM, self._receive)
            except ValueError:
                self._before = None
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def is_due(self, step: int) -> bool:
        """Whether to stop after this step; to be asked by every process after every step."""
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)

    def _receive(self, *_):
        self._received = True
