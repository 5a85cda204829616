"""Commands in a form to show and store: quoted, and without the absolute paths of the machine that ran them."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def shareable(argument: str) -> str:
    """Returns an argument of a command in a form to share: an absolute path is cut to its last part.

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
    """Returns a command to show or store: quoted so that it can be pasted, without absolute paths."""
    return shlex.join(map(shareable, words))


def without_paths(text: str) -> str:
    """Returns a text in which each absolute path is cut to its last part.

    Example:
      >>> without_paths("see /home/me/runs/first/worker.log; 3/4 of it, at https://example.org/a/b")
      'see worker.log; 3/4 of it, at https://example.org/a/b'
    """
    return re.sub(r"(?<![\w.:/~-])~?(?:/[\w.+@%-]*[\w+@%-])+/?", lambda found: Path(found[0]).name, text)


def status_of_study(failed: Sequence[str]) -> int:
    """Prints which runs of a study failed, and returns the exit status: 1 if any failed, else 0."""
    if failed:
        print(
            f"error: {len(failed)} runs failed and are not in the report: {', '.join(failed)}; worker.log says why; "
            "run the same command again to retry them",
            file=sys.stderr,
        )
    return int(bool(failed))


def shareable_text(command: str) -> str:
    """Returns a command that was stored as text, without absolute paths."""
    try:
        return shareable_command(shlex.split(command))
    except ValueError:
        return without_paths(command)
