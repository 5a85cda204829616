"""What the entry points share: flags made from a dataclass, and errors printed for a person."""

import dataclasses
import logging as standard_logging
import sys
import types
import typing
import warnings

from absl import app, flags, logging

from experiments import _help
from experiments._errors import StorageError, UsageError

# For absl a flag belongs to the module that defines it, and --help is of the module that runs: of which these are.
flags.disclaim_key_flags()

# Parts of the paths of files whose warnings are of no use to a user.
LIBRARIES = ("orbax", "etils", "tensorstore")

_DEFINE = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}


# What a shell says of a program that Ctrl-C ended.
INTERRUPTED = 130


class _NumberOrName(flags.ArgumentParser):
    """A whole number, or else a name."""

    def parse(self, argument):
        try:
            return int(argument)
        except ValueError:
            return argument


def define(dataclass: type) -> None:
    """Defines one flag for each field of a dataclass, its help from the field's metadata."""
    for field in dataclasses.fields(dataclass):
        kind = typing.get_type_hints(dataclass)[field.name]
        kinds = set(typing.get_args(kind) if isinstance(kind, types.UnionType) else [kind]) - {types.NoneType}
        if kinds == {int, str}:
            flags.DEFINE(_NumberOrName(), field.name, field.default, field.metadata["help"])
        else:
            (kind,) = kinds
            _DEFINE[kind](field.name, field.default, field.metadata["help"])


def given(dataclass: type) -> dict:
    """The values of those flags, of all that `define` made, that stand on the command line."""
    names = (field.name for field in dataclasses.fields(dataclass))
    return {name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].present}


def run(main, errors: tuple[type[Exception], ...] = (UsageError,), *, positional: str | None = None) -> None:
    """Runs an entry point. Errors that a user can mend are printed without a traceback, and exit with 2.

    Args:
      main: the entry point.
      errors: those that are printed.
      positional: the flag that an argument without a name is for; None: no such argument is taken.
    """
    if (text := _help.asked(sys.argv[1:])) is not None:
        print(text)
        return

    def wrapped(argv):
        # Orbax tells of every file that it writes; what it warns of is kept.
        logging.set_verbosity(logging.WARNING)
        _quiet_libraries()
        if len(argv) == 2 and positional is not None and not flags.FLAGS[positional].present:
            flags.FLAGS[positional].parse(argv.pop())
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        try:
            main()
        except (*errors, StorageError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("\nstopped by Ctrl-C; the same command goes on from what is kept", file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)

    app.run(wrapped)


def _quiet_libraries() -> None:
    """Keeps what Orbax and what it rests on warn of from users, who can do nothing about it; errors are said."""
    warnings.filterwarnings("ignore", module=r"(orbax|etils|tensorstore)\b")

    def is_ours(record) -> bool:
        return record.levelno >= standard_logging.ERROR or not any(part in record.pathname for part in LIBRARIES)

    logging.get_absl_handler().addFilter(is_ours)
