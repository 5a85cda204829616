"""A recommendation from its question to its files."""

import math
from pathlib import Path
from typing import Any

from experiments import _files, _workdirs
from experiments._errors import UsageError
from experiments.studies.jobs import Job, Runner
from experiments.studies.recommending.advice import advise
from experiments.studies.recommending.lab import Lab, Problem, count_devices
from experiments.studies.recommending.measure import TINY_RATE, measure
from experiments.studies.recommending.target import constant_options
from experiments.studies.settings import with_held_out
from experiments.training.config.options import TrainConfig

# Beside `results.jsonl`, which has the runs.
FILE = "recommendation.json"


def recommend(
    options: dict[str, Any], *, target: float | None, minutes: float, folder: Path, optimizer: str = "nesterov"
) -> dict[str, Any]:
    """Measures what the budget allows, and says which batch size follows.

    Rows that the folder holds already are used and cost nothing, so that a recommendation that was stopped goes on.

    Args:
      options: of `TrainConfig`: data set, model and what else is the same for all runs.
      target: accuracy to reach; None: none is given.
      minutes: that all of it may take, but for the loading of the data.
      folder: for rows and result.
      optimizer: of all runs.

    Returns:
      `evidence` from `measure`, `advice` from `advise` or None, the `minutes` allowed and the `seconds` spent here;
      the same as in `recommendation.json` in the folder, where what is not finite is null.

    Raises:
      UsageError: the budget, the target or an option is out of range, or the data set is too small.
    """
    if not 0 < minutes < math.inf:
        raise UsageError(f"--budget_minutes must be positive and finite, such as 10, not {minutes:g}")
    if target is not None and not 0 < target <= 1:
        raise UsageError(f"--target_accuracy is a share of 1, such as 0.98, not {target:g}")
    # Refuses what no run takes, before one is started.
    TrainConfig(**options, optimizer=optimizer)
    _workdirs.claim(folder, _workdirs.RECOMMENDATION)
    data = with_held_out(options)
    with Runner(folder) as runner:
        lab = Lab(runner, 60 * minutes)
        devices = runner.ask(count_devices, options.get("num_devices"))
        # Of all that are there a run may take some.
        problem = Problem(data, target, options.get("num_devices") or devices["count"], optimizer)
        if problem.unit > data.examples:
            span = options.get("span")
            by, loosen = (f" and --span={span}", "--span") if span else ("", "--num_devices")
            raise UsageError(
                f"{problem.devices} devices{by} need batches of {problem.unit:,} examples, and {data.examples:,} are "
                f"there to train on; take a smaller {loosen}"
            )
        runner.try_out([Job("first", {**constant_options(problem, problem.unit, TINY_RATE), "steps": 1})])
        evidence = {**measure(lab, problem), "kind": devices["kind"]}
    result = {"minutes": minutes, "seconds": lab.spent(), "evidence": evidence, "advice": advise(evidence)}
    _files.write_json(folder / FILE, finite(result))
    return result


def finite(value: Any) -> Any:
    """The same with None for what is not finite, which JSON has no way to write."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
