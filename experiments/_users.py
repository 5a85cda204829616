"""Imports and runs functions of the user's own, which are named on the command line as `package.module:function`."""

import contextlib
import importlib
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from . import _quiet
from ._errors import UsageError, UsersError

# Frames of these packages are left out of tracebacks: they tell a user nothing about the user's code.
_PACKAGES = ("experiments", "batchnorm_jax", "jax", "jaxlib", "flax", "optax", "numpy")
MAX_FRAMES = 6
MAX_MESSAGE_CHARACTERS = 400


def is_users_own(name: str) -> bool:
    """Returns whether a name has the form `package.module:function`; a TFDS name may end in a version instead.

    Example:
      >>> is_users_own("my_data:load"), is_users_own("cifar10:3.0.2"), is_users_own("mnist")
      (True, False, False)
    """
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def function(flag: str, name: str) -> Callable:
    """Imports the function that `package.module:function` names, from the working directory or an installed package.

    Args:
      flag: the flag that names the function, without dashes.
      name: the value of the flag.

    Raises:
      UsageError: the module does not exist, cannot be imported, or has no such function; the message names the flag.
    """
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    _quiet.show_warnings_of(module_name)
    with running(flag, name, f"the import of {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A missing module that the user's own module imports is an error in the user's code.
            if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise UsageError(
                f"--{flag}={name}: {error}; modules are searched in the working directory and the installed packages"
            ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        functions = sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        raise UsageError(
            f"--{flag}={name}: the module {module_name} has no function {attribute}; it has {', '.join(functions)}"
        )
    return found


@contextlib.contextmanager
def running(flag: str, name: str, what: str) -> Iterator[None]:
    """Turns an error of the user's code into one sentence, followed by the traceback frames of the user's own files.

    Args:
      flag: the flag that names the code, without dashes.
      name: the value of the flag.
      what: the part of the code that runs, such as "its training step".

    Raises:
      UsersError: the code in the context raised an error.
    """
    try:
        yield
    except UsageError:
        raise
    # If the user's code exits, the program would end without a message.
    except (Exception, SystemExit) as error:
        said = " ".join((str(error).strip() or "no message").split("\n\n")[0].split())
        if len(said) > MAX_MESSAGE_CHARACTERS:
            said = f"{said[:MAX_MESSAGE_CHARACTERS]} ..."
        frames = "".join(traceback.format_list(own_frames(error)[-MAX_FRAMES:])).rstrip()
        raise UsersError(
            f"--{flag}={name}: {what} raised {type(error).__name__}: {said}" + (f"\n{frames}" if frames else "")
        ) from error


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Returns the traceback frames in the user's files: not Python's, nor those of JAX, Flax or this project."""
    packages = [Path(path).parent for name in _PACKAGES if (path := getattr(sys.modules.get(name), "__file__", None))]
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]) for name in ("purelib", "platlib")]

    def is_own(path: Path) -> bool:
        if not path.is_file() or any(path.is_relative_to(folder) for folder in packages):
            return False
        is_stdlib = path.is_relative_to(paths["stdlib"])
        # The folder of installed packages may lie inside that of the standard library.
        return not is_stdlib or any(path.is_relative_to(folder) for folder in installed)

    return [frame for frame in traceback.extract_tb(error.__traceback__) if is_own(Path(frame.filename))]
