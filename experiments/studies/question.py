"""A question of the batch-size study, and a study: the settings in which questions are asked of a data set."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeVar

from .._errors import UsageError
from ..records.runs import OF_DATA_AND_MODEL
from ..records.studies import Analysis, StudyRow
from ..training.of_problem import ProblemNumbers
from .driver import Runner
from .jobs import Job
from .smoothness import CONSTANT


class Changes(NamedTuple):
    """Values that a user gives in place of those of a preset; None: as in the preset.

    Attributes:
      target: the accuracy of runs to a target.
      max_epochs: epochs after which such a run counts as not having reached it.
      batch_sizes: batch sizes to compare, rising.
      rates: learning rates to begin a search with, at the smallest batch size, rising.
      seeds: the seeds of every run that has several, rising.
    """

    target: float | None = None
    max_epochs: int | None = None
    batch_sizes: tuple[int, ...] | None = None
    rates: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
    """The base of the settings of questions: which runs a question makes, and how long they are."""

    def changed(self, changes: Changes) -> Self:
        """Returns the setting with what a user gives in its place.

        Raises:
          UsageError: a value cannot be used here.
        """
        del changes
        return self

    def fitted(self, examples: int) -> Self:
        """Returns the setting without batch sizes that are too large for a training set of so many examples."""
        del examples
        return self

    @property
    def compared_sizes(self) -> tuple[int, ...]:
        """Batch sizes that the question compares, of which `Question.fewest_sizes` must fit the training set."""
        return ()


S = TypeVar("S", bound=Setting)


@dataclasses.dataclass(frozen=True)
class Study:
    """A study of one data set.

    Attributes:
      options: options of `TrainConfig` that all runs share: data set, its place, model.
      parts: the names of the questions that are asked unless others are asked for.
      settings: the settings of the questions by their types.
    """

    options: dict[str, Any]
    parts: tuple[str, ...]
    settings: Mapping[type[Setting], Setting]

    def of(self, kind: type[S]) -> S:
        """Returns the setting of a type.

        Raises:
          UsageError: the study has none.
        """
        found = self.settings.get(kind)
        if not isinstance(found, kind):
            raise UsageError(f"this study has no {kind.__module__}.{kind.__name__}; leave that part out by --parts")
        return found

    def replace(self, *settings: Setting) -> "Study":
        """Returns the study with other settings in place of those of the same types."""
        return dataclasses.replace(self, settings={**self.settings, **{type(one): one for one in settings}})


class Data(NamedTuple):
    """A data set and a model, or a problem, with the number of training examples.

    Attributes:
      options: options of `TrainConfig` that all runs share.
      examples: the number of training examples, without those held out.
      held_out: the number of training examples to evaluate on; 0: the test split is evaluated, or what the problem
        holds out.
      goal: the kind of a target, "accuracy" or "loss".
      problem: the numbers of the problem; None: a model on a data set.
    """

    options: dict[str, Any]
    examples: int
    held_out: int
    goal: Literal["accuracy", "loss"] = "accuracy"
    problem: ProblemNumbers | None = None

    @property
    def is_problem(self) -> bool:
        """Whether a problem is trained."""
        return self.problem is not None

    @property
    def constant(self) -> dict[str, Any]:
        """The options of runs whose rate and batch stay as they are, evaluated on what is held out."""
        if self.is_problem:
            return {name: CONSTANT[name] for name in CONSTANT if name not in OF_DATA_AND_MODEL}
        return {**CONSTANT, "validation_examples": self.held_out}


class Asked(NamedTuple):
    """A study under way, as its questions see it.

    Attributes:
      study: the settings, fitted to the training set.
      data: the data set; its options name the norm of runs that compare batch sizes from 1 on.
      runner: runs jobs, and holds the rows of those that were run.
    """

    study: Study
    data: Data
    runner: Runner


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of the batch-size study; its name is that of its module in `studies.questions`.

    Attributes:
      order: its place among the questions as they are run.
      help: the training runs that it makes, in a few words.
      setting: the type of its setting; two questions may share one.
      planned: returns the jobs that are known before anything is run. Where rates follow from rows, those of the
        middle stand for them.
      run: runs what has not been run, and returns what the report needs beside the rows; None: runs what is planned,
        and the report needs the rows alone.
      presets: its setting in each preset that asks it.
      otherwise: its setting in other presets, where a user asks it by name.
      fewest_sizes: how many `Setting.compared_sizes` the training set must have room for.
      rates_follow: learning rates of later runs follow from earlier ones.
      after: names of questions from whose runs its own follow, where they are asked too.
      on_request: asked only where a user names it.
      of_problems: it can be asked of a problem too, whose optimizer and norms are its own.
      total: about how many runs it makes in all; None: those that are planned.
    """

    order: int
    help: str
    setting: type[Setting]
    planned: Callable[[Asked], list[Job]]
    run: Callable[[Asked], Analysis] | None = None
    presets: Mapping[str, Setting] = dataclasses.field(default_factory=dict)
    otherwise: Setting | None = None
    fewest_sizes: int = 0
    rates_follow: bool = False
    after: tuple[str, ...] = ()
    on_request: bool = False
    of_problems: bool = False
    total: Callable[[Asked], int] | None = None

    def answer(self, asked: Asked) -> Analysis:
        """Runs what has not been run, and returns what the report needs beside the rows."""
        if self.run is not None:
            return self.run(asked)
        return Analysis(keys=keys_of(asked.runner.run_all(self.planned(asked))))


class Look:
    """Looks up the rows of jobs, in place of running them, to know what a study would run next.

    Attributes:
      known: the jobs that were asked for until the first that is not done, and those beside it.
      is_open: whether one of them is not done, so that what follows from it is not known.
    """

    def __init__(self, runner: Runner):
        self._runner = runner
        self.known: list[Job] = []
        self.is_open = False

    def __call__(self, jobs: Sequence[Job]) -> list[StudyRow | None]:
        """Returns the rows of jobs; None in the place of one that is not done."""
        if not self.is_open:
            self.known.extend(jobs)
        rows = [self._runner.run(job) if self._runner.is_done(job) else None for job in jobs]
        self.is_open = self.is_open or None in rows
        return rows


def keys_of(rows: Iterable[StudyRow]) -> list[str]:
    """Returns the keys of rows, in alphabetical order."""
    return sorted({row.key for row in rows})


def no_larger(sizes: Iterable[int], examples: int) -> tuple[int, ...]:
    """Returns the batch sizes of which a training set has at least one batch."""
    return tuple(size for size in sizes if size <= examples)
