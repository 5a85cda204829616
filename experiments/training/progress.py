"""What a run says while it trains: rows of metrics, a progress bar, a line an epoch."""

import math
import sys
import time

import jax
from tqdm import tqdm

from experiments.training.config import TrainConfig
from experiments.training.metrics import MetricsLog
from experiments.training.plan import Plan

REMEDY = (
    "checkpoints of earlier steps are kept. Try a lower learning rate (--learning_rate, --base_learning_rate) "
    "or a longer --warmup_epochs"
)


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the last checkpoint is of before that."""


class Progress:
    """Reads a step's metrics once the next step is dispatched, so that the device never waits for the host."""

    def __init__(self, config: TrainConfig, plan: Plan, log: MetricsLog, step: int, *, quiet: bool):
        self._config, self._plan, self._log = config, plan, log
        self._bar = tqdm(
            total=plan.total_steps, initial=step, unit="step", disable=quiet or None, dynamic_ncols=True, leave=False
        )
        self._quiet = quiet
        self._expected = None
        self._images, self._since = 0, time.perf_counter()
        self._read_step = step
        self.last: dict[str, float] = {}

    @property
    def plan(self) -> Plan:
        """Of the run, which an automatic batch ramp changes."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._plan = plan
        self._bar.total = plan.total_steps

    def expect(self, step: int, metrics, images: int) -> None:
        """Names what the next `read` is to read, and how many images made it."""
        self._expected = (step, metrics, images)

    def wait(self) -> None:
        """Waits for the step that is expected."""
        if self._expected is not None:
            jax.block_until_ready(self._expected[1])

    def read(self) -> None:
        """Reads, checks and logs what is expected; does nothing the second time.

        Raises:
          NonFiniteLossError: the loss is not finite.
        """
        if self._expected is None:
            return
        step, metrics, images = self._expected
        self._expected = None
        self.last = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(self.last["loss"]):
            raise NonFiniteLossError(f"the loss is {self.last['loss']} at step {step}; {REMEDY}")
        self._images += images
        every = self._config.log_every
        if step // every > self._read_step // every:
            self._log.write("train", step, {"epoch": self._plan.epochs_at(step), **self.last})
        if not self._bar.disable:
            self._show(step)
        self._read_step = step

    def _show(self, step: int) -> None:
        seconds = time.perf_counter() - self._since
        self._bar.update(step - self._read_step)
        self._bar.set_postfix(
            loss=f"{self.last['loss']:.3f}",
            acc=f"{self.last['accuracy']:.3f}",
            rate=f"{self.last['learning_rate']:.3g}",
            images=f"{self._images / max(seconds, 1e-9):,.0f}/s",
            refresh=False,
        )

    def start_epoch(self) -> None:
        """Starts to count images and seconds anew."""
        self._images, self._since = 0, time.perf_counter()

    def end_epoch(self, step: int, results: dict, computing: float) -> None:
        """Logs the evaluation after an epoch, and says it in a line.

        Args:
          step: updates so far.
          results: of every split.
          computing: seconds of the epoch's steps.
        """
        for name, result in results.items():
            self._log.write(name, step, {"epoch": self._plan.epochs_at(step), **result})
        if self._quiet:
            return
        scores = "  ".join(
            f"{name} {result['accuracy']:.2%}" + (f" IoU {result['mean_iou']:.2%}" if "mean_iou" in result else "")
            for name, result in results.items()
        )
        loss = f"loss {self.last['loss']:.4f}  " if self.last else ""
        self._bar.write(
            f"epoch {self._plan.epochs_at(step):>5.4g}  step {step:>6}  {loss}{scores}  "
            f"{self._images / max(computing, 1e-9):,.0f} images/s",
            file=sys.stdout,
        )
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """Prints a line beside the bar."""
        if not self._quiet:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()
