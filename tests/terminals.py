"""A terminal in memory, whose screen tests can read after a program has written to it."""

import io
import re


class Terminal(io.StringIO):
    """A stream that reports to be a terminal and obeys carriage return, line feed and "erase to the end of the line".

    Attributes:
      rows: the text of each row; text beyond the last column continues in the next row.
      wrapped: the numbers of the rows whose text was too long and continues in the next row.
    """

    encoding = "utf-8"

    def __init__(self, columns: int):
        super().__init__()
        self.columns = columns
        self.rows, self.wrapped = [""], set()
        self._row, self._column = 0, 0

    def isatty(self):
        return True

    def write(self, text):
        for part in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]", text):
            row = self.rows[self._row]
            if part == "\r":
                self._column = 0
            elif part == "\n":
                self._next()
            elif part == "\x1b[K":
                self.rows[self._row] = row[: self._column]
            else:
                if self._column == self.columns:
                    self.wrapped.add(self._row)
                    self._next()
                    row = self.rows[self._row]
                self.rows[self._row] = row[: self._column].ljust(self._column) + part + row[self._column + 1 :]
                self._column += 1
        return len(text)

    def _next(self):
        self._row, self._column = self._row + 1, 0
        if self._row == len(self.rows):
            self.rows.append("")

    def install(self, monkeypatch):
        """Makes this terminal the standard output and error, and its width the one that programs see."""
        monkeypatch.setattr("sys.stdout", self)
        monkeypatch.setattr("sys.stderr", self)
        monkeypatch.setenv("COLUMNS", str(self.columns))
        monkeypatch.setenv("TERM", "xterm")
