"""What the entry points share: flags made from a dataclass, and errors printed for a person."""

import dataclasses
import sys
import types
import typing

from absl import app, flags, logging

from experiments._errors import UsageError

# For absl a flag belongs to the module that defines it, and --help is of the module that runs: of which these are.
flags.disclaim_key_flags()

_DEFINE = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}


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


def run(main, errors: tuple[type[Exception], ...] = (UsageError,)) -> None:
    """Runs an entry point. Errors that a user can mend are printed without a traceback, and exit with 2."""

    def wrapped(argv):
        # Orbax tells of every file that it writes; what it warns of is kept.
        logging.set_verbosity(logging.WARNING)
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        try:
            main()
        except errors as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(wrapped)
