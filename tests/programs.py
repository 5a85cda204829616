"""Runs the programs in this process as their command lines do, each with its own flags, up to where work begins."""

import sys

import pytest
from absl import flags

from experiments import (
    _flags,
    batch_size_study,
    benchmark,
    branch,
    evaluate,
    norm_study,
    recommend,
    report,
    train,
)

# Each program, with the names of the functions that do its work.
PROGRAMS = {
    "train": (train, ("train",)),
    "evaluate": (evaluate, ("evaluate_checkpoint",)),
    "recommend": (recommend, ("recommend",)),
    "batch_size_study": (batch_size_study, ("_workdirs.claim", "batch_size.describe")),
    "branch": (branch, ("loading.load",)),
    "norm_study": (norm_study, ("_workdirs.claim",)),
    "report": (report, ("_writer",)),
    "benchmark": (benchmark, ("suites.measure",)),
}
POSITIONAL = {"evaluate": "checkpoint", "report": "workdir"}


class StartedError(Exception):
    """A program that has come to where its work begins."""


def start(*_, **__):
    raise StartedError


def use_no_flags(module, monkeypatch):
    """Gives a program its own, empty set of flags, and returns the set."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(module, "FLAGS", values)
    return values


def use_own_flags(module, monkeypatch):
    """Gives a program its own set of flags, and returns the set."""
    values = use_no_flags(module, monkeypatch)
    module.define_flags()
    return values


def stop_before_work(name, monkeypatch):
    """Makes a program raise `StartedError` where its work begins."""
    module, work = PROGRAMS[name]
    for one in work:
        *place, function = one.split(".")
        monkeypatch.setattr(getattr(module, place[0]) if place else module, function, start)


def run(module, arguments, monkeypatch):
    """Runs a program as its command line would, and returns its exit status."""
    use_no_flags(module, monkeypatch)
    monkeypatch.setattr(sys, "argv", [f"experiments.{module.__name__}", *arguments])
    monkeypatch.setattr(_flags.app, "run", lambda main, flags_parser: sys.exit(main(flags_parser(sys.argv))))
    with pytest.raises(SystemExit) as ended:
        module.run()
    return ended.value.code or 0


def begin(name, arguments, monkeypatch):
    """Parses a command line, and runs the program up to where its work would begin.

    Raises:
      StartedError: the program came to its work.
    """
    module, _ = PROGRAMS[name]
    values = use_own_flags(module, monkeypatch)
    stop_before_work(name, monkeypatch)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    _flags.parse(sys.argv, POSITIONAL.get(name))
    module.main()
    return values
