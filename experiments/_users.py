"""Functions of the user's own, named on the command line as `package.module:function`."""

import contextlib
import importlib
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments._errors import UsageError

# Of a traceback, the frames of these packages say nothing of the user's code.
_PACKAGES = ("experiments", "batchnorm_jax", "jax", "jaxlib", "flax", "optax", "numpy")
MOST_FRAMES = 6
MOST_CHARACTERS = 400


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
      UsageError: there is no such module, it cannot be imported, or it has no such function; the message names the
        flag.
    """
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with running(flag, name, f"the import of {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # One that the user's module asks for is an error in it.
            if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
                raise
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


@contextlib.contextmanager
def running(flag: str, name: str, what: str) -> Iterator[None]:
    """Turns an error of the user's code into one sentence, with the frames of their own files below it.

    Args:
      flag: that names the code.
      name: what it was given.
      what: is run, such as "its training step".

    Raises:
      UsageError: in place of any other error.
    """
    try:
        yield
    except UsageError:
        raise
    # A program's own exit would end ours without a word.
    except (Exception, SystemExit) as error:
        said = " ".join((str(error).strip() or "no message").split("\n\n")[0].split())
        if len(said) > MOST_CHARACTERS:
            said = f"{said[:MOST_CHARACTERS]} ..."
        frames = "".join(traceback.format_list(own_frames(error)[-MOST_FRAMES:])).rstrip()
        raise UsageError(
            f"--{flag}={name}: {what} raised {type(error).__name__}: {said}" + (f"\n{frames}" if frames else "")
        ) from error


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of a traceback in files that are neither Python's, nor JAX's and Flax's, nor ours."""
    packages = [Path(path).parent for name in _PACKAGES if (path := getattr(sys.modules.get(name), "__file__", None))]
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]) for name in ("purelib", "platlib")]

    def is_own(path: Path) -> bool:
        if not path.is_file() or any(path.is_relative_to(folder) for folder in packages):
            return False
        of_python = path.is_relative_to(paths["stdlib"])
        return not of_python or any(path.is_relative_to(folder) for folder in installed)

    return [frame for frame in traceback.extract_tb(error.__traceback__) if is_own(Path(frame.filename))]
