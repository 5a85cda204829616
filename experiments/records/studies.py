"""Records of a study: one row per training run, and the base class of the analysis of a question."""

from typing import Any, ClassVar

from .fields import Count, Moment, NonNegative, Options, Positive, Size
from .record import FileRecord, Record, check_options
from .runs import Summary


class _Known(Record, frozen=True, kw_only=True):
    """The bounds of those options of a run that reports read."""

    batch_size: Size | None = None
    learning_rate: Positive | None = None
    seed: Count | None = None
    steps: Size | None = None
    epochs: Positive | None = None
    num_devices: Size | None = None
    optimizer: str | None = None
    dataset: str | None = None
    model: str | None = None


class StudyRow(FileRecord, frozen=True, kw_only=True, omit_defaults=True):
    """A row of `results.jsonl`: one training run of a study, with its summary or its error.

    A question whose rows have more fields derives their types from this class, and lists them in the `ROWS` of its
    module in `records.questions`.

    Attributes:
      key: the name of the run in the study; the part before the first "-" is the kind of the row.
      options: the options of `TrainConfig` that the study sets.
      command: the training command.
      label: the name of the run in a report; "": the report makes one.
      error: why there is no summary; None: the run did not fail.
      diverged: whether the run ended with a loss that is not finite, which is a result.
      summary: the summary of the run; None: the run failed or diverged.
      ran_on: where it ran, such as "worker 2 of 4"; "": on the machine of the study, alone.
    """

    # Options that a report needs in order to place a run that ended.
    NEEDED: ClassVar[tuple[str, ...]] = ()
    # Whether a report needs the compute time of a run that ended.
    TIMED: ClassVar[bool] = False
    # Whether the run was given a target accuracy.
    TO_TARGET: ClassVar[bool] = False

    key: str
    options: Options
    command: str = ""
    label: str = ""
    error: str | None = None
    diverged: bool = False
    summary: Summary | None = None
    ran_on: str = ""

    def __post_init__(self):
        check_options(self.options, _Known)
        if self.summary is None and self.error is None:
            raise ValueError("Expected a summary or an error")
        if not self.is_result:
            return
        for name in self.NEEDED:
            if self.options.get(name) is None:
                raise ValueError(f"Expected the option {name!r}")
        if self.summary is None:
            return
        if self.TIMED and ("compute" not in self.summary.seconds or self.summary.updates < 1):
            raise ValueError("Expected the compute seconds of at least one update")
        if self.TO_TARGET and self.summary.target is None:
            raise ValueError("Expected a target")

    @property
    def kind(self) -> str:
        """The kind of the row: the part of its key before the first "-"."""
        return kind_of(self.key)

    @property
    def is_result(self) -> bool:
        """Whether the run is done: it has a summary, or its loss was not finite."""
        return self.summary is not None or self.diverged

    @property
    def ended(self) -> Summary:
        """The summary of the run; raises `LookupError` if the run has none."""
        if self.summary is None:
            raise LookupError(f"the run {self.key} has no summary")
        return self.summary

    @property
    def batch_size(self) -> int:
        """Examples per update."""
        return self._option("batch_size")

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        return self._option("learning_rate")

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self._option("seed")

    def _option(self, name: str) -> Any:
        value = self.options.get(name)
        if value is None:
            raise LookupError(f"the run {self.key} was given no {name}")
        return value


class Progress(FileRecord, frozen=True, kw_only=True):
    """The contents of `progress.json`: how far a study is, since it was started last.

    Attributes:
      done: the number of runs that ended well.
      running: the keys of the runs under way.
      waiting: the number of runs that are known and wait.
      failed: the number of runs that ended with an error, and are not tried again.
      seconds_left: about how long the known runs will take, by those that have ended; None: none has.
      updated: when this was written, in seconds since 1970.
    """

    done: Count
    running: list[str]
    waiting: Count
    failed: Count
    seconds_left: NonNegative | None = None
    updated: Moment


class Analysis(FileRecord, frozen=True, kw_only=True):
    """The base class of `QUESTION.json`, the analysis of a question that its report shows.

    Attributes:
      keys: the keys of the rows that the report shows; the folder may hold other rows.
    """

    keys: list[str]


def kind_of(key: str) -> str:
    """Returns the kind of a row: the part of its key before the first "-".

    Example:
      >>> kind_of("fixed-b64-seed0")
      'fixed'
    """
    return key.partition("-")[0]
