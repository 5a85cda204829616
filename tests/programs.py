"""The programs as their command lines start them, in this process, with flags of their own, up to where work begins."""

import sys

import pytest
from absl import flags

from experiments import (
    _flags,
    batch_size_study,
    benchmark,
    evaluate,
    norm_study,
    recommend,
    report,
    train,
)

# Each with its names of what does the work.
PROGRAMS = {
    "train": (train, ("train",)),
    "evaluate": (evaluate, ("evaluate_checkpoint",)),
    "recommend": (recommend, ("recommend",)),
    "batch_size_study": (batch_size_study, ("_workdirs.claim", "batch_size.describe")),
    "norm_study": (norm_study, ("_workdirs.claim",)),
    "report": (report, ("_writer",)),
    "benchmark": (benchmark, ("suites.measure",)),
}
POSITIONAL = {"evaluate": "checkpoint", "report": "workdir"}


class StartedError(Exception):
    """Work would begin here."""


def start(*_, **__):
    raise StartedError


def use_own_flags(module, monkeypatch):
    """Gives a program flags of its own; the flags."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(module, "FLAGS", values)
    module.define_flags()
    return values


def stop_before_work(name, monkeypatch):
    """Has a program raise `StartedError` where its work begins."""
    module, work = PROGRAMS[name]
    for one in work:
        *place, function = one.split(".")
        monkeypatch.setattr(getattr(module, place[0]) if place else module, function, start)


def run(module, arguments, monkeypatch, **options):
    """Runs a program as its command line would."""
    use_own_flags(module, monkeypatch)
    monkeypatch.setattr(sys, "argv", [f"experiments.{module.__name__}", *arguments])
    monkeypatch.setattr(_flags.app, "run", lambda main, flags_parser: sys.exit(main(flags_parser(sys.argv))))
    with pytest.raises(SystemExit) as ended:
        _flags.run(module.main, **options)
    return ended.value.code or 0


def begin(name, arguments, monkeypatch):
    """Parses a command line and goes on up to where work would begin.

    Raises:
      StartedError: it got there.
    """
    module, _ = PROGRAMS[name]
    values = use_own_flags(module, monkeypatch)
    stop_before_work(name, monkeypatch)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    _flags.parse(sys.argv, POSITIONAL.get(name))
    module.main()
    return values
