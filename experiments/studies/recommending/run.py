"""Makes a whole recommendation: checks the request, measures, chooses a setting and writes the result."""

import math
from pathlib import Path
from typing import Any, Literal

from ... import _files, _workdirs
from ..._errors import UsageError
from ...records.fields import Options
from ...records.recommendation import Recommendation
from ...training.config.options import TrainConfig
from ...training.of_problem import check_target, refuse_met
from ...training.recipe.schedules import SCHEDULES
from ..driver import Runner
from ..jobs import Job
from ..settings import with_held_out
from .advice import advise
from .lab import Lab, Problem, count_devices
from .measure import TINY_RATE, measure
from .runs import constant_options

# The file of the result, beside `results.jsonl`, which holds the runs.
FILE = "recommendation.json"


def recommend(
    options: Options,
    *,
    target: float | None,
    minutes: float,
    folder: Path,
    optimizer: str | None = None,
    goal: Literal["accuracy", "loss"] = "accuracy",
) -> Recommendation:
    """Measures what the budget allows, and recommends the batch size that follows.

    Rows in the folder are reused and cost nothing, so that the same call resumes a recommendation that was stopped.

    Args:
      options: the options of `TrainConfig` that all runs share: data set and model, or problem, and others, such as the
        decay of the weights, which is none without.
      target: the accuracy or the loss to reach; None: there is no target.
      minutes: the time limit for all measurements, without the loading of the data.
      folder: the folder for the rows and the result.
      optimizer: the optimizer of all runs; None: that of the problem, else Nesterov's momentum.
      goal: the kind of the target.

    Returns:
      The measurements and the advice, which are also written to `recommendation.json` in the folder.

    Raises:
      UsageError: the budget, the target or an option is out of range, or the data set is too small.
    """
    if not 0 < minutes < math.inf:
        raise UsageError(f"--budget_minutes must be positive and finite, such as 10, not {minutes:g}")
    if target is not None and goal == "accuracy" and not 0 < target <= 1:
        raise UsageError(f"--target_accuracy is a share of 1, such as 0.98, not {target:g}")
    name = options.get("problem")
    if name is None:
        optimizer = optimizer or TrainConfig.optimizer
    _check_schedule(options)
    # Making the configuration refuses invalid options before any run is started.
    given: dict[str, Any] = {**options, **({} if optimizer is None else {"optimizer": optimizer})}
    config = TrainConfig(**given)
    _workdirs.claim(folder, _workdirs.RECOMMENDATION)
    data = with_held_out(options, goal)
    if name is not None and target is not None:
        check_target(str(name), data.goal, **{goal: target})
    if data.problem is not None and target is not None:
        refuse_met(data.problem, target)
    # A run that fails says something, such as that its batch is too large; it is not made twice.
    with Runner(folder, most_tries=1, is_quiet=True) as runner:
        lab = Lab(runner, 60 * minutes)
        if data.problem is not None:
            problem = Problem(data, target, data.problem.devices, data.problem.kind, None)
        else:
            devices = runner.ask(count_devices, config.num_devices)
            # Runs may use fewer devices than the machine has.
            problem = Problem(data, target, config.num_devices or devices["count"], devices["kind"], optimizer)
        if problem.unit > data.examples:
            by, loosen = (f" and --span={config.span}", "--span") if config.span else ("", "--num_devices")
            raise UsageError(
                f"{problem.devices} devices{by} need batches of {problem.unit:,} examples, and {data.examples:,} are "
                f"there to train on; take a smaller {loosen}"
            )
        runner.try_out([Job("first", {**constant_options(problem, problem.unit, TINY_RATE), "steps": 1})])
        evidence = measure(lab, problem)
    result = Recommendation(minutes=minutes, seconds=lab.spent(), evidence=evidence, advice=advise(evidence))
    _files.write_json(folder / FILE, result)
    return result


def _check_schedule(options: Options) -> None:
    """Refuses a schedule without its length, and a length without a schedule.

    Raises:
      UsageError: one of the two is missing.
    """
    name, epochs = options.get("schedule"), options.get("epochs")
    decays = name is not None and not SCHEDULES[str(name)].is_constant
    if decays and epochs is None:
        raise UsageError(
            f"--schedule={name} decays over the length of a run; give --epochs too, such as --epochs=10: all runs to "
            "the target then have this length, whatever their batch size"
        )
    if epochs is not None and not decays:
        others = ", ".join(schedule.name for schedule in SCHEDULES if not schedule.is_constant)
        raise UsageError(
            f"--epochs={epochs} is the length over which a rate decays, and changes nothing at a constant one; give a "
            f"--schedule too ({others}), or leave it out. The time is limited by --budget_minutes"
        )
