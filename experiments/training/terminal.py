"""A line at the foot of the terminal that gives way to whatever is printed, and text folded to the width."""

import contextlib
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any, TextIO, cast

# Where texts begin after the name of what they are about, and where a folded line goes on.
INDENT = 10
# The line is drawn at most this often, in seconds.
EVERY = 0.1
# Back to the start of the line, and erase to its end.
ERASE = "\r\x1b[K"
HARD_SPACE = "\xa0"


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a line can be drawn again."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def width(stream: TextIO) -> int:
    """The columns of the terminal behind a stream, or the usual number where it does not tell."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


def folded(text: str, columns: int) -> str:
    """A text in lines that fit, broken between words; a line that goes on is indented as what it belongs to.

    Example:
      >>> print(folded("note      of more than one line", 20))
      note      of more
                than one
                line
      >>> print(folded("- a point of a list", 12))
      - a point of
        a list
    """
    return "\n".join(part for line in text.split("\n") for part in _broken(line, columns))


def _broken(line: str, columns: int) -> list[str]:
    label, point = re.match(r"\S+ {2,}$", line[:INDENT]), line.startswith("- ")
    # A command is to be copied whole, so the terminal breaks it; and some words fit on a line of any terminal.
    if len(line) <= columns or line.startswith("python ") or (label and columns < 2 * INDENT):
        return [line]
    # Between fields, which two spaces part, where there are any.
    if re.search(r"\S  +\S", line[INDENT:]):
        line = re.sub(r"(?<=\S) (?=\S)", HARD_SPACE, line)
    indent = " " * (INDENT if label else 2 * point)
    broken = textwrap.wrap(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [part.replace(HARD_SPACE, " ") for part in broken or [line]]


def say(text: str) -> None:
    """Prints a text, folded where it is printed to a terminal."""
    print(folded(text, width(sys.stdout)) if sys.stdout.isatty() else text, flush=True)


class _Aside:
    """A standard stream that takes the status line away before anything is written to it."""

    def __init__(self, stream: TextIO, line: "StatusLine"):
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        if text:
            self._line.give_way(ends_line=text.endswith("\n"))
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class StatusLine:
    """A line that is drawn again and again in place, while other lines are printed above it.

    Where the standard error is no terminal nothing is drawn. While the line is open `sys.stdout` and `sys.stderr` take
    it away before they print, so that nothing is ever written into it.

    Example:
      >>> with StatusLine() as line:
      ...     line.draw(lambda columns: "half done"[:columns])
      ...     print("printed above")
      printed above
    """

    def __init__(self, *, hidden: bool = False):
        self._stream = sys.stderr
        self._works = not hidden and is_terminal(self._stream)
        self._shown, self._free = False, True
        self._drawn = -EVERY
        self._kept = contextlib.ExitStack()

    def __enter__(self) -> "StatusLine":
        if self._works:
            self._kept.enter_context(contextlib.redirect_stdout(cast(TextIO, _Aside(sys.stdout, self))))
            self._kept.enter_context(contextlib.redirect_stderr(cast(TextIO, _Aside(self._stream, self))))
        return self

    def __exit__(self, *_) -> None:
        self.give_way(ends_line=True)
        self._kept.close()

    def draw(self, line: Callable[[int], str]) -> None:
        """Draws what is made for a number of columns, unless the last time was a moment ago."""
        now = time.monotonic()
        if not self._works or not self._free or now - self._drawn < EVERY:
            return
        self._drawn, self._shown = now, True
        # The last column stays free: a terminal that is full there goes to the next row.
        columns = width(self._stream) - 1
        self._stream.write(ERASE + line(columns)[:columns])
        self._stream.flush()

    def give_way(self, *, ends_line: bool) -> None:
        """Takes the line away, until the end of the line that is printed in its place."""
        if self._shown:
            self._stream.write(ERASE)
            self._stream.flush()
        self._shown, self._free = False, ends_line
        # What is shown comes back with the next update.
        self._drawn = -EVERY

    def can_encode(self, text: str) -> bool:
        """Whether the terminal has the characters of a text."""
        try:
            text.encode(getattr(self._stream, "encoding", None) or "ascii")
        except (UnicodeEncodeError, LookupError):
            return False
        return True
