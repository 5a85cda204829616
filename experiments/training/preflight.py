"""What a run will be, worked out and printed before anything is compiled; and what is refused there."""

from typing import NamedTuple

from experiments._errors import UsageError
from experiments.training.config import REFERENCE_BATCH_SIZE, TrainConfig

# Above this peak rate at the reference batch size Nesterov's momentum seldom converges without tuning.
UNUSUAL_BASE_RATE = 1.0


class Plan(NamedTuple):
    """The sizes of a run.

    Attributes:
      steps_per_epoch: updates in one pass over the data.
      total_steps: updates in all.
      warmup_steps: updates of warmup among them.
      dropped: examples that an epoch leaves out.
      masked: whether the last batch of an epoch is padded.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    dropped: int
    masked: bool


def plan(config: TrainConfig, examples: int) -> Plan:
    """Works out the sizes of a run.

    Args:
      config: of the run.
      examples: in the training set.

    Raises:
      UsageError: the batch is larger than the training set.
    """
    if config.batch_size > examples:
        raise UsageError(
            f"--batch_size={config.batch_size} is larger than the training set of {examples} examples; "
            f"the largest that works is {examples}"
        )
    full, rest = divmod(examples, config.batch_size)
    dropped = rest if config.drop_remainder else 0
    steps_per_epoch = full + (rest > 0 and not config.drop_remainder)
    total_steps = config.steps or config.epochs * steps_per_epoch
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    return Plan(steps_per_epoch, total_steps, warmup_steps, dropped, rest > 0 and not config.drop_remainder)


def describe(config: TrainConfig, plan: Plan, examples: int, devices: int, platform: str) -> list[str]:
    """The lines to print before a run, and warnings among them."""
    per_device = config.batch_size // devices
    rate = config.peak_learning_rate
    lines = [
        f"data      {config.dataset}: {examples:,} training examples",
        f"batch     global {config.batch_size} = {devices} {platform} device{'s' * (devices > 1)} x {per_device} "
        "per device x 1 accumulation",
        f"updates   {plan.total_steps:,} = {plan.total_steps / plan.steps_per_epoch:g} epochs x "
        f"{plan.steps_per_epoch:,}; "
        f"{plan.dropped:,} examples ({plan.dropped / examples:.1%}) left out of each epoch",
        f"rate      {config.optimizer}, peak {rate:g} after {plan.warmup_steps} updates of warmup, "
        f"then {config.schedule}",
        f"norm      {config.norm}"
        + (f", statistics over {_pooled(config, per_device)}" if config.norm != "none" else ""),
    ]
    per_reference = rate * REFERENCE_BATCH_SIZE / config.batch_size
    if per_reference > UNUSUAL_BASE_RATE:
        lines.append(
            f"warning   the peak rate is {per_reference:g} per {REFERENCE_BATCH_SIZE} examples, far above the usual 0.1"
        )
    if config.norm == "local" and per_device < 4:
        lines.append(f"warning   local statistics of {per_device} examples are noisy; --norm=batch pools all of them")
    return lines


def _pooled(config: TrainConfig, per_device: int) -> str:
    return (
        f"the {config.batch_size} examples of all devices" if config.norm == "batch" else f"each device's {per_device}"
    )
