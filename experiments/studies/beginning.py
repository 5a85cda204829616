"""Whether a run can begin: everything that training does before it compiles, in the process that trains."""

from pathlib import Path
from typing import Any

from experiments.training import loop
from experiments.training.config import TrainConfig
from experiments.training.run import prepare


def begins(folder: Path, options: dict[str, Any]) -> str:
    """Prepares a run as training does, and writes nothing.

    Args:
      folder: that the run would have.
      options: of `TrainConfig`.

    Returns:
      The platform of its devices.

    Raises:
      UsageError: devices, data or model cannot be had or used; what training would say.
    """
    config = loop.resolve(TrainConfig(**options, workdir=str(folder)))
    chosen, dataset, statistics = loop.start(config)
    prepare(config, dataset, statistics, chosen)
    return chosen[0].platform
