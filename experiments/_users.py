"""Functions of the user's own, named on the command line as `package.module:function`."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from experiments._errors import UsageError


def is_users_own(name: str) -> bool:
    """Whether a name is of the form `package.module:function`; a TFDS name ends in a version instead.

    Example:
      >>> is_users_own("my_data:load"), is_users_own("cifar10:3.0.2"), is_users_own("mnist")
      (True, False, False)
    """
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def function(flag: str, name: str) -> Callable:
    """Imports the function that `package.module:function` names, the working directory included in the search.

    Raises:
      UsageError: there is no such module or no such function in it; the message names the flag.
    """
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--{flag}={name}: {error}; it is looked for in the working directory and among the installed packages"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        functions = sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        raise UsageError(
            f"--{flag}={name}: the module {module_name} has no function {attribute}; it has {', '.join(functions)}"
        )
    return found
