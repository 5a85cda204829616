"""The sizes of a run, derived from its configuration and checked before anything is compiled."""

import math
from typing import NamedTuple

from ... import _limits
from ..._errors import UsageError
from ..machine.devices import nearest_multiples
from ..recipe import schedules
from ..recipe.optimizers import OPTIMIZERS
from .options import AUTO, TrainConfig

# Growth factor of the batch in an automatic ramp.
RAMP_FACTOR = 2
# Fewest updates of an epoch to which an automatic ramp may lead.
MIN_UPDATES_PER_EPOCH = 8
# A warmup that would be as long as the run is shortened to the run over this: by default 2 of 20 epochs.
SHORTENED_WARMUP_DIVISOR = 10


class Phase(NamedTuple):
    """Epochs with one batch size.

    Attributes:
      first_epoch: number of the first epoch, from 0.
      first_step: updates before the first epoch.
      batch_size: global batch size.
      steps_per_epoch: updates in one pass over the training set.
    """

    first_epoch: int
    first_step: int
    batch_size: int
    steps_per_epoch: int


class Position(NamedTuple):
    """The phase and the epoch of a step.

    Attributes:
      phase: the epochs with one batch size in which the step lies.
      epoch: number of the epoch, from 0.
      first_step: updates before this epoch.
      last_step: updates at the end of this epoch, or at the end of training if that is earlier.
    """

    phase: Phase
    epoch: int
    first_step: int
    last_step: int


class Length(NamedTuple):
    """Options of a run that decide, with the batch size, how many updates it makes.

    Attributes:
      epochs: passes over the training set.
      steps: updates in place of epochs; None: the epochs count.
      drop_remainder: the examples after the last full batch of an epoch are left out.
      backwards_per_forward: updates per forward pass.
    """

    epochs: int
    steps: int | None
    drop_remainder: bool
    backwards_per_forward: int

    def steps_per_epoch(self, batch_size: int, examples: int) -> int:
        """Returns the updates of one pass over the training set."""
        full, rest = divmod(examples, batch_size)
        return (full + (rest > 0 and not self.drop_remainder)) * self.backwards_per_forward

    def total_steps(self, last: Phase) -> int:
        """Returns the updates of a run whose last phase is given.

        Raises:
          UsageError: there are more than are counted.
        """
        total = self.steps or last.first_step + (self.epochs - last.first_epoch) * last.steps_per_epoch
        if total > _limits.MAX_WHOLE:
            raise UsageError(
                f"--epochs={self.epochs} are {total:,} updates, and they are counted up to {_limits.MAX_WHOLE:,}; "
                "train for fewer"
            )
        return total


class Plan(NamedTuple):
    """The sizes of a run.

    Attributes:
      examples: the number of training examples.
      phases: one phase, or several with a batch ramp; with an automatic ramp those that are known so far.
      total_steps: total number of updates; with an automatic ramp, if the batch grows no further.
      warmup_steps: updates of the warmup; a tenth of the run if the warmup asked for is as long as the run.
      boundaries: steps of the step schedule: the factor of the rate by the updates before it.
      cycle_steps: updates per cycle of the cyclic schedule.
      dropped: examples per epoch that the first phase leaves out.
      largest: the largest batch size of an automatic ramp; None: there is no automatic ramp.
      peak_learning_rate: the learning rate at the end of the warmup.
      wanted_warmup: the updates of warmup that were asked for, however long the run is.
      length: the options by which `grow` counts the updates of another batch size.
    """

    examples: int
    phases: tuple[Phase, ...]
    total_steps: int
    warmup_steps: int
    boundaries: dict[int, float]
    cycle_steps: float
    dropped: int
    largest: int | None
    peak_learning_rate: float
    wanted_warmup: int
    length: Length

    @property
    def epochs(self) -> float:
        """Total number of passes over the training set, dropped examples counted as read."""
        return self.epochs_at(self.total_steps)

    @property
    def batch_size(self) -> int:
        """The batch size of the last phase."""
        return self.phases[-1].batch_size

    def locate(self, step: int) -> Position:
        """Returns the position of the update that follows `step` updates."""
        phase = next(p for p in reversed(self.phases) if p.first_step <= step)
        epochs = (step - phase.first_step) // phase.steps_per_epoch
        first = phase.first_step + epochs * phase.steps_per_epoch
        last = min(first + phase.steps_per_epoch, self.total_steps)
        return Position(phase, phase.first_epoch + epochs, first, last)

    def examples_of(self, size: int, masked: bool) -> int:
        """Returns the number of examples in a batch padded to `size`, which depends on the number of devices."""
        if not masked:
            return size
        rests = (self.examples % phase.batch_size for phase in self.phases)
        return max((rest for rest in rests if rest <= size), default=size)

    def epochs_at(self, step: int) -> float:
        """Returns the number of passes over the training set after `step` updates."""
        phase = next(p for p in reversed(self.phases) if p.first_step <= step)
        return phase.first_epoch + (step - phase.first_step) / phase.steps_per_epoch


