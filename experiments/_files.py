"""Reads and writes result files: atomic writes, appended rows and JSON, with one-sentence errors."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import IO, Any, TypeVar

import msgspec
from absl import logging

from ._errors import StorageError, UsageError
from .records.record import VERSION, FileRecord

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
# Refuses symbolic links: somebody may have put a link in the place of a file, and the write would land where it leads.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
T = TypeVar("T")
# Control characters, which a terminal or a page would act on, and lone surrogates, which cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def write(path: Path, content: str | bytes) -> None:
    """Writes a file atomically: under a temporary name, then renamed.

    A reader never sees half of the file, and a write that fails leaves the earlier file unchanged.

    Args:
      path: the path of the file. A symbolic link at this path is replaced, and its target is left alone.
      content: text, or bytes.

    Raises:
      StorageError: the file cannot be written: the disk is full, or the folder is read-only or gone.
    """
    with writing(path) as file:
        file.write(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file, which is renamed to `path` when the context ends without an error.

    Args:
      path: the path of the file. A symbolic link at this path is replaced, and its target is left alone.

    Raises:
      StorageError: the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with _opened(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, "wb+") as file:
            yield file
        os.replace(aside, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        # The temporary file is left only if the write failed.
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a record, or a value that JSON can hold, to a file atomically (see `write`)."""
    write(path, json.dumps(_plain(value), indent=1) + "\n")


def open_to_add(path: Path) -> IO[bytes]:
    """Opens a file to append lines to it; if its last line was cut short, that line is ended first.

    Raises:
      StorageError: the file cannot be opened, or is a symbolic link.
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
    """Appends a record, or a value that JSON can hold, to a file of one JSON value per line.

    Raises:
      StorageError: the file cannot be written.
    """
    with storing(path), open_to_add(path) as file:
        file.write(line(row))


def line(row: Any) -> bytes:
    """Returns a record as one line of JSON, with its line break."""
    return json.dumps(_plain(row)).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Converts a record to values that JSON can hold; a `FileRecord` gets the current version."""
    plain = msgspec.to_builtins(value)
    return {**plain, "version": VERSION} if isinstance(value, FileRecord) else plain


def make_folder(folder: Path, flag: str = "workdir") -> None:
    """Creates a folder for results, and checks that files can be written there.

    Args:
      folder: the folder.
      flag: the name of the flag that gave the folder, for the message.

    Raises:
      StorageError: the disk is full.
      UsageError: the folder cannot be created or written to; the message names the flag.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(6)}.tmp"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK))
        probe.unlink()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
            raise cannot_write(folder, error) from error
        raise UsageError(f"--{flag}={folder} cannot be written to ({reason(error)}); give another --{flag}") from error


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns an `OSError` of code that writes to `path` into a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> StorageError:
    """Returns the error that says why a file cannot be written, and how to fix it."""
    if error.errno in DISK_FULL_ERRNOS:
        free = ""
        with contextlib.suppress(OSError):
            free = f": {shutil.disk_usage(path.parent).free / 2**20:.1f} MiB free"
        return StorageError(
            f"no space left on the disk{free}: {path} cannot be written; the files in {path.parent} are intact; make "
            "room and run the same command again"
        )
    if error.errno == errno.ELOOP:
        return StorageError(f"{path} is a symbolic link, and files are not written through links; remove the link")
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
        return StorageError(
            f"{path} cannot be written: the folder {path.parent} is gone; run the same command again to create it"
        )
    return StorageError(
        f"{path} cannot be written ({reason(error)}); give another --workdir, or make the folder writable"
    )


def reason(error: BaseException) -> str:
    """Returns why a file could not be used, without the name of the file."""
    return (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0]


def refuse_links(folder: Path) -> None:
    """Refuses a folder that is a symbolic link or holds one: other libraries would write through the link.

    Raises:
      StorageError: there is a link; the message names it.
    """
    with storing(folder):
        for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
            if path.is_symlink():
                raise cannot_write(path, OSError(errno.ELOOP, os.strerror(errno.ELOOP)))


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file for display; none if the file does not exist or cannot be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        logging.warning("%s cannot be read and is left out: %s", path, _why(error))
        return []
    return [_UNPRINTABLE.sub("\ufffd", line) for line in content.decode(errors="replace").splitlines()]


def read_json(path: Path, kind: type[T] | Callable[[Any], T]) -> T:
    """Reads a record from a JSON file.

    Args:
      path: the path of the file.
      kind: the type of the record, or a function that makes a record from a JSON value.

    Raises:
      UsageError: the file does not exist, cannot be read, is not JSON or does not hold such a record; the message names
        the file and the place in it.
    """
    try:
        return _parsed(path.read_bytes(), kind)
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {_why(error)}") from error


def read_rows(path: Path, kind: type[T] | Callable[[Any], T]) -> tuple[list[T], int]:
    """Reads the rows of a file of one JSON value per line; an invalid line is reported and left out.

    Args:
      path: the path of the file; if it does not exist, there are no rows.
      kind: the type of every row, or a function that makes a record from a JSON value.

    Returns:
      The rows, and the number of lines that were left out.

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
    text = content.decode(errors="replace")
    value = json.loads(text)
    # Most lines have no character to replace, nor an escape that could stand for one.
    if "\\" in text or _UNPRINTABLE.search(text):
        value = _clean(value)
    makes = isinstance(kind, FunctionType)
    # The class of a generic record, such as `ResultFile[NormRows]`.
    record = typing.get_origin(kind) or kind
    if isinstance(value, dict) and (makes or issubclass(record, FileRecord)):
        # A record without a version was written before records had one.
        value = {"version": 0, **value}
    return kind(value) if makes else msgspec.convert(value, kind)


def _clean(value: Any) -> Any:
    """Returns a JSON value without the characters that no page or terminal should get."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_clean(name): _clean(entry) for name, entry in value.items()}
    return [_clean(entry) for entry in value] if isinstance(value, list) else value


def _why(error: BaseException) -> str:
    """Returns the reason why content cannot be read, in one clause."""
    if isinstance(error, msgspec.ValidationError):
        return _misfit(str(error))
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON ({error})"
    return "a number in it has too many digits" if "digits" in str(error) else reason(error)


def _misfit(message: str) -> str:
    """Returns msgspec's message with the place first, and without the bounds that stand for "finite".

    Example:
      >>> _misfit("Expected `int` >= 1 - at `$.sizes[0].batch_size`")
      'sizes[0].batch_size: expected `int` >= 1'
      >>> _misfit("Expected `float` <= 1.7976931348623157e+308 - at `$.loss`")
      'loss: expected a finite number'
      >>> _misfit("Expected `str`, got `int` - at `options.dataset` - at `$.evidence`")
      'evidence.options.dataset: expected `str`, got `int`'
    """
    # The check of a record inside another names its place first.
    text, *places = message.split(" - at ")
    if "e+308" in text:
        text = "expected a finite number"
    inside = [place.replace("`", "").replace("$.", "").strip("$") for place in reversed(places)]
    return f"{'.'.join(filter(None, inside)) or 'the whole'}: {text[:1].lower()}{text[1:]}"


def _opened(path: Path, flags: int, mode: str) -> Any:
    descriptor = os.open(path, flags | _NO_LINK, 0o666)
    try:
        return os.fdopen(descriptor, mode)
    except OSError:
        os.close(descriptor)
        raise
