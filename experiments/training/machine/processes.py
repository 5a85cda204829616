"""Several processes that train as one: joining them, who writes, and stopping together."""

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

from experiments._errors import UsageError

# A process that has died or stands still is missed for this long before the others end with an error.
HEARTBEAT_SECONDS = 20
# So long a process waits for the others to start, and says so at these intervals.
CONNECT_SECONDS = 300.0
SAID_EVERY = 15.0
# JAX's own limit ends the process without a word, so it comes later.
MARGIN_SECONDS = 60
# Of one attempt to reach process 0, and between two.
ATTEMPT_SECONDS = 2.0


class Group(Protocol):
    """The options that say which processes train together, as `TrainConfig` has them."""

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
        """How many there are."""
        ...

    @property
    def process_id(self) -> int | None:
        """Which one this is."""
        ...


def connector(options: Group) -> Callable[[], int] | None:
    """What joins the other processes of a run and returns how many there are; None for a run of one process."""
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
                f"the other processes are not found ({error}); give --coordinator_address=HOST:PORT, --num_processes "
                "and --process_id"
            ) from error
        return options.num_processes or jax.process_count()

    return connect


class PeerError(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


def _initialize(options: Group, bind_address: str | None) -> None:
    jax.distributed.initialize(
        coordinator_address=options.coordinator_address,
        num_processes=options.num_processes,
        process_id=options.process_id,
        coordinator_bind_address=bind_address,
        initialization_timeout=int(CONNECT_SECONDS) + MARGIN_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )


def _meet(options: Group, address: str) -> None:
    """Joins the processes that meet at an address, and says what it waits for.

    JAX waits in a call that neither says anything nor can be interrupted, so it is made in another thread.

    Raises:
      UsageError: this is process 0, and it cannot listen there.
      PeerError: the others have not come in time.
    """
    waiting = _Waiting(address)
    bind_address = None
    if options.process_id == 0:
        bind_address = address if _is_of_this_machine(address) else None
        waiting.what = (
            f"for the other {(options.num_processes or 1) - 1} of {options.num_processes} processes at {address}"
        )
    else:
        waiting.what = f"for process 0 at {address}"
        while (reason := _unreachable(address)) is not None:
            waiting.say(reason)
            time.sleep(min(ATTEMPT_SECONDS, SAID_EVERY))
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
        waiting.say("not all are there yet")
        thread.join(timeout=min(1.0, SAID_EVERY))
    if failed:
        raise failed[0]


class _Waiting:
    """Says what is waited for, at once and at intervals, until the time is over."""

    def __init__(self, address: str):
        self.what, self._address = "", address
        self._started = time.monotonic()
        self._said_until = 0.0

    def say(self, reason: str) -> None:
        """Prints a line if it is time to.

        Raises:
          PeerError: the time is over.
        """
        passed = time.monotonic() - self._started
        if passed >= CONNECT_SECONDS:
            raise PeerError(
                f"waited {CONNECT_SECONDS:.0f} s {self.what} ({reason}); start every process with the same "
                f"--coordinator_address={self._address}, which this machine must be able to reach"
            )
        if passed >= self._said_until:
            self._said_until = passed + SAID_EVERY
            print(f"waiting   {self.what}: {reason}; {CONNECT_SECONDS - passed:.0f} s left", flush=True)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _unreachable(address: str) -> str | None:
    """Why nothing answers at an address; None: something does."""
    try:
        with socket.create_connection(_host_and_port(address), timeout=ATTEMPT_SECONDS):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _is_of_this_machine(address: str) -> bool:
    """Whether process 0 can listen at the address alone; else JAX listens at all addresses of the machine.

    Raises:
      UsageError: something listens there already.
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
            f"warning   --coordinator_address={address} is not an address of this machine, where process 0 runs, so "
            f"that it listens on all of its addresses, port {port}",
            flush=True,
        )
        return False
    return True


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
