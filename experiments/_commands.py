"""Commands as they are shown and kept: quoted, and without the folders of the machine that they ran on."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def shareable(argument: str) -> str:
    """An argument of a command as it is shown to others: of an absolute path its last part alone.

    Example:
      >>> shareable("--workdir=/home/me/runs/first"), shareable("--batch_size=64"), shareable("--workdir=runs/first")
      ('--workdir=first', '--batch_size=64', '--workdir=runs/first')
    """
    name, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    is_absolute = value.startswith(("/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", value)
    if is_absolute:
        value = re.split(r"[\\/]", value.rstrip("\\/"))[-1] or "."
    return f"{name}{equals}{value}"


def shareable_command(words: Sequence[str]) -> str:
    """A command to be shown or kept, quoted so that it can be pasted, without absolute paths."""
    return shlex.join(map(shareable, words))


def without_paths(text: str) -> str:
    """A text with the last part of each absolute path in it in its place.

    Example:
      >>> without_paths("see /home/me/runs/first/worker.log; 3/4 of it, at https://example.org/a/b")
      'see worker.log; 3/4 of it, at https://example.org/a/b'
    """
    return re.sub(r"(?<![\w.:/~-])~?(?:/[\w.+@%-]*[\w+@%-])+/?", lambda found: Path(found[0]).name, text)


def status_of_study(failed: Sequence[str]) -> int:
    """Says which runs of a study failed; the exit status, 1 if there are any."""
    if failed:
        print(
            f"error: {len(failed)} runs failed and are not in the report: {', '.join(failed)}; worker.log says why, "
            "and the same command tries them again",
            file=sys.stderr,
        )
    return int(bool(failed))


def shareable_text(command: str) -> str:
    """A command that was kept as text, without absolute paths."""
    try:
        return shareable_command(shlex.split(command))
    except ValueError:
        return without_paths(command)
