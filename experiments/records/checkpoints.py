"""Records that are stored beside the state in a checkpoint."""

import msgspec

from .fields import Count, Finite, Size, Whole
from .record import Record


class RampNotes(Record, frozen=True, kw_only=True):
    """The decisions that an automatic batch ramp has made so far.

    Attributes:
      epochs: the epochs at which the batch size was doubled.
      largest: the largest batch size that memory and data allow.
    """

    epochs: list[Count]
    largest: Size


class Notes(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Facts about a run that its state does not hold.

    Attributes:
      seconds: wall-clock seconds so far, by what they were spent on.
      starts: the number of times that the run was started or resumed.
      ramp: the decisions of an automatic batch ramp; None: the run has no such ramp.
    """

    seconds: dict[str, Finite] = msgspec.field(default_factory=dict)
    starts: Count = 0
    ramp: RampNotes | None = None


class Beside(Record, frozen=True, kw_only=True):
    """The JSON file beside a state.

    Attributes:
      sha256: the digest of the state and the notes.
      notes: facts about the run.
      run: the name of the run; None: written by an earlier version, in which runs had no names.
    """

    sha256: str
    notes: Notes
    run: str | None = None


class Described(Record, frozen=True, kw_only=True):
    """The fields of Orbax's own description of a checkpoint that opening a checkpoint needs.

    Attributes:
      init_timestamp_nsecs: the time at which the save began, in nanoseconds since 1970.
      commit_timestamp_nsecs: the time at which the save was complete.
    """

    init_timestamp_nsecs: Whole | None = None
    commit_timestamp_nsecs: Whole | None = None
