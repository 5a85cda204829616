"""Everything that decides what a training run does, in one value; its defaults are the flags' defaults."""

import dataclasses
import hashlib
import json
from typing import Any

from experiments._errors import UsageError, unknown_name

# Of these a run's numbers do not depend, to rounding, so that it may go on in another place or on other devices.
PLACES = ("workdir", "data_dir", "num_devices", "checkpoint_every")
REFERENCE_BATCH_SIZE = 256
REFERENCE_NORM_MOMENTUM = 0.9


def _option(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run.

    `FIELD.metadata["help"]` documents each field; entry points make a flag of it.

    Raises:
      UsageError: a value is out of range.

    Example:
      >>> TrainConfig(batch_size=512).peak_learning_rate
      0.1
    """

    dataset: str = _option(
        "digits", "Data set: 'digits' (no network needed), or any prepared TFDS name such as 'mnist'."
    )
    data_dir: str | None = _option(None, "TFDS data directory. Default: TFDS's own.")
    model: str = _option("simple_cnn", "Model to train.")
    norm: str = _option(
        "batch", "Normalization: 'batch' (statistics over the global batch), 'local' (each device's own), 'none'."
    )
    batch_size: int = _option(64, "Global batch size: devices x examples per device.")
    epochs: int = _option(20, "Passes over the training set.")
    steps: int | None = _option(None, "Updates in all, in place of --epochs; the schedule ends there.")
    optimizer: str = _option("nesterov", "Optimizer: 'sgd', 'nesterov' or 'lars'.")
    base_learning_rate: float = _option(0.05, f"Peak learning rate at a batch of {REFERENCE_BATCH_SIZE}.")
    lr_scaling: str = _option("linear", "How the peak rate follows the batch size: 'linear', 'sqrt' or 'none'.")
    learning_rate: float | None = _option(None, "Peak learning rate as it is, in place of the two flags above.")
    schedule: str = _option("cosine", "Decay after warmup: 'constant', 'cosine' or 'polynomial' (power 2).")
    warmup_epochs: float = _option(2.0, "Epochs over which the rate rises linearly to its peak.")
    momentum: float = _option(0.9, "Momentum of the optimizer.")
    weight_decay: float = _option(2e-3, "L2 penalty on kernels; never on norm parameters or biases.")
    label_smoothing: float = _option(0.1, "Share of the target spread over all classes.")
    norm_momentum: float | None = _option(
        None, "Running statistics: running = m running + (1 - m) batch. Default: 0.9 to the power of batch_size / 256."
    )
    drop_remainder: bool = _option(
        True, "Leave out the last, smaller batch of an epoch; else pad it and mask the padding."
    )
    seed: int = _option(0, "Seed of the initial parameters and of the order of the examples.")
    num_devices: int | None = _option(
        None, "Devices to use. Default: all accelerators, or on a CPU one a core that divides the batch."
    )
    workdir: str | None = _option(None, "Folder for results. Default: one under runs/, named after the configuration.")
    log_every: int = _option(1, "Updates between two rows of metrics.")
    checkpoint_every: int = _option(0, "Updates between two checkpoints. 0: one at the end of every epoch.")

    def __post_init__(self):
        """Refuses what cannot be, before anything is loaded or compiled."""
        for name, minimum in (("batch_size", 1), ("epochs", 1), ("log_every", 1), ("checkpoint_every", 0), ("seed", 0)):
            if getattr(self, name) < minimum:
                raise UsageError(f"--{name} must be at least {minimum}, not {getattr(self, name)}")
        for name in ("steps", "num_devices"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1, not {getattr(self, name)}")
        for name in ("base_learning_rate", "learning_rate", "weight_decay", "warmup_epochs"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"--{name} must be finite and not negative, not {getattr(self, name)}")
        for name in ("momentum", "norm_momentum", "label_smoothing"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 0 and less than 1, not {getattr(self, name)}")
        if self.lr_scaling not in LR_SCALINGS:
            raise unknown_name("lr_scaling", self.lr_scaling, LR_SCALINGS)

    @property
    def peak_learning_rate(self) -> float:
        """The rate at the end of warmup."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.base_learning_rate * LR_SCALINGS[self.lr_scaling](self.batch_size / REFERENCE_BATCH_SIZE)

    @property
    def running_momentum(self) -> float:
        """The momentum of the norms' running statistics.

        By default they average over as many examples at any batch size, some 2,500. At a batch of 8192 that is
        the last batch, which is plenty; an average over ten updates lags behind weights that move as fast as they do
        there, and accuracies in the middle of a run come out near chance.

        Source: the scaling rule of Busbridge et al., "How to Scale Your EMA", arXiv 2307.13813, 2023.
        """
        if self.norm_momentum is not None:
            return self.norm_momentum
        return REFERENCE_NORM_MOMENTUM ** (self.batch_size / REFERENCE_BATCH_SIZE)

    def identity(self) -> dict[str, Any]:
        """The fields on which a run's numbers depend. Local statistics depend on the number of devices as well."""
        places = set(PLACES) - ({"num_devices"} if self.norm == "local" else set())
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in places}

    def default_workdir(self) -> str:
        """A folder that the same command finds again, and another configuration does not."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        return f"runs/{self.dataset.replace(':', '_')}-{self.model}-b{self.batch_size}-{digest}"


# Goyal et al. 2017 (linear); Krizhevsky 2014 and You et al. 2019 (square root).
LR_SCALINGS = {"linear": lambda ratio: ratio, "sqrt": lambda ratio: ratio**0.5, "none": lambda ratio: 1.0}
