"""Hides warnings of installed libraries from the users of a program, who can do nothing about them.

Shown are warnings of this project, of the user's own files, and of the installed packages that a flag names.
"""

import itertools
import logging
import sysconfig
import warnings
from pathlib import PurePath

# Folders of installed packages: pip's, and Debian's.
_INSTALLED = ("site-packages", "dist-packages")
# The files that Python names in warnings about its own code.
_PYTHONS_OWN = ("sys", "<frozen ")
_OURS = {"batchnorm_jax", __name__.partition(".")[0]}
# JAX logs which devices it does not find, and how to install what it needs for them.
_LOGGED = frozenset({"jax"})
_users: set[str] = set()


def show_warnings_of(module: str) -> None:
    """Shows the warnings of a module that the user named, and of its package, even if it is installed."""
    _users.add(module.partition(".")[0])


def is_shown(file: str, packages: frozenset[str] = frozenset()) -> bool:
    """Returns whether warnings that name a file are shown.

    Args:
      file: the path of the file.
      packages: installed packages whose warnings are shown, beside those of this project and those of the user.

    Example:
      >>> is_shown("/home/me/mine.py"), is_shown("/usr/lib/python3/dist-packages/orbax/checkpoint/args.py")
      (True, False)
    """
    if file.startswith(_PYTHONS_OWN):
        return False
    parts = PurePath(file).parts
    for folder, name in itertools.pairwise(parts):
        if folder in _INSTALLED:
            return name.removesuffix(".py") in _OURS | _users | packages
    return not PurePath(file).is_relative_to(sysconfig.get_path("stdlib"))


def hide_warnings_of_libraries() -> None:
    """Hides the warnings of libraries from now on, and what they log below the level of an error."""
    show = warnings.showwarning

    def show_some(message, category, filename, lineno, file=None, line=None):
        # A warning of the norm that is given while a program runs names the file of JAX that calls the norm back.
        if is_shown(filename) or category.__module__.partition(".")[0] in _OURS:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = show_some
    # Prints what is logged before absl has set up its own handler.
    if logging.lastResort is not None:
        logging.lastResort.addFilter(is_record_shown)


def is_record_shown(record: logging.LogRecord) -> bool:
    """Returns whether a record is shown: an error, or a message of a module whose warnings are shown, or of JAX."""
    return record.levelno >= logging.ERROR or is_shown(record.pathname, _LOGGED)
