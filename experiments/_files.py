"""The one way to write a file whole, to add to one, and to read JSON, with what goes wrong said in a sentence."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import IO, Any, TypeVar

import msgspec
from absl import logging

from experiments._errors import StorageError, UsageError
from experiments._shapes import MismatchError
from experiments.records.record import VERSION, FileRecord

FULL = (errno.ENOSPC, errno.EDQUOT)
# A file must not be written through a link that somebody has put in its place.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
T = TypeVar("T")
# What a terminal or a page takes for a command, and halves of characters, which no encoding takes.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def write(path: Path, content: str | bytes) -> None:
    """Writes a file aside and renames it, so that no one ever reads half of it, and what was there before is kept.

    Args:
      path: of the file. A symbolic link there is replaced, and what it leads to is left alone.
      content: text, or bytes.

    Raises:
      StorageError: it cannot be written: a full disk, a folder that is read-only or gone.
    """
    with writing(path) as file:
        file.write(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file to be written aside, which gets its name when the context ends without an error.

    Args:
      path: of the file. A symbolic link there is replaced, and what it leads to is left alone.

    Raises:
      StorageError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with _opened(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, "wb+") as file:
            yield file
        os.replace(aside, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        # After the renaming it is not there.
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a record, or a value that JSON can hold, as `write` does."""
    write(path, json.dumps(_plain(value), indent=1) + "\n")


def open_to_add(path: Path) -> IO[bytes]:
    """Opens a file to add lines at its end; one that was cut short gets the end of its last line.

    Raises:
      StorageError: it cannot be opened, or is a symbolic link.
    """
    try:
        file = _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, "ab+")
    except OSError as error:
        raise cannot_write(path, error) from error
    if file.seek(0, os.SEEK_END) > 0:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def add_row(path: Path, row: Any) -> None:
    """Adds a record, or a value that JSON can hold, to a file of one JSON value per line.

    Raises:
      StorageError: it cannot be written.
    """
    with storing(path), open_to_add(path) as file:
        file.write(line(row))


def line(row: Any) -> bytes:
    """Returns the line of a file of one JSON value per line that holds a record."""
    return json.dumps(_plain(row)).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Returns what JSON can hold of a value; a record of a file is given the version that writes it."""
    plain = msgspec.to_builtins(value)
    return {**plain, "version": VERSION} if isinstance(value, FileRecord) else plain


def make_folder(folder: Path, flag: str = "workdir") -> None:
    """Makes a folder for results, and sees that files can be written there.

    Raises:
      UsageError: it cannot be made or written to; the message names the flag.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(6)}.tmp"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK))
        probe.unlink()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise cannot_write(folder, error) from error
        raise UsageError(f"--{flag}={folder} cannot be written to ({reason(error)}); give another --{flag}") from error


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns an `OSError` of what writes to a path into a `StorageError` that names it."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> StorageError:
    """The error that says why a file cannot be written, and what to do."""
    if error.errno in FULL:
        free = ""
        with contextlib.suppress(OSError):
            free = f": {shutil.disk_usage(path.parent).free / 2**20:.1f} MiB free"
        return StorageError(
            f"no space left on the disk{free}: {path} cannot be written; what {path.parent} holds is whole; make room "
            "and start the same command again"
        )
    if error.errno == errno.ELOOP:
        return StorageError(f"{path} is a symbolic link, and files are not written through those; remove it")
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
        return StorageError(
            f"{path} cannot be written: the folder {path.parent} is gone; start the same command again, and it is made"
        )
    return StorageError(
        f"{path} cannot be written ({reason(error)}); give another --workdir, or make that folder writable"
    )


def reason(error: BaseException) -> str:
    """Why a file could not be used, without its name."""
    return (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0]


def refuse_links(folder: Path) -> None:
    """Refuses a folder that is a symbolic link or holds one, for a library that would write through it.

    Raises:
      StorageError: the link is named.
    """
    with storing(folder):
        for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
            if path.is_symlink():
                raise cannot_write(path, OSError(errno.ELOOP, os.strerror(errno.ELOOP)))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that is shown and not interpreted; none if it is not there or cannot be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        logging.warning("%s cannot be read and is left out: %s", path, _why(error))
        return []
    return [_UNPRINTABLE.sub("\ufffd", line) for line in content.decode(errors="replace").splitlines()]


def read_json(path: Path, kind: type[T] | Callable[[Any], T]) -> Any:
    """Returns what a JSON file holds.

    Args:
      path: of the file.
      kind: the type of a record, or a function that makes a record of a JSON value.

    Raises:
      UsageError: there is no such file, it cannot be read, is no JSON or no such record; the message names the file
        and the place in it.
    """
    try:
        return _parsed(path.read_bytes(), kind)
    except FileNotFoundError as error:
        raise UsageError(f"{path} is not there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {_why(error)}") from error


def read_rows(path: Path, kind: type[T] | Callable[[Any], T]) -> tuple[list[Any], int]:
    """Returns the rows of a file of one JSON value per line. A line that is no whole row is named and left out.

    Args:
      path: of the file; one that is not there has no rows.
      kind: the type of every row, or a function that makes a record of a JSON value.

    Returns:
      The rows, and how many lines were left out.

    Raises:
      UsageError: the file cannot be read at all.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {_why(error)}") from error
    rows, left_out = [], 0
    for place, content in enumerate(lines, start=1):
        if not content.strip():
            continue
        try:
            rows.append(_parsed(content, kind))
        except (ValueError, RecursionError) as error:
            left_out += 1
            logging.warning("%s, line %d is not a whole row and is left out: %s", path, place, _why(error))
    return rows, left_out


def _parsed(content: bytes, kind: Any) -> Any:
    value = _clean(json.loads(content.decode(errors="replace")))
    # What has no version was written before records had one.
    dated = {"version": 0, **value} if isinstance(value, dict) else value
    if isinstance(kind, FunctionType):
        # A shape gives nothing back.
        made = kind(dated)
        return value if made is None else made
    return msgspec.convert(dated, kind)


def _clean(value: Any) -> Any:
    """A value without characters that no page or terminal should get."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_clean(name): _clean(entry) for name, entry in value.items()}
    return [_clean(entry) for entry in value] if isinstance(value, list) else value


def _why(error: BaseException) -> str:
    if isinstance(error, MismatchError | msgspec.ValidationError):
        return str(error)
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON ({error})"
    return "a number in it has too many digits" if "digits" in str(error) else reason(error)


def _opened(path: Path, flags: int, mode: str) -> Any:
    descriptor = os.open(path, flags | _NO_LINK, 0o666)
    try:
        return os.fdopen(descriptor, mode)
    except OSError:
        os.close(descriptor)
        raise
