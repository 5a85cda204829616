"""The lock of a workdir, which lets one process at a time train in it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None

from ... import _files, _workdirs
from ..._errors import UsageError


@contextlib.contextmanager
def only_one(workdir: Path) -> Iterator[None]:
    """Creates the folder of a run, and locks it against a second process for as long as the context lasts.

    Args:
      workdir: the folder of the run.

    Raises:
      StorageError: the lock file cannot be opened.
      UsageError: another process is training in the folder, the folder cannot be created, or it holds results of
        another program.
    """
    _workdirs.claim(workdir, _workdirs.RUN)
    path = workdir / ".lock"
    try:
        # Does not follow a symbolic link, and does not change the content of an existing file.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise _files.cannot_write(path, error) from error
    with os.fdopen(descriptor) as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"--workdir={workdir}: another process is training in this folder; wait until it ends, or give "
                    "another --workdir"
                ) from error
            except OSError:
                # On a file system without locks another process cannot be detected.
                pass
        yield
