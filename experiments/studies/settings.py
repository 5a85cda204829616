"""The extent of the batch-size study: its presets, a user's changes to them, and the limits that the data set."""

import dataclasses
import functools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from batchnorm_jax.batch_size import scale_learning_rate

from .. import data as datasets
from .._errors import UsageError
from ..training import of_problem as training
from ..training.config.plan import MIN_UPDATES_PER_EPOCH
from . import convergence
from .convergence import rounded
from .driver import Runner
from .jobs import devices_of
from .question import Changes, Data, Setting, Study
from .questions import QUESTIONS, time

# One in so many training examples is held out.
HELD_OUT = 12
# The norm if none is asked for: statistics of a batch of one image normalise nothing, and the batch size should act by
# the gradient alone.
PLAIN = {"norm": "none"}

# Of a problem: batch sizes and rates as multiples of its own, and how far and how often they are run.
SIZE_FACTORS, RATE_FACTORS = (1 / 4, 1, 4, 16), (0.5, 1.0, 2.0)
MAX_EPOCHS, SEEDS, TIMING_ROUNDS = 40, (0, 1), 3


def study_of(options: dict[str, Any], *settings: Setting) -> Study:
    """Returns a study with settings of some questions, which are its parts.

    Other questions have their setting for where they are asked by name, if they declare one.

    Args:
      options: options of `TrainConfig` that all runs share.
      *settings: one per question.
    """
    given = {type(setting): setting for setting in settings}
    parts = tuple(name for name, asked in QUESTIONS.items() if asked.setting in given and not asked.on_request)
    others = (asked.otherwise for asked in QUESTIONS.values() if asked.otherwise is not None)
    return Study(options, parts, {**{type(one): one for one in others}, **given})


def _preset(name: str, options: dict[str, Any]) -> Study:
    return study_of(options, *(asked.presets[name] for asked in QUESTIONS.values() if name in asked.presets))


# A preset has a data set; each question declares its setting in it.
PRESETS = {
    name: _preset(name, options)
    for name, options in {
        "quick": {"dataset": "digits"},
        "mnist": {"dataset": "mnist"},
        "mnist_full": {"dataset": "mnist"},
        "cifar10": {"dataset": "cifar10", "model": "resnet18_narrow"},
    }.items()
}


def changed(
    study: Study,
    options: dict[str, Any],
    *,
    target: float | None = None,
    max_epochs: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    goal: Literal["accuracy", "loss"] = "accuracy",
) -> Study:
    """Returns a study with what is given in place of what it has.

    Args:
      study: such as a preset.
      options: options of every run by their names; None: as in `study`.
      target: the accuracy or the loss of runs to a target.
      max_epochs: epochs after which such a run counts as not having reached it.
      batch_sizes: where the rate is tuned and minima are compared; a ramp begins at the smallest.
      rates: where the search begins at the smallest batch size; a ramp has the least of them.
      seeds: the seeds of every run that has several.
      goal: the kind of the target.

    Raises:
      UsageError: a value is out of range, or some do not rise.
    """
    for name, values, example in (
        ("batch_sizes", batch_sizes, "16,64,256"),
        ("learning_rates", rates, "0.01,0.02,0.04"),
        ("seeds", seeds, "0,1,2"),
    ):
        least = 0 if name == "seeds" else 1e-30
        given = list(values or ())
        if values is not None and not (given and least <= min(given) and max(given) < math.inf):
            raise UsageError(
                f"--{name} must be {'at least 0' if least == 0 else 'positive'}, as {example}, not {given}"
            )
        if given != sorted(set(given)):
            raise UsageError(f"--{name} must rise, as {example}, not {given}")
    if target is not None and goal == "accuracy" and not 0 < target <= 1:
        raise UsageError(f"--target_accuracy is a share of 1, such as 0.98, not {target}")
    changes = Changes(
        target,
        max_epochs,
        None if batch_sizes is None else tuple(batch_sizes),
        None if rates is None else tuple(rates),
        None if seeds is None else tuple(seeds),
    )
    return dataclasses.replace(
        study,
        options={**study.options, **{name: value for name, value in options.items() if value is not None}},
        settings={kind: setting.changed(changes) for kind, setting in study.settings.items()},
    )


