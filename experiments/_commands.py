"""Commands as they are run, and in a form to show and store: quoted, without the absolute paths of a machine.

This package has two names: `experiments` in a checkout, where `python -m experiments.train` runs a program, and
`batchnorm_jax_experiments` where it is installed, and the same program is the command `batchnorm-train`.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# The name in a checkout, which module docstrings use.
CHECKOUT = "experiments"
PACKAGE = __name__.partition(".")[0]


def module(name: str) -> str:
    """Returns the full name of a module of this package.

    Example:
      >>> module("studies.worker")
      'experiments.studies.worker'
    """
    return f"{PACKAGE}.{name}"


def program(name: str) -> str:
    """Returns what a message calls a program: its module in a checkout, its command where it is installed.

    Example:
      >>> program("batch_size_study")
      'experiments.batch_size_study'
    """
    return module(name) if PACKAGE == CHECKOUT else f"batchnorm-{name.replace('_', '-')}"


def start(name: str) -> list[str]:
    """Returns the words that start a program on a command line.

    Example:
      >>> start("train")
      ['python', '-m', 'experiments.train']
    """
    return ["python", "-m", program(name)] if PACKAGE == CHECKOUT else [program(name)]


def as_run_here(text: str) -> str:
    """Returns a text that names programs as a checkout does, with the names that they have here."""
    return re.sub(
        rf"(python -m )?\b{CHECKOUT}\.([a-z_]+)",
        lambda found: shlex.join(start(found[2])) if found[1] else program(found[2]),
        text,
    )


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
            f"error: {len(failed)} runs failed and are not in the report: {', '.join(failed)}; worker.log in the "
            "workdir, or the logs in its folder slurm, say why; run the same command again to retry them",
            file=sys.stderr,
        )
    return int(bool(failed))


def shareable_text(command: str) -> str:
    """Returns a command that was stored as text, without absolute paths."""
    try:
        return shareable_command(shlex.split(command))
    except ValueError:
        return without_paths(command)
