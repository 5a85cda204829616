"""Checks that a run can begin: everything that training does before it compiles, in the process that trains."""

from pathlib import Path
from typing import Any

from ..training import session
from ..training.clock import Clock
from ..training.config.options import TrainConfig


def begins(folder: Path, options: dict[str, Any]) -> str:
    """Prepares a run as training does, and writes nothing.

    Args:
      folder: the folder that the run would have.
      options: the options of `TrainConfig`.

    Returns:
      The platform of its devices.

    Raises:
      UsageError: devices, data, model or problem cannot be had or used; what training would say.
    """
    config = session.resolve(TrainConfig(**options, workdir=str(folder)))
    return session.prepare(config, Clock()).devices[0].platform
