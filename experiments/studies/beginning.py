"""Whether a run can begin: everything that training does before it compiles, in the process that trains."""

from pathlib import Path
from typing import Any

from experiments import data as datasets
from experiments.training import evaluation, loop
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
    chosen = loop.set_up_devices(config)
    dataset = datasets.load(
        config.dataset, config.data_dir, image_size=config.image_size, validation_examples=config.validation_examples
    )
    prepare(config, dataset, evaluation.pixel_statistics(dataset.train), chosen)
    return chosen[0].platform
