"""The base classes of records."""

import msgspec

# The version of the records that this code writes. A field that is added needs no new one: older files lack it, and it
# has a default. A field whose meaning changes does.
VERSION = 1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A typed record of a JSON file.

    Fields that a file has beside those of the record are ignored, so that files of later versions can be read; fields
    with a default may be missing, so that files of earlier versions can.
    """


class FileRecord(Record, frozen=True, kw_only=True):
    """A record that is a whole file, or a row of one.

    Attributes:
      version: the version that wrote the file or the row; 0: written before records had versions.
    """

    version: int = VERSION
