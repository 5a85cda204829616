"""Trains models, and measures and chooses batch sizes. The entry points are `python -m experiments.NAME`."""

import sys

from . import _quiet


def _say_interrupted(kind, error, traceback) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped by Ctrl-C", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, traceback)


# `sys.argv[0]` is "-m" while Python looks up the module to run, which may be a program or a worker process. Its imports
# take a second or more. Ctrl-C during them should not print a traceback, and libraries should not warn.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _say_interrupted
    _quiet.hide_warnings_of_libraries()
