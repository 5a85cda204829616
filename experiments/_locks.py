"""Locks of folders, which a process holds for as long as it lives, whatever ends it."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None

from . import _files
from ._errors import HeldError

POLL_SECONDS = 0.2
# The ways to hold a lock: by the operating system, or by what the file says.
BY_SYSTEM, BY_FILE = "system", "file"


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """The process that holds a lock, or held it last.

    Attributes:
      host: the name of its machine.
      pid: its process number there.
      since: when it took the lock, in seconds since 1970.
    """

    host: str
    pid: int
    since: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextlib.contextmanager
def held(path: Path, refuse: Callable[[str], str], *, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock for as long as the context lasts.

    The operating system frees it when the process ends. On a file system without locks, a process on the same machine
    is found by its number, and one on another machine is not.

    Args:
      path: the file of the lock, whose folder exists.
      refuse: who holds the lock, in words -> the message of the error.
      wait: the seconds to wait for another process to end.

    Raises:
      StorageError: the file cannot be opened.
      HeldError: another process holds the lock.
    """
    try:
        # Does not follow a symbolic link, and does not change the content of an existing file.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise _files.cannot_write(path, error) from error
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        until = time.monotonic() + wait
        while not (way := _taken(file.fileno(), path)):
            if time.monotonic() >= until:
                raise HeldError(refuse(str(holder_of(path) or "another process")))
            time.sleep(POLL_SECONDS)
        # A file that somebody else put here stays as it is.
        if path.stat().st_size == 0 or holder_of(path) is not None:
            with contextlib.suppress(OSError):
                file.truncate(0)
                file.write(msgspec.json.encode(Holder(host=socket.gethostname(), pid=os.getpid(), since=time.time())))
        try:
            yield
        finally:
            if way == BY_FILE:
                with contextlib.suppress(OSError):
                    file.truncate(0)


def holder_of(path: Path) -> Holder | None:
    """Returns the process that holds a lock or held it last; None: there is none, or it did not say."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Holder)
    except (OSError, msgspec.MsgspecError):
        return None


def is_held(path: Path) -> bool:
    """Returns whether a process holds a lock, as far as this machine can tell."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        return not _taken(descriptor, path)
    finally:
        # Closing it frees the lock, if it was taken.
        os.close(descriptor)


def _taken(descriptor: int, path: Path) -> str | None:
    """Takes a lock if no other process holds it, and returns in which way; None: another process holds it."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError:
            pass
        else:
            return BY_SYSTEM
    # Without locks, the file says who is there.
    there = holder_of(path)
    is_free = there is None or there.host != socket.gethostname() or not _lives(there.pid)
    return BY_FILE if is_free else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