def grow(plan: Plan, epoch: int) -> Plan:
    """Returns the plan with `RAMP_FACTOR` times the batch from the start of an epoch of its last phase on."""
    last = plan.phases[-1]
    size = RAMP_FACTOR * last.batch_size
    first_step = last.first_step + (epoch - last.first_epoch) * last.steps_per_epoch
    phase = Phase(epoch, first_step, size, plan.length.steps_per_epoch(size, plan.examples))
    return plan._replace(phases=(*plan.phases, phase), total_steps=plan.length.total_steps(phase))


def make(config: TrainConfig, examples: int, devices: int) -> Plan:
    """Derives the sizes of a run from its configuration.

    Args:
      config: the configuration of the run.
      examples: the number of training examples.
      devices: the number of devices of all processes.

    Raises:
      UsageError: a batch is larger than the training set, or devices, micro-batches or spans do not divide it.
    """
    _check_batch(config, config.batch_size, examples, devices)
    k = config.backwards_per_forward
    length = Length(config.epochs, config.steps, config.drop_remainder, k)
    per_epoch = length.steps_per_epoch(config.batch_size, examples)
    if config.steps is not None and config.steps % k:
        raise UsageError(
            f"--steps={config.steps} counts updates and is not a multiple of --backwards_per_forward={k}; the nearest "
            f"that work: {nearest_multiples(config.steps, k)}"
        )
    epochs = config.epochs if config.steps is None else config.steps / per_epoch
    milestones = schedules.parse_epochs(config.step_epochs) or tuple(f * epochs for f in schedules.STEP_FRACTIONS)
    phases = (Phase(0, 0, config.batch_size, per_epoch),)
    boundaries: dict[int, float] = {}
    if schedules.SCHEDULES[config.schedule].has_milestones:
        # Milestones beyond the end change nothing. With --steps, the end is not known in epochs.
        within = [m for m in milestones if config.steps is not None or m < epochs]
        phases, boundaries = _staircase(config, length, phases[0], within, examples, devices)
    total = length.total_steps(phases[-1])
    phases = tuple(p for p in phases if p.first_step < total)
    boundaries = {step: scale for step, scale in boundaries.items() if step < total}
    wanted_warmup = _wanted_warmup(config, per_epoch)
    # A tenth of the run where it would end before the warmup does.
    warmup = wanted_warmup if wanted_warmup < total else total // SHORTENED_WARMUP_DIVISOR
    changes = sorted([*boundaries, *(p.first_step for p in phases[1:])])
    # With --step_epochs, the changes must come after the warmup that was asked for, even if a short run shortens it.
    until = wanted_warmup if config.step_epochs else warmup
    if changes and changes[0] < until:
        raise UsageError(
            f"--schedule={config.schedule} makes its first change after {changes[0]} updates, inside the warmup of "
            f"{until}; give a shorter --warmup_epochs or later --step_epochs"
        )
    full = examples // config.batch_size * config.batch_size
    dropped = examples - full if config.drop_remainder else 0
    largest = _largest_of_ramp(config, examples, devices) if config.batch_ramp == AUTO else None
    return Plan(
        examples=examples,
        phases=phases,
        total_steps=total,
        warmup_steps=warmup,
        boundaries=boundaries,
        cycle_steps=config.cycle_epochs * per_epoch,
        dropped=dropped,
        largest=largest,
        peak_learning_rate=config.peak_learning_rate,
        wanted_warmup=wanted_warmup,
        length=length,
    )


def _wanted_warmup(config: TrainConfig, steps_per_epoch: int) -> int:
    return 0 if OPTIMIZERS[config.optimizer].full_batch else round(config.warmup_epochs * steps_per_epoch)


