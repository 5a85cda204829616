"""Checks that a run can begin: everything that training does before it compiles, in the process that trains."""

from pathlib import Path
from typing import Any

from ..training import session
from ..training.config.options import TrainConfig
from ..training.step.run import prepare


def begins(folder: Path, options: dict[str, Any]) -> str:
    """Prepares a run as training does, and writes nothing.

    Args:
      folder: the folder that the run would have.
      options: the options of `TrainConfig`.

    Returns:
      The platform of its devices.

    Raises:
      UsageError: devices, data or model cannot be had or used; what training would say.
    """
    config = session.resolve(TrainConfig(**options, workdir=str(folder)))
    chosen, dataset, statistics = session.start(config)
    prepare(config, dataset, statistics, chosen)
    return chosen[0].platform
