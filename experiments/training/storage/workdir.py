"""The lock of a workdir: one process at a time in it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None

from experiments import _files, _workdirs
from experiments._errors import UsageError


@contextlib.contextmanager
def only_one(workdir: Path) -> Iterator[None]:
    """Makes the folder of a run, and keeps a second process from training in it at the same time.

    Raises:
      UsageError: there is one already, the folder cannot be made, or holds what another program made.
    """
    _workdirs.claim(workdir, _workdirs.RUN)
    path = workdir / ".lock"
    try:
        # Never through a link, and without touching what is there.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise _files.cannot_write(path, error) from error
    with os.fdopen(descriptor) as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"--workdir={workdir}: another process is training there; wait for it, or give another --workdir"
                ) from error
            except OSError:
                # A file system without locks: nothing can be known.
                pass
        yield
