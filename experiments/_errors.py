"""Errors that a user can fix, and the most common one: an unknown name."""

import difflib
from collections.abc import Iterable
from typing import Any

# Longest value that an error message quotes in full, so that the message stays readable.
MAX_SHOWN_CHARACTERS = 60


class UsageError(ValueError):
    """A request that cannot be carried out as given; an entry point prints it without a traceback."""


class UsersError(UsageError):
    """An error of the user's own code, such as a problem or a model, which another time may not have."""


class HeldError(UsageError):
    """A folder that another process holds, and will let go of."""


class StorageError(RuntimeError):
    """A result file that cannot be written; files that were written earlier are intact."""


def shown(value: Any, most: int = MAX_SHOWN_CHARACTERS) -> str:
    """Returns a value as text for an error message: on one line, and cut to a readable length.

    Args:
      value: the value.
      most: the number of characters after which the text is cut.
    """
    try:
        text = str(value)
    except ValueError:
        # Python refuses to convert an integer of thousands of digits to text.
        return f"a number of {value.bit_length()} bits"
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def unknown_name(kind: str, given: str, known: Iterable[str], hint: str = "") -> UsageError:
    """Returns the error for an unknown name, which lists the known names and suggests the closest.

    Args:
      kind: the kind of thing that is named, such as "optimizer".
      given: the name that the user gave.
      known: all valid names.
      hint: a sentence to append, with a leading space.
    """
    known = sorted(known)
    closest = difflib.get_close_matches(given[: 2 * MAX_SHOWN_CHARACTERS], known, n=1, cutoff=0.5)
    suggestion = f" Did you mean {closest[0]!r}?" if closest else ""
    return UsageError(f"unknown {kind} {shown(given)!r}; there are: {', '.join(known)}.{suggestion}{hint}")