def _largest_of_ramp(config: TrainConfig, examples: int, devices: int) -> int:
    """Returns the largest batch of an automatic ramp: an epoch keeps some updates, and spans fit the devices."""
    size = config.batch_size
    while RAMP_FACTOR * size * MIN_UPDATES_PER_EPOCH <= examples and (
        config.span is None or config.span in spans(RAMP_FACTOR * size // config.accumulation_steps, devices)
    ):
        size *= RAMP_FACTOR
    if size == config.batch_size:
        raise UsageError(
            f"--batch_ramp=auto keeps at least {MIN_UPDATES_PER_EPOCH} updates per epoch"
            + ("" if config.span is None else f" and whole spans of {config.span}")
            + f", and {RAMP_FACTOR * size} of {examples} examples is too large a batch for that; start from a smaller "
            f"--batch_size than {size}"
        )
    return size


def _staircase(config: TrainConfig, length: Length, phase: Phase, milestones, examples: int, devices: int):
    """Returns phases and boundaries of a step schedule: at each milestone the batch grows, or the rate falls."""
    phases, boundaries = [phase], {}
    for milestone in milestones:
        if not isinstance(config.batch_ramp, int):
            step = round(milestone * phase.steps_per_epoch)
            boundaries[step] = boundaries.get(step, 1.0) / config.step_factor
            continue
        # The batch changes between epochs, so that every epoch reads every example once.
        epoch = max(round(milestone), phase.first_epoch + 1)
        if config.steps is None and epoch >= config.epochs:
            break
        first_step = phase.first_step + (epoch - phase.first_epoch) * phase.steps_per_epoch
        batch_size = min(round(phase.batch_size * config.step_factor), config.batch_ramp)
        _check_batch(config, batch_size, examples, devices)
        left = config.step_factor / (batch_size / phase.batch_size)
        if not math.isclose(left, 1.0):
            boundaries[first_step] = 1 / left
        phase = Phase(epoch, first_step, batch_size, length.steps_per_epoch(batch_size, examples))
        phases.append(phase)
    return tuple(phases), boundaries


def _check_batch(config: TrainConfig, batch_size: int, examples: int, devices: int) -> None:
    parts = devices * config.accumulation_steps
    flag = _flag_of(config, batch_size)
    if batch_size > examples:
        raise UsageError(
            f"--{flag}={batch_size} is larger than the training set of {examples} examples; "
            f"the largest that works is {examples // parts * parts}"
        )
    check_divisible(config, batch_size, devices)
    if OPTIMIZERS[config.optimizer].full_batch and batch_size != examples:
        raise UsageError(
            f"--optimizer={config.optimizer} takes the whole training set at once: --batch_size={examples}, not "
            f"{batch_size}; --accumulation_steps keeps the memory of it small"
        )
    if config.span is not None:
        _check_span(config, batch_size, devices)


def _flag_of(config: TrainConfig, batch_size: int) -> str:
    """Returns the flag from which a batch size comes."""
    return "batch_size" if batch_size == config.batch_size else "batch_ramp"


def check_divisible(
    config: TrainConfig, batch_size: int, devices: int, processes: int = 1, *, all_devices: bool = False
) -> None:
    """Checks that each device of each micro-batch gets as many examples as any other.

    Args:
      config: the configuration of the run.
      batch_size: the global batch size of any phase.
      devices: the number of devices of all processes.
      processes: the number of processes.
      all_devices: whether a run on fewer devices is no choice, so that the message names none.

    Raises:
      UsageError: the batch is not divisible; the message names batch sizes, and a number of devices, that work.
    """
    micro = config.accumulation_steps
    if batch_size % (devices * micro) == 0:
        return
    flag = _flag_of(config, batch_size)
    batch = f"--{flag}={batch_size}" if flag == "batch_size" else f"--{flag}: a batch of {batch_size}"
    among = f"{devices} devices" + (f" ({processes} processes x {devices // processes})" if processes > 1 else "")
    if micro > 1:
        among += f" x {micro} --accumulation_steps"
    share = math.gcd(batch_size // micro, devices) // processes
    works = not all_devices and share and batch_size % (share * processes * micro) == 0
    raise UsageError(
        f"{batch} is not divisible by {among}; the nearest sizes that work: "
        f"{nearest_multiples(batch_size, devices * micro)}." + (f" Or give --num_devices={share}." if works else "")
    )


def _check_span(config: TrainConfig, batch_size: int, devices: int) -> None:
    micro = batch_size // config.accumulation_steps
    work = spans(micro, devices)
    if config.span not in work:
        what = f"{micro} examples ({devices} devices x {micro // devices})"
        raise UsageError(
            f"--span={config.span} does not divide the {what} of a forward pass; spans that work here: "
            f"{', '.join(map(str, work))}"
        )
    if not config.drop_remainder:
        raise UsageError(f"--span={config.span} takes --drop_remainder: a smaller batch has no whole number of spans")


def spans(examples: int, devices: int) -> list[int]:
    """Returns the spans into which a batch can be cut: parts of a device's share, or groups of whole shares.

    Example:
      >>> spans(16, 4)
      [1, 2, 4, 8, 16]
    """
    share = examples // devices
    return [n for n in range(1, examples + 1) if examples % n == 0 and (share % n == 0 or n % share == 0)]
