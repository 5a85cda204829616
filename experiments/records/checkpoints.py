"""Records that lie beside the state in a checkpoint."""

import msgspec

from experiments.records.fields import Count, Finite, Size, Whole
from experiments.records.record import Record


class RampNotes(Record, frozen=True, kw_only=True):
    """Decisions of an automatic batch ramp so far.

    Attributes:
      epochs: the epochs at which the batch was doubled.
      largest: the largest batch that memory and data allow.
    """

    epochs: list[Count]
    largest: Size


class Notes(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Facts about a run that its state does not hold.

    Attributes:
      seconds: wall-clock time so far by what it was spent on.
      starts: how many times the run was started.
      ramp: decisions of an automatic batch ramp; None: there is none.
    """

    seconds: dict[str, Finite] = msgspec.field(default_factory=dict)
    starts: Count = 0
    ramp: RampNotes | None = None


class Beside(Record, frozen=True, kw_only=True):
    """The JSON file beside a state.

    Attributes:
      sha256: digest of the state and the notes.
      notes: facts about the run.
      run: the name of the run; None: an earlier version gave it none.
    """

    sha256: str
    notes: Notes
    run: str | None = None


class Described(Record, frozen=True, kw_only=True):
    """Orbax's own description of a checkpoint, as far as opening one needs it."""

    init_timestamp_nsecs: Whole | None = None
    commit_timestamp_nsecs: Whole | None = None
