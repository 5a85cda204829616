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


def load(flag: str, name: str) -> Problem:
    """Returns the problem that a function of the user's own makes.

    Args:
      flag: the flag that names the function, without dashes.
      name: the value of the flag, `package.module:function`. The function takes no arguments, and returns a `Problem`
        or anything else with the same attributes, of which those with a default may be missing.

    Raises:
      UsageError: the function cannot be imported, fails, or returns something that lacks one of the five attributes.
    """
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
