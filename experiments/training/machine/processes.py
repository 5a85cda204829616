"""Several processes that train together: joining them, choosing the one that writes, and stopping together."""

import contextlib
import errno
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..._errors import UsageError

# Seconds without a heartbeat after which JAX takes a process for dead, and ends the others with an error.
HEARTBEAT_SECONDS = 20
# The longest time that a process waits for the others to start, and the interval between its messages.
CONNECT_SECONDS = 300.0
MESSAGE_INTERVAL_SECONDS = 15.0
# JAX's own limit ends the process without a message, so it lies this much later than ours.
JAX_LIMIT_MARGIN_SECONDS = 60
# The timeout of one attempt to reach process 0, and the pause between two attempts.
ATTEMPT_SECONDS = 2.0


class Group(Protocol):
    """The options of `TrainConfig` that say which processes train together."""

    @property
    def distributed(self) -> bool:
        """Whether JAX finds the processes by itself."""
        ...

    @property
    def coordinator_address(self) -> str | None:
        """Host and port of process 0."""
        ...

    @property
    def num_processes(self) -> int | None:
        """The number of processes."""
        ...

    @property
    def process_id(self) -> int | None:
        """The number of this process, from 0."""
        ...


def connector(options: Group) -> Callable[[], int] | None:
    """Returns a function that joins the other processes of a run; None for a run of one process.

    Args:
      options: the options that say which processes train together.

    Returns:
      A function that joins the other processes and returns the number of processes. It raises `UsageError` if they are
      not found and `PeerError` if they do not start in time.
    """
    if not options.distributed and options.coordinator_address is None:
        return None

    def connect() -> int:
        if jax.distributed.is_initialized():
            return jax.process_count()
        try:
            if options.coordinator_address is None:
                _initialize(options, None)
            else:
                _meet(options, options.coordinator_address)
        except ValueError as error:
            raise UsageError(
                f"the other processes cannot be found ({error}); give --coordinator_address=HOST:PORT, --num_processes "
                "and --process_id"
            ) from error
        return options.num_processes or jax.process_count()

    return connect


class PeerError(RuntimeError):
    """Another process of the run that has ended or cannot be reached."""


def _initialize(options: Group, bind_address: str | None) -> None:
    jax.distributed.initialize(
        coordinator_address=options.coordinator_address,
        num_processes=options.num_processes,
        process_id=options.process_id,
        coordinator_bind_address=bind_address,
        initialization_timeout=int(CONNECT_SECONDS) + JAX_LIMIT_MARGIN_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )


def _meet(options: Group, address: str) -> None:
    """Joins the processes that meet at an address, and prints what this process waits for.

    JAX waits in a call that prints nothing and cannot be interrupted, so the call is made in another thread.

    Args:
      options: the options that say which processes train together.
      address: host and port of process 0.

    Raises:
      UsageError: this is process 0, and it cannot listen at the address.
      PeerError: the other processes have not started in time.
    """
    waiting = _Waiting(address)
    bind_address = None
    if options.process_id == 0:
        bind_address = address if _can_listen_at(address) else None
        waiting.what = (
            f"for the other {(options.num_processes or 1) - 1} of {options.num_processes} processes at {address}"
        )
    else:
        waiting.what = f"for process 0 at {address}"
        while (reason := _unreachable(address)) is not None:
            waiting.say(reason)
            time.sleep(min(ATTEMPT_SECONDS, MESSAGE_INTERVAL_SECONDS))
    failed: list[BaseException] = []

    def initialize() -> None:
        try:
            _initialize(options, bind_address)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(timeout=1)
    while thread.is_alive():
        waiting.say("not all have started yet")
        thread.join(timeout=min(1.0, MESSAGE_INTERVAL_SECONDS))
    if failed:
        raise failed[0]


class _Waiting:
    """A wait for other processes, reported at once and at intervals until the time is over.

    Attributes:
      what: the thing that is waited for, such as "for process 0 at HOST:PORT".
    """

    def __init__(self, address: str):
        self.what, self._address = "", address
        self._started = time.monotonic()
        self._next_message = 0.0

    def say(self, reason: str) -> None:
        """Prints a message if one is due.

        Args:
          reason: why the wait is not over.

        Raises:
          PeerError: the time is over.
        """
        passed = time.monotonic() - self._started
        if passed >= CONNECT_SECONDS:
            raise PeerError(
                f"waited {CONNECT_SECONDS:.0f} s {self.what} ({reason}); start every process with the same "
                f"--coordinator_address={self._address}, which this machine must be able to reach"
            )
        if passed >= self._next_message:
            self._next_message = passed + MESSAGE_INTERVAL_SECONDS
            print(f"waiting   {self.what}: {reason}; {CONNECT_SECONDS - passed:.0f} s left", flush=True)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _unreachable(address: str) -> str | None:
    """Returns why nothing answers at an address, or None if something answers."""
    try:
        with socket.create_connection(_host_and_port(address), timeout=ATTEMPT_SECONDS):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _can_listen_at(address: str) -> bool:
    """Returns whether process 0 can listen at this one address; if not, JAX listens at all addresses of the machine.

    Raises:
      UsageError: the port is in use, or this user may not listen at it.
    """
    host, port = _host_and_port(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UsageError(
                f"--coordinator_address={address}: process 0 cannot listen there ({error.strerror}); give another port"
            ) from error
        print(
            f"warning   --coordinator_address={address} is not an address of this machine, where process 0 runs; "
            f"process 0 listens at port {port} of all its addresses",
            flush=True,
        )
        return False
    return True


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Turns a failed collective among several processes into an error that says what happened.

    A process that hangs does not fail a collective; JAX ends the other processes after `HEARTBEAT_SECONDS`.

    Raises:
      PeerError: a collective failed, because another process has ended.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise PeerError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one "
            f"({str(error).partition(chr(10))[0][:200]}). Run the same command again in every process: the run resumes "
            "from its last checkpoint"
        ) from error


def gathered(answers: Sequence[bool]) -> np.ndarray:
    """Returns the answers of all processes, shape (processes, answers). Call it in every process."""
    here = np.array(answers, bool)
    return here[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(here))


def is_first() -> bool:
    """Returns whether this is the process that prints and writes."""
    return jax.process_index() == 0


class Termination:
    """A record of whether SIGTERM was received, so that the loop can end after a whole step.

    Use it as a context, in the main thread: Python delivers signals to no other. Several processes all end after the
    same step, whichever of them received the signal.
    """

    def __enter__(self):
        self._received = False
        self._before = None
        # With several processes JAX handles the signal, and tells the other processes.
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
        """Returns whether to stop after this step. Call it in every process after every step."""
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)

    def _receive(self, *_):
        self._received = True
