"""The error that a user can mend, and its commonest form: a name that is not known."""

import difflib
from collections.abc import Iterable
from typing import Any

MOST_SHOWN = 60


class UsageError(ValueError):
    """Something the user asked for that cannot be done; an entry point prints it without a traceback."""


class StorageError(RuntimeError):
    """A file that a program wants to keep cannot be written; what was kept before is whole."""


def shown(value: Any, most: int = MOST_SHOWN) -> str:
    """A value as an error shows it: on one line, and not longer than that can be read."""
    try:
        text = str(value)
    except ValueError:
        # Python writes no whole numbers of thousands of digits.
        return f"a number of {value.bit_length()} bits"
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def unknown_name(kind: str, given: str, known: Iterable[str], hint: str = "") -> UsageError:
    """An error that lists what there is and names what is closest to what came."""
    known = sorted(known)
    closest = difflib.get_close_matches(given[: 2 * MOST_SHOWN], known, n=1, cutoff=0.5)
    suggestion = f" Did you mean {closest[0]!r}?" if closest else ""
    return UsageError(f"unknown {kind} {shown(given)!r}; there are: {', '.join(known)}.{suggestion}{hint}")
