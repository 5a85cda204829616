"""The options of a training run; their defaults are the defaults of the flags."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from functools import partial
from typing import Any

from batchnorm_jax.batch_size import scale_decay, scale_learning_rate

from ... import _limits, models
from ... import data as datasets
from ..._errors import UsageError
from ...problems import loading
from ...records.fields import Options
from ...records.runs import OF_DATA_AND_MODEL
from ..recipe import augmentation, schedules
from ..recipe.augmentation import AUGMENTATIONS
from ..recipe.norms import NORMS
from ..recipe.optimizers import OPTIMIZERS
from ..recipe.schedules import SCHEDULES

# Options that do not change a run's numbers beyond rounding, so that a run may resume elsewhere or on other devices.
# (One exception: the memory of the devices limits an automatic ramp.)
PLACES = (
    "workdir",
    "data_dir",
    "input",
    "num_devices",
    "checkpoint_every",
    "live",
    "distributed",
    "coordinator_address",
    "num_processes",
    "process_id",
)
# Options that earlier versions did not have: at their defaults they are no part of the name of a run.
LATER = ("problem", "target_loss", "past_target", "evaluate_growth", "critical_share", "b2", "average_weights")
REFERENCE_BATCH_SIZE = 256
REFERENCE_NORM_MOMENTUM = 0.9
REFERENCE_B2 = 0.999
DTYPES = ("float32", "bfloat16")
INPUTS = ("auto", "resident", "streamed")
AUTO = "auto"
# JAX's keys hold 32 bits of a seed: two seeds that differ in higher bits alone would give the same parameters.
LARGEST_SEED = 2**32 - 1
# More devices than one process has on any machine.
MAX_DEVICES = 1024
# The rate at another batch size, from (rate, batch size, new batch size).
LR_SCALINGS = {
    "linear": partial(scale_learning_rate, rule="linear"),
    "sqrt": partial(scale_learning_rate, rule="sqrt"),
    "none": lambda rate, *_: rate,
}


def refuse_beside_problem(given: Iterable[str], problem: str) -> None:
    """Refuses options that change nothing for a problem.

    Args:
      given: the names of the options that were given.
      problem: the name of the problem.

    Raises:
      UsageError: one of them is of data, model or optimizer.
    """
    for name in given:
        if name in OF_DATA_AND_MODEL:
            raise UsageError(
                f"--{name} changes nothing with --problem={problem}, which brings its own data, model and optimizer; "
                "leave one of the two out"
            )


def _option(default: Any, help: str, **limits: Any) -> Any:
    """Returns a field with its help text and its limits, as `_limits.check` takes them."""
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run.

    `FIELD.metadata["help"]` documents each field; entry points make a flag of it.

    Raises:
      UsageError: an option is out of range, or two options exclude each other.

    Example:
      >>> TrainConfig(batch_size=512).peak_learning_rate
      0.1
    """

    dataset: str = _option(
        "digits",
        f"Data set: {datasets.DATASETS.choices}, any prepared TFDS name such as 'mnist', or a function of your own, "
        "'package.module:function'.",
        form=_limits.dataset,
    )
    data_dir: str | None = _option(None, "TFDS data directory. Default: TFDS's own.", form=_limits.folder)
    image_size: int | None = _option(
        None, "Crop and resize the images of a TFDS data set to this size as they are read.", least=1, most=8192
    )
    input: str = _option(
        "auto",
        "Where training reads from: 'resident' (all on the device), 'streamed', or whichever fits.",
        among=INPUTS,
    )
    validation_examples: int = _option(
        0, "Training examples to hold out and evaluate on in place of the test splits, for choosing a recipe.", least=0
    )
    augmentation: str = _option(
        augmentation.NONE.name,
        f"Random changes to training images, made on the device: {AUGMENTATIONS.choices}.",
        among=AUGMENTATIONS.names,
    )
    drop_remainder: bool = _option(
        True, "Leave out an epoch's examples after its last full batch; else they make a smaller one."
    )
    model: str = _option(
        "simple_cnn",
        f"Model to train: {models.MODELS.choices}, or a factory of your own, 'package.module:factory'.",
        form=models.check_name,
    )
    zero_last_scale: bool = _option(True, "Start residual blocks as the identity, in models that have them.")
    dtype: str = _option("float32", "Compute dtype: 'float32' or 'bfloat16'.", among=DTYPES)
    norm: str = _option("batch", f"Normalization: {NORMS.choices}.", among=NORMS.names)
    span: int | None = _option(
        None, "Examples normalised together. Default: all of a batch, or of a micro-batch with accumulation.", least=1
    )
    norm_momentum: float | None = _option(
        None,
        "Momentum m of the running statistics: running = m running + (1 - m) batch, with a lower m in the first "
        "updates, so that the initial values drop out. Default: 0.9 to the power of batch_size / 256.",
        least=0,
        below=1,
    )
    problem: str | None = _option(
        None,
        "Training program of your own, in place of data set, model and optimizer: 'package.module:function', which "
        "returns its five functions.",
        form=loading.check_name,
    )
    batch_size: int = _option(64, "Global batch size: devices x examples per device x accumulation steps.", least=1)
    accumulation_steps: int = _option(1, "Micro-batches whose gradients are added up for one update.", least=1)
    backwards_per_forward: int = _option(
        1, "Split the losses of one forward pass into this many groups, with a backward pass and update each.", least=1
    )
    batch_ramp: int | str | None = _option(
        None,
        "Multiply the batch, up to this size, where --schedule=step would divide the rate; the rest of the factor "
        "divides the rate. 'auto', with --schedule=constant: double the batch at the end of an epoch, as soon as "
        "--critical_share of the running gradient noise scale is above twice the batch.",
        least=1,
        among=(AUTO,),
    )
    critical_share: float = _option(
        1.0,
        "The critical batch size as a share of the gradient noise scale, for --batch_ramp=auto and --live; "
        "experiments.branch and experiments.recommend measure it.",
        above=0,
        most=100,
    )
    epochs: int = _option(20, "Passes over the training set.", least=1, most=10**9)
    steps: int | None = _option(
        None, "Total number of updates, in place of --epochs; the schedule ends there.", least=1
    )
    target_accuracy: float | None = _option(
        None,
        "Stop at the first evaluation where the first split evaluated reaches this, such as 0.98.",
        above=0,
        most=1,
        says="is a share of 1, such as 0.98",
    )
    target_loss: float | None = _option(
        None, "Stop at the first evaluation where the loss of the first split evaluated is at most this, such as 0.1."
    )
    past_target: float = _option(
        0.0,
        "Train on past the target by this share of the updates that it took, to tell it from a lucky evaluation: what "
        "counts is where the evaluations, smoothed, reach it.",
        least=0,
        most=10,
    )
    optimizer: str = _option("nesterov", f"Optimizer: {OPTIMIZERS.choices}.", among=OPTIMIZERS.names)
    base_learning_rate: float | None = _option(
        None, f"Peak learning rate at a batch of {REFERENCE_BATCH_SIZE}. Default: by optimizer.", least=0
    )
    lr_scaling: str | None = _option(
        None,
        "How the peak rate scales with the batch size: 'linear', 'sqrt' or 'none'. Default: by optimizer.",
        among=tuple(LR_SCALINGS),
    )
    learning_rate: float | None = _option(
        None, "Peak learning rate, in place of --base_learning_rate and --lr_scaling.", least=0
    )
    schedule: str = _option("cosine", f"Decay after warmup: {SCHEDULES.choices}.", among=SCHEDULES.names)
    warmup_epochs: float = _option(
        2.0, "Epochs over which the rate rises linearly to its peak.", least=0, most=schedules.MAX_EPOCHS
    )
    step_epochs: str | None = _option(
        None,
        "Epochs at which --schedule=step divides the rate, such as '30,60,80'. Default: 1/3, 2/3 and 8/9 of all.",
        form=lambda _, text: schedules.parse_epochs(text),
    )
    step_factor: float = _option(10.0, "Factor by which --schedule=step divides the rate.", least=1, most=1e9)
    cycle_epochs: float = _option(
        4.0, "Length of a cycle of --schedule=cyclic, in epochs.", least=0, most=schedules.MAX_EPOCHS
    )
    momentum: float = _option(0.9, "Momentum of the optimizer; Adam's b1.", least=0, below=1)
    b2: float | str = _option(
        REFERENCE_B2,
        f"Decay of the second moment of optimizers with Adam's. '{AUTO}': {REFERENCE_B2} at a batch of "
        f"{REFERENCE_BATCH_SIZE}, over the same number of examples at any other that a run begins with, and at least "
        "--momentum.",
        least=0,
        below=1,
        among=(AUTO,),
    )
    average_weights: int | None = _option(
        None,
        "Evaluate an average of the weights, in which a weight counts half as much after so many examples, such as "
        "60000; the norms get statistics of training images for it. Default: the last weights.",
        least=1,
        most=10**12,
    )
    weight_decay: float = _option(2e-3, "Decay of kernels; never of norm parameters or biases.", least=0)
    decay_all: bool = _option(False, "Apply weight decay to norm parameters and biases too, as a naive recipe does.")
    label_smoothing: float = _option(0.1, "Share of the target spread over all classes.", least=0, below=1)
    seed: int = _option(
        0, "Seed of the initial parameters, the order of the examples and the augmentation.", least=0, most=LARGEST_SEED
    )
    num_devices: int | None = _option(
        None,
        "Devices of each process. Default: all accelerators; on a CPU, one per core as far as they divide the batch.",
        least=1,
        most=MAX_DEVICES,
    )
    distributed: bool = _option(
        False,
        "This is one of several processes, and JAX finds the others itself: SLURM, Open MPI, Kubernetes or Cloud TPU.",
    )
    coordinator_address: str | None = _option(
        None, "Host and port of process 0, if JAX does not find it itself.", form=_limits.address
    )
    num_processes: int | None = _option(
        None, "With --coordinator_address: the number of processes.", least=1, most=2**16
    )
    process_id: int | None = _option(None, "With --coordinator_address: the number of this process, from 0.", least=0)
    workdir: str | None = _option(
        None,
        "Folder for results. Default: one under runs/, named after the configuration.",
        form=_limits.folder,
        is_made=True,
    )
    log_every: int = _option(1, "Updates between two rows of metrics.", least=1)
    evaluate_every: int = _option(
        0,
        "Updates between two evaluations, beside those at the end of every epoch. 0: at the end of every epoch alone.",
        least=0,
    )
    evaluate_growth: float = _option(
        0.0,
        "With --evaluate_every, the share of the updates so far to which the distance between evaluations grows, such "
        "as 0.1; then no end of an epoch but the last is evaluated. 0: it does not grow.",
        least=0,
        most=1,
    )
    noise_every: int = _option(
        0, "Updates between two measurements of the gradient noise scale, written to metrics.jsonl. 0: none.", least=0
    )
    live: bool = _option(
        False, "Print, with every evaluation, the running gradient noise scale and what it implies for the batch size."
    )
    checkpoint_every: int = _option(0, "Updates between two checkpoints. 0: one at the end of every epoch.", least=0)

    def __post_init__(self):
        """Checks every option, before anything is loaded or compiled."""
        for field in dataclasses.fields(self):
            _limits.check(field.name, getattr(self, field.name), field.metadata)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.problem is not None:
            self._check_problem()
        if self.target_accuracy is not None and self.target_loss is not None:
            raise UsageError("--target_accuracy and --target_loss exclude each other; give one of them")
        if self.past_target and self.target_accuracy is None and self.target_loss is None:
            raise UsageError(f"--past_target={self.past_target:g} changes nothing without a target; give one")
        if self.evaluate_growth and not self.evaluate_every:
            raise UsageError(
                f"--evaluate_growth={self.evaluate_growth:g} lets the distance of --evaluate_every grow; give that too"
            )
        if self.evaluate_growth and self.batch_ramp == AUTO:
            raise UsageError(
                f"--batch_ramp={AUTO} decides at the end of every epoch, where --evaluate_growth does not stop; leave "
                "one of the two out"
            )
        if self.critical_share != 1 and not (self.live or self.batch_ramp == AUTO):
            raise UsageError(
                f"--critical_share={self.critical_share:g} is for --batch_ramp={AUTO} and --live, and changes nothing "
                "without them; give one of them, or leave it out"
            )
        k = self.backwards_per_forward
        if k > 1 and self.accumulation_steps > 1:
            raise UsageError(f"--backwards_per_forward={k} splits one forward pass; it takes --accumulation_steps=1")
        if self.batch_size % k:
            raise UsageError(f"--backwards_per_forward={k} does not divide --batch_size={self.batch_size}")
        if k > 1 and not self.drop_remainder:
            raise UsageError(f"--backwards_per_forward={k} takes --drop_remainder: each update has as many examples")
        if self.batch_ramp is not None:
            self._check_ramp(self.batch_ramp)
        if SCHEDULES[self.schedule].has_cycles and self.cycle_epochs == 0:
            raise UsageError("--cycle_epochs must be greater than 0")
        norm, full_batch = NORMS[self.norm], OPTIMIZERS[self.optimizer].full_batch
        if OPTIMIZERS[self.optimizer].averages:
            self._check_averages()
        if self.span is not None and not norm.takes_span:
            others = " or ".join(f"--norm={other.name}" for other in NORMS if other.takes_span)
            raise UsageError(f"--span groups the examples of {others}, not of --norm={self.norm}")
        if norm.corrects_by_running_statistics and (self.accumulation_steps > 1 or full_batch):
            others = " and ".join(other.name for other in OPTIMIZERS if other.full_batch)
            raise UsageError(
                f"--norm={self.norm} corrects a batch by the running statistics of the one before: it takes "
                f"--accumulation_steps=1, not {self.accumulation_steps}, and an optimizer other than {others}"
            )
        if full_batch:
            if self.average_weights is not None:
                raise UsageError(
                    f"--optimizer={self.optimizer} searches along each step for a lower loss of the last weights, "
                    f"which an average would undo; leave out --average_weights={self.average_weights}"
                )
            whole = {"backwards_per_forward": 1, "batch_ramp": None, "augmentation": augmentation.NONE.name}
            for name, value in whole.items():
                if getattr(self, name) != value:
                    raise UsageError(
                        f"--optimizer={self.optimizer} takes the whole training set as it is, with --{name}={value}, "
                        f"not {getattr(self, name)}"
                    )
            if self.input == "streamed":
                raise UsageError(
                    f"--optimizer={self.optimizer} keeps the whole training set on the device: not --input=streamed"
                )
        given = {"num_processes": self.num_processes, "process_id": self.process_id}
        missing = [name for name, value in given.items() if value is None]
        if self.coordinator_address is None and len(missing) < len(given):
            raise UsageError("--num_processes and --process_id come with --coordinator_address=HOST:PORT")
        if self.coordinator_address is not None and missing:
            raise UsageError(f"--coordinator_address comes with --{' and --'.join(missing)}")
        if self.num_processes is not None and self.process_id is not None and self.process_id >= self.num_processes:
            raise UsageError(
                f"--process_id must be less than --num_processes={self.num_processes}, and counts from 0, not "
                f"{self.process_id}"
            )

    def _check_problem(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        given = [name for name in OF_DATA_AND_MODEL if getattr(self, name) != defaults[name]]
        refuse_beside_problem(given, str(self.problem))

    def _check_averages(self) -> None:
        if not SCHEDULES[self.schedule].is_constant:
            raise UsageError(
                f"--optimizer={self.optimizer} averages its steps in place of a rate that falls, and does not take "
                f"--schedule={self.schedule}; give --schedule=constant, which may have a warmup"
            )
        if self.batch_ramp is not None:
            raise UsageError(
                f"--optimizer={self.optimizer} averages over updates, whatever their size, so that those of a larger "
                f"batch would hardly count; leave out --batch_ramp={self.batch_ramp}"
            )
        if self.average_weights is not None:
            raise UsageError(
                f"--optimizer={self.optimizer} averages its steps itself, and is evaluated there; leave out "
                f"--average_weights={self.average_weights}"
            )
        if not self.momentum:
            raise UsageError(
                f"--optimizer={self.optimizer} takes its gradients between its steps and their average, by --momentum, "
                f"which must be above 0, not {self.momentum:g}"
            )

    def _check_ramp(self, ramp: int | str) -> None:
        if isinstance(ramp, str) and not SCHEDULES[self.schedule].is_constant:
            raise UsageError(
                f"--batch_ramp={ramp} has the noise fall by a larger batch in place of a lower rate: it takes "
                f"--schedule=constant, not {self.schedule}"
            )
        if isinstance(ramp, int) and not SCHEDULES[self.schedule].has_milestones:
            raise UsageError(
                f"--batch_ramp={ramp} multiplies the batch in the places of --schedule=step, not {self.schedule}; "
                f"--batch_ramp={AUTO}, with --schedule=constant, finds places of its own"
            )
        if isinstance(ramp, int) and ramp < self.batch_size:
            raise UsageError(f"--batch_ramp={ramp} is below --batch_size={self.batch_size}, where it starts")
        if isinstance(ramp, str) and NORMS[self.norm].follows_run_length:
            raise UsageError(
                f"--norm={self.norm} widens its limits over all updates, whose number --batch_ramp={ramp} leaves open; "
                "take another --norm"
            )
        if self.backwards_per_forward > 1:
            raise UsageError("--batch_ramp takes --backwards_per_forward=1")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at the end of the warmup; it scales with the number of examples per update."""
        if self.learning_rate is not None:
            return self.learning_rate
        optimizer = OPTIMIZERS[self.optimizer]
        base = optimizer.base_rate if self.base_learning_rate is None else self.base_learning_rate
        scaling = self.lr_scaling or optimizer.scaling
        return LR_SCALINGS[scaling](base, REFERENCE_BATCH_SIZE, self.batch_size / self.backwards_per_forward)

    def running_momentum(self, batch_size: int | None = None) -> float:
        """Returns the momentum of the norms' running statistics at a batch size, by default the first of the run.

        By default the statistics average over the same number of examples, some 2,500, at any batch size. At a batch of
        8192 that is the last batch alone, which is enough: an average over ten updates would lag behind weights that
        move as fast as they do there, and accuracies in the middle of a run would come out near chance. The momentum is
        lower in the first updates: see `averaging.Momentum`.

        Source: the scaling rule of Busbridge et al., "How to Scale Your EMA", arXiv 2307.13813, 2023.
        """
        if self.norm_momentum is not None:
            return self.norm_momentum
        return scale_decay(REFERENCE_NORM_MOMENTUM, REFERENCE_BATCH_SIZE, batch_size or self.batch_size)

    @property
    def second_moment_decay(self) -> float:
        """The decay of Adam's second moment.

        With `--b2=auto` it averages over the same number of examples, some 256,000, at any batch size, as far as Adam's
        convergence allows: b1 must stay below the square root of b2. It stays the same where the batch of a run
        changes: Adam's correction of the bias, 1 - b2^updates, is for one b2.

        Source: see `batchnorm_jax.batch_size.scale_decay`.
        """
        if not isinstance(self.b2, str):
            return self.b2
        examples = self.batch_size / self.backwards_per_forward
        return scale_decay(REFERENCE_B2, REFERENCE_BATCH_SIZE, examples, floor=self.momentum)

    def kept_of_average(self, batch_size: int | None = None) -> float | None:
        """Returns the share of the averaged weights that an update keeps at a batch size; None: there is no average."""
        if self.average_weights is None:
            return None
        examples = (batch_size or self.batch_size) / self.backwards_per_forward
        return 0.5 ** (examples / self.average_weights)

    @property
    def evaluates_average(self) -> bool:
        """Whether an average of the weights is evaluated, and not the last ones."""
        return self.average_weights is not None or OPTIMIZERS[self.optimizer].averages

    def identity(self) -> Options:
        """Returns the fields on which a run's numbers depend, `num_devices` if the norm's statistics are per device."""
        places = set(PLACES) - ({"num_devices"} if NORMS[self.norm].depends_on_devices else set())
        later = {field.name for field in dataclasses.fields(self) if field.name in LATER}
        later = {name for name in later if getattr(self, name) == getattr(TrainConfig, name)}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in places | later}

    @property
    def trained(self) -> str:
        """The problem, or data set and model, as a part of the name of a folder."""
        return (self.problem or f"{self.dataset}-{self.model}").replace(":", "_")

    def default_workdir(self) -> str:
        """Returns a folder under `runs/` that follows from the identity: the same command finds it again."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        return f"runs/{self.trained}-b{self.batch_size}-{digest}"
