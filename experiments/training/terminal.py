"""Terminal output: a status line that stays below whatever is printed, and text wrapped to the terminal's width."""

import contextlib
import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

# A line begins with a label, padded to this width; the continuation of a wrapped line is indented as far.
LABEL_COLUMNS = 10
# Ten times per second looks continuous; drawing more often would only cost time.
MIN_REDRAW_SECONDS = 0.1
COUNTDOWN_SECONDS = 1.0
# Carriage return, then "erase to the end of the line".
ERASE_LINE = "\r\x1b[K"
# Beginnings of a line that is a command, in a checkout and where the package is installed.
COMMANDS = ("python ", "batchnorm-")
# A no-break space, at which `textwrap` does not wrap.
HARD_SPACE = "\xa0"


def is_terminal(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal that can redraw a line."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def width(stream: TextIO) -> int:
    """Returns the number of columns of a stream's terminal, or the usual number if the stream does not tell it."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


def folded(text: str, columns: int) -> str:
    """Wraps a text to a width, between words; continuation lines are indented to the text that they continue.

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
    label, point = re.match(r"\S+ {2,}$", line[:LABEL_COLUMNS]), line.startswith("- ")
    # Commands stay whole, so that they can be copied. On a very narrow terminal the indent would leave words no room.
    if len(line) <= columns or line.startswith(COMMANDS) or (label and columns < 2 * LABEL_COLUMNS):
        return [line]
    # Where two spaces separate fields, wrap only between fields.
    if re.search(r"\S  +\S", line[LABEL_COLUMNS:]):
        line = re.sub(r"(?<=\S) (?=\S)", HARD_SPACE, line)
    indent = " " * (LABEL_COLUMNS if label else 2 * point)
    broken = textwrap.wrap(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [part.replace(HARD_SPACE, " ") for part in broken or [line]]


def say(text: str) -> None:
    """Prints a text, wrapped to the width if the standard output is a terminal."""
    print(folded(text, width(sys.stdout)) if sys.stdout.isatty() else text, flush=True)


class _Aside:
    """A wrapper of a standard stream that erases the status line before anything is written."""

    def __init__(self, stream: TextIO, line: "StatusLine"):
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        # Another thread may draw the line, and must not do so in between.
        with self._line.lock:
            if text:
                self._line.give_way(ends_line=text.endswith("\n"))
            return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class StatusLine:
    """A line that is redrawn in place, while other lines are printed above it.

    Nothing is drawn if the standard error is not a terminal. Inside the context, `sys.stdout` and `sys.stderr` erase
    the line before they print, so that no other text is ever mixed with it.

    Args:
      hidden: never draw the line.

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
        self._drawn = -MIN_REDRAW_SECONDS
        self._kept = contextlib.ExitStack()
        self.lock = threading.RLock()

    def __enter__(self) -> "StatusLine":
        if self._works:
            self._kept.enter_context(contextlib.redirect_stdout(cast(TextIO, _Aside(sys.stdout, self))))
            self._kept.enter_context(contextlib.redirect_stderr(cast(TextIO, _Aside(self._stream, self))))
        return self

    def __exit__(self, *_) -> None:
        self.give_way(ends_line=True)
        self._kept.close()

    def draw(self, line: Callable[[int], str]) -> None:
        """Draws the line, unless it was drawn less than `MIN_REDRAW_SECONDS` ago or an incomplete line is printed.

        Args:
          line: number of columns -> the text of the line.
        """
        now = time.monotonic()
        with self.lock:
            if not self._works or not self._free or now - self._drawn < MIN_REDRAW_SECONDS:
                return
            self._drawn, self._shown = now, True
            # The last column stays free: some terminals move to the next row once it is filled.
            columns = width(self._stream) - 1
            self._stream.write(ERASE_LINE + line(columns)[:columns])
            self._stream.flush()

    def give_way(self, *, ends_line: bool) -> None:
        """Erases the line before other text is printed; it is not drawn again until that text ends a line.

        Args:
          ends_line: the text that is about to be printed ends with a line feed.
        """
        if self._shown:
            self._stream.write(ERASE_LINE)
            self._stream.flush()
        self._shown, self._free = False, ends_line
        # The next `draw` must not be skipped, whenever it comes.
        self._drawn = -MIN_REDRAW_SECONDS

    def can_encode(self, text: str) -> bool:
        """Returns whether the terminal's encoding has all characters of a text."""
        try:
            text.encode(getattr(self._stream, "encoding", None) or "ascii")
        except (UnicodeEncodeError, LookupError):
            return False
        return True


@contextlib.contextmanager
def countdown(left: Callable[[], float], what: str) -> Iterator[None]:
    """Shows the time that is left, each second, for as long as the context lasts; not where there is no terminal.

    Args:
      left: returns the seconds that are left; once there are none, the line says so.
      what: the name of the work under way.
    """
    ended = threading.Event()
    with StatusLine() as line:

        def draw() -> None:
            while not ended.wait(COUNTDOWN_SECONDS):
                seconds = left()
                said = f"{duration(seconds)} left" if seconds > 0 else "the time is used up; this run is the last"
                line.draw(lambda columns, text=f"{said}  {what}": text[:columns])

        drawing = threading.Thread(target=draw, name="countdown", daemon=True)
        drawing.start()
        try:
            yield
        finally:
            ended.set()
            drawing.join()


def duration(seconds: float) -> str:
    """Formats a duration as hours, minutes and seconds, or as "days" from 100 hours on.

    Example:
      >>> duration(3723.4), duration(62), duration(9e9)
      ('1:02:03', '1:02', 'days')
    """
    if seconds >= 100 * 3600:
        return "days"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
