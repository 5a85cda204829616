"""Defines command-line flags with limits, and runs an entry point with one-line errors."""

import dataclasses
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import app, flags, logging

from . import _help, _limits, _quiet, _workdirs
from ._errors import StorageError, UsageError

# absl assigns a flag to the module that defines it, and --help lists those of the main module. Disclaiming the flags
# assigns them to the caller, which is the main module.
flags.disclaim_key_flags()

# A shell's exit status for a program that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED_STATUS = 130
# Flags that make a program print and exit without writing, so that no folder has to be writable.
PRINT_ONLY_FLAGS = ("dry_run", "list_presets")

T = TypeVar("T")


class _Parser(flags.ArgumentParser):
    """A parser of one flag, which checks the limits of the flag.

    Attributes:
      name: the name of the flag.
      kinds: the types of its values: one of str, int and float, or both int and str.
      several: whether the flag takes a list, separated by commas.
      limits: the limits, as `_limits` describes them, and an `example` of a list.
    """

    def __init__(self, *, name: str, kinds: set[type], several: bool, limits: Mapping[str, Any]):
        self.name, self.kinds, self.several, self.limits = name, kinds, several, limits

    def parse(self, argument):
        """Returns the value, or the list of values.

        Raises:
          UsageError: the argument is not a value of the flag's type, or not within the limits.
        """
        value = self._listed(argument) if self.several else self._one(argument)
        _limits.check(self.name, value, self.limits)
        return value

    def flag_type(self):
        """Returns the name of the type, for --helpfull."""
        return "comma separated list" if self.several else " or ".join(kind.__name__ for kind in self.kinds)

    def _listed(self, argument) -> list:
        given = list(argument) if isinstance(argument, list | tuple) else _commas(self.name, argument)
        try:
            return [self._one(one) for one in given]
        except UsageError as error:
            if self.kinds == {str}:
                raise
            what = "numbers" if float in self.kinds else self.limits.get("what", "numbers")
            said = _limits.shown(argument)
            raise UsageError(f"--{self.name} must be {what}, as in {self.limits['example']}, not {said}") from error

    def _one(self, argument):
        if not isinstance(argument, str) or self.kinds == {str}:
            return argument
        try:
            return int(argument) if int in self.kinds else float(argument)
        except ValueError as error:
            if str in self.kinds:
                return argument
            what = "whole number" if int in self.kinds else "number"
            raise UsageError(f"--{self.name} must be a {what}, not {_limits.shown(argument) or 'empty'}") from error


class _Switch(flags.BooleanFlag):
    """A flag that is on or off, with a one-line error for any other value."""

    def _parse(self, argument):
        try:
            return super()._parse(argument)
        except flags.IllegalFlagValueError as error:
            said = _limits.shown(argument) or "empty"
            raise UsageError(f"--{self.name} must be true or false, not {said}") from error


def _commas(name: str, argument: str) -> list[str]:
    try:
        return flags.ListParser().parse(argument)
    except ValueError as error:
        raise UsageError(f"--{name} must be separated by commas, not {_limits.shown(argument)}") from error


def _define(name: str, kinds: set[type], default: Any, help: str, limits: Mapping[str, Any], several=False) -> None:
    serializer = flags.ListSerializer(",") if several else flags.ArgumentSerializer()
    parser = _Parser(name=name, kinds=kinds, several=several, limits=limits)
    flags.DEFINE(parser, name, default, help, flag_values=flags.FLAGS, serializer=serializer)


def text(name: str, default: Any, help: str, **limits: Any) -> None:
    """Defines a flag that takes a text."""
    _define(name, {str}, default, help, limits)


def whole(name: str, default: int | None, help: str, **limits: Any) -> None:
    """Defines a flag that takes a whole number."""
    _define(name, {int}, default, help, limits)


def number(name: str, default: float | None, help: str, **limits: Any) -> None:
    """Defines a flag that takes a number."""
    _define(name, {float}, default, help, limits)


def switch(name: str, help: str, *, default: bool = False) -> None:
    """Defines a flag that is on or off, with `--name` and `--noname`."""
    flags.DEFINE_flag(_Switch(name=name, default=default, help=help, short_name=None), flags.FLAGS)


def several(name: str, of: type, default: Sequence | None, help: str, **limits: Any) -> None:
    """Defines a flag that takes a list, separated by commas; the limits hold for each entry."""
    _define(name, {of}, default, help, limits, several=True)


