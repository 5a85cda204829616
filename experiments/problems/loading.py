"""Loads a training program of the user's own, and says what it lacks."""

import dataclasses
import functools
from typing import Any

from .. import _users
from .._errors import UsageError, shown
from .problem import Problem

FUNCTIONS = ("init", "update", "batch", "evaluate")


def check_name(flag: str, text: str) -> None:
    """Refuses a text that has not the form of `package.module:function`."""
    if not _users.is_users_own(text):
        raise UsageError(f"--{flag} must have the form package.module:function, not {shown(text)}")


# The problem that was loaded last, by its name, in a process that keeps it.
_kept: dict[str, Problem] | None = None


def keep() -> None:
    """Has this process load a problem once, for all its runs: the second run then finds the functions compiled.

    For a process that trains one run after another and in which nothing else changes what a problem is.
    """
    global _kept
    _kept = {}


def load(flag: str, name: str) -> Problem:
    """Returns the problem that a function of the user's own makes.

    Args:
      flag: the flag that names the function, without dashes.
      name: the value of the flag, `package.module:function`. The function takes no arguments, and returns a `Problem`
        or anything else with the same attributes, of which those with a default may be missing.

    Raises:
      UsageError: the function cannot be imported, fails, or returns something that lacks one of the five attributes.
    """
    if _kept is None:
        return _made(flag, name)
    if name not in _kept:
        _kept.clear()
        _kept[name] = _made(flag, name)
    return _kept[name]


def _made(flag: str, name: str) -> Problem:
    function = _users.function(flag, name)
    with _users.running(flag, name, "the function"):
        made: Any = function()
    if isinstance(made, Problem):
        return made
    fields = dataclasses.fields(Problem)
    given = {field.name: getattr(made, field.name) for field in fields if hasattr(made, field.name)}
    missing = [name for name in ("examples", *FUNCTIONS) if name not in given]
    if missing:
        raise UsageError(
            f"--{flag}={name}: what the function returns needs the attributes examples, init, update, batch and "
            f"evaluate; a {type(made).__name__} came, without {', '.join(missing)}. experiments.problems has examples"
        )
    return Problem(**given)


def guarded(flag: str, name: str, problem: Problem) -> Problem:
    """Returns a problem whose functions say in a sentence where they fail.

    Args:
      flag: the flag that names the problem, without dashes.
      name: the value of the flag.
      problem: the problem.
    """

    def guard(of: str) -> Any:
        function = getattr(problem, of)

        @functools.wraps(function)
        def run(*args: Any) -> Any:
            with _users.running(flag, name, f"its {of}"):
                return function(*args)

        return run

    functions = [*FUNCTIONS, *(["gradient"] if problem.gradient is not None else [])]
    return dataclasses.replace(problem, **{of: guard(of) for of in functions})
