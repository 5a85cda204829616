"""The base classes of records."""

import msgspec

# The version of the records that this code writes. A new field does not need a new version, because it has a default
# that older files get. A field whose meaning changes does need one.
VERSION = 1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A typed record of a JSON file.

    Unknown fields of a file are ignored, so that files of later versions can be read. Fields with a default may be
    missing, so that files of earlier versions can be read.
    """


def check_options(options: object, kind: type[Record]) -> None:
    """Checks the options of a run, the field `options` of a record, against another record.

    Raises:
      ValueError: an option does not fit.
    """
    try:
        msgspec.convert(options, kind)
    except msgspec.ValidationError as error:
        # msgspec writes "$" for the value that is converted.
        raise ValueError(str(error).replace("$", "options")) from error


class FileRecord(Record, frozen=True, kw_only=True):
    """A record that is a whole file, or a row of a file.

    Attributes:
      version: the version that wrote the record; 0: written before records had versions.
    """

    version: int = VERSION
