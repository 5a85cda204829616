"""Training, measuring and choosing batch sizes. The entry points are `python -m experiments.NAME`."""

import sys


def _say_interrupted(kind, error, traceback) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped by Ctrl-C", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, traceback)


# What Python calls a program that `-m` is about to run. Its imports take seconds, in which Ctrl-C is a word, too.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _say_interrupted
