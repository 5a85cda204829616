"""Makes a whole recommendation: checks the request, measures, chooses a setting and writes the result."""

import math
from pathlib import Path
from typing import Any, cast

from ... import _files, _workdirs
from ..._errors import UsageError
from ...records.fields import Options
from ...records.recommendation import Recommendation
from ...training.config.options import TrainConfig
from ..jobs import Job, Runner
from ..settings import with_held_out
from .advice import advise
from .lab import Lab, Problem, count_devices
from .measure import TINY_RATE, measure
from .runs import constant_options

# The file of the result, beside `results.jsonl`, which holds the runs.
FILE = "recommendation.json"


def recommend(
    options: Options, *, target: float | None, minutes: float, folder: Path, optimizer: str = "nesterov"
) -> Recommendation:
    """Measures what the budget allows, and recommends the batch size that follows.

    Rows in the folder are reused and cost nothing, so that the same call resumes a recommendation that was stopped.

    Args:
      options: the options of `TrainConfig` that all runs share: data set, model and others.
      target: the accuracy to reach; None: there is no target.
      minutes: the time limit for all measurements, without the loading of the data.
      folder: the folder for the rows and the result.
      optimizer: the optimizer of all runs.

    Returns:
      The measurements and the advice, which are also written to `recommendation.json` in the folder.

    Raises:
      UsageError: the budget, the target or an option is out of range, or the data set is too small.
    """
    if not 0 < minutes < math.inf:
        raise UsageError(f"--budget_minutes must be positive and finite, such as 10, not {minutes:g}")
    if target is not None and not 0 < target <= 1:
        raise UsageError(f"--target_accuracy is a share of 1, such as 0.98, not {target:g}")
    # Making the configuration refuses invalid options before any run is started.
    config = TrainConfig(**cast("Any", options), optimizer=optimizer)
    _workdirs.claim(folder, _workdirs.RECOMMENDATION)
    data = with_held_out(options)
    with Runner(folder) as runner:
        lab = Lab(runner, 60 * minutes)
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