def define(
    dataclass: type,
    only: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    helps: Mapping[str, str] | None = None,
) -> None:
    """Defines one flag for each field of a dataclass; help and limits come from the field's metadata.

    A field that is a tuple of any length becomes a flag that takes a list.

    Args:
      dataclass: the dataclass.
      only: the names of the fields to define flags for; None: all fields.
      defaults: default values by name, in place of the fields' own.
      helps: help texts by name, in place of the fields' own.
    """
    hints = typing.get_type_hints(dataclass)
    for field in dataclasses.fields(dataclass):
        if only is not None and field.name not in only:
            continue
        default = (defaults or {}).get(field.name, field.default)
        help: str = (helps or {}).get(field.name) or field.metadata["help"]
        kind = hints[field.name]
        kinds = set(typing.get_args(kind) if isinstance(kind, types.UnionType) else [kind]) - {types.NoneType}
        listed = {typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is tuple}
        if kinds == {bool}:
            switch(field.name, help, default=default)
        else:
            _define(field.name, listed or kinds, default, help, field.metadata, several=bool(listed))


def made(dataclass: type[T]) -> T:
    """Returns the dataclass that the flags make which `define` made from it."""
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(dataclass)}  # pyright: ignore[reportArgumentType]
    return dataclass(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def given(dataclass: type) -> dict:
    """Returns the values of the dataclass's flags that were given on the command line, by name."""
    names = (field.name for field in dataclasses.fields(dataclass))
    return {name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].present}


def parse(arguments: list[str], positional: str | None = None) -> None:
    """Parses a command line, and checks everything that can be checked before any work is done.

    Args:
      arguments: the program's name, then its arguments.
      positional: the flag that an argument without a name sets; None: such an argument is refused.

    Raises:
      UsageError: a flag is unknown, its value is not within its limits, or its folder cannot be created.
    """
    values = flags.FLAGS
    try:
        rest = values(arguments)[1:]
        if len(rest) == 1 and positional is not None and not values[positional].present:
            values[positional].parse(rest.pop())
    except UsageError:
        raise
    # absl raises a ValueError if a flag that takes no value is given one.
    except (flags.Error, ValueError) as error:
        # absl wraps the parser's error in one that repeats the value, however long it is.
        if isinstance(refusal := error.__cause__ or error.__context__, UsageError):
            raise refusal from None
        raise UsageError(_limits.shown(" ".join(str(error).split()), most=400)) from error
    if rest:
        raise UsageError(f"unexpected arguments: {_limits.shown(' '.join(rest))}; give a flag as --NAME=VALUE")
    if any(name in values and values[name].value for name in PRINT_ONLY_FLAGS):
        return
    for name in values:
        limits = getattr(values[name].parser, "limits", {})
        if limits.get("is_made") and values[name].value is not None:
            _workdirs.check_can_be_made(Path(str(values[name].value)), name)


def run(
    define_flags: Callable[[], None],
    main: Callable[[], int | None],
    errors: tuple[type[Exception], ...] = (UsageError,),
    *,
    positional: str | None = None,
) -> None:
    """Runs a program; prints errors that a user can fix without a traceback, and exits with status 2 then.

    Args:
      define_flags: defines the program's flags.
      main: the program, which returns its exit status; None means 0.
      errors: the types of the errors to print without a traceback, beside `StorageError`.
      positional: the flag that an argument without a name sets; None: such an argument is refused.
    """
    define_flags()
    if (text := _help.asked(sys.argv[1:], main.__module__)) is not None:
        _print(text)
        return

    def parsed(arguments):
        try:
            parse(arguments, positional)
        except (UsageError, StorageError) as error:
            _end(error)

    def wrapped(_):
        # Orbax logs every file that it writes.
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_handler().addFilter(_quiet.is_record_shown)
        try:
            return main()
        except (*errors, StorageError) as error:
            _end(error)
        except (RuntimeError, AssertionError):
            _end_without_devices()
            raise
        except KeyboardInterrupt:
            print("\nstopped by Ctrl-C; run the same command again to resume", file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED_STATUS)

    app.run(wrapped, flags_parser=parsed)


def _print(text: str) -> None:
    """Prints a text, to a reader such as `head` that may take only a part of it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes the output again as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end_without_devices() -> None:
    """Ends the program with a one-line error if JAX was told to use devices that this machine does not have.

    JAX raises its own error at its first use, which may be anywhere in the program.
    """
    # Importing JAX takes a second, which only a program that has failed needs to spend here.
    from .training.machine import devices

    try:
        devices.local_devices()
    except UsageError as error:
        _end(error)


def _end(error: Exception) -> typing.NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