def of_problem(
    options: dict[str, Any], *, target: float | None = None, batch_sizes: Sequence[int] | None = None
) -> Study:
    """Returns a study of a problem: its batch sizes lie about the problem's own, its rates about that rate by its rule.

    Args:
      options: options of every run by their names, `problem` among them.
      target: the accuracy or the loss of runs to a target; None: there are no such runs.
      batch_sizes: batch sizes to tune the rate at and to time, in place of these.

    Raises:
      UsageError: the problem cannot be loaded.
    """
    numbers = with_held_out(options).problem
    assert numbers is not None
    most = max(numbers.devices, numbers.examples // MIN_UPDATES_PER_EPOCH)
    about = (numbers.batch_size * factor for factor in SIZE_FACTORS)
    own = sorted({min(most, max(1, round(size / numbers.devices))) * numbers.devices for size in about})
    sizes = tuple(batch_sizes or own)
    first = scale_learning_rate(numbers.learning_rate, numbers.batch_size, min(sizes), rule=numbers.rule)
    found: list[Setting] = [time.Setting(sizes, examples=numbers.examples, rounds=TIMING_ROUNDS)]
    if target is not None:
        around = tuple(rounded(first * factor) for factor in RATE_FACTORS)
        found.append(convergence.Setting(target, (), sizes, around, MAX_EPOCHS, SEEDS))
    study = study_of(options, *found)
    return dataclasses.replace(study, parts=tuple(part for part in study.parts if QUESTIONS[part].of_problems))


def data_of(study: Study) -> Data:
    """Returns what a study trains; runs on a data set have no norm if none is asked for."""
    plain = {} if study.options.get("problem") is not None else PLAIN
    return with_held_out({**plain, **study.options})


def with_held_out(options: dict[str, Any], goal: Literal["accuracy", "loss"] = "accuracy") -> Data:
    """Loads a data set to know its size; a twelfth is held out for a target, where that can be.

    Of a problem the process that trains tells the numbers, and the goal.

    Args:
      options: options of `TrainConfig` that all runs share.
      goal: the kind of a target on a data set, "accuracy" or "loss".

    Raises:
      UsageError: the data set or the problem cannot be loaded.
    """
    if (name := options.get("problem")) is not None:
        numbers = _numbers(name, options.get("num_devices"))
        return Data(options, numbers.examples, 0, numbers.goal, numbers)
    dataset = datasets.load(options["dataset"], options.get("data_dir"), image_size=options.get("image_size"))
    in_memory = isinstance(dataset.train, datasets.Examples)
    held_out = dataset.train.size // HELD_OUT if dataset.independent and in_memory else 0
    return Data(options, dataset.train.size - held_out, held_out, goal)


@functools.lru_cache
def _numbers(name: str, num_devices: int | None) -> training.ProblemNumbers:
    """Returns the numbers of a problem, told by a process that trains: this one leaves the devices to it."""
    options = {"problem": name, "num_devices": num_devices}
    with tempfile.TemporaryDirectory() as folder, Runner(Path(folder)) as runner:
        return training.ProblemNumbers(**runner.ask(training.describe, devices_of(options), options=options))


def fitted(study: Study, examples: int, parts: Sequence[str]) -> Study:
    """Returns the study without batch sizes that a training set lacks, or has too few updates of.

    Raises:
      UsageError: too few are left for one of the parts.
    """
    found = study.replace(*(setting.fitted(examples) for setting in study.settings.values()))
    for part in parts:
        asked = QUESTIONS[part]
        sizes = found.of(asked.setting).compared_sizes
        if len(sizes) < asked.fewest_sizes:
            raise UsageError(
                f"of the batch sizes of {part} at least {asked.fewest_sizes} must be no larger than the {examples} "
                f"examples that are left to train on, and are {list(sizes)}; give --batch_sizes, or leave it out "
                "by --parts"
            )
    return found
