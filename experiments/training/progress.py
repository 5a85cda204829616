"""Progress of a run: rows of metrics, a progress bar, and one line per epoch."""

import math
import time

import jax
import msgspec

from ..records.runs import EvaluationRow, Result, TrainRow
from .config.plan import Plan
from .storage.metrics import MetricsLog
from .terminal import StatusLine, duration, say

NON_FINITE_REMEDY = (
    "checkpoints of earlier steps are kept. Try a lower learning rate (--learning_rate, --base_learning_rate) "
    "or a longer --warmup_epochs"
)

FIRST_REMEDY = "that is before any update, so that the data or the model are at fault, and not the learning rate"


class NonFiniteLossError(RuntimeError):
    """Error of a run whose loss is infinite or not a number; its newest checkpoint is from before that step."""


# The bar is readable from 8 columns on; beyond 30 the room is left free.
MIN_BAR_COLUMNS, MAX_BAR_COLUMNS = 8, 30
# A cell filled from 0 to 8 eighths.
CELL_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Progress:
    """A reporter of training metrics, which reads those of a step after the next step is dispatched.

    In this way the device never waits for the host. Use it as a context manager: the progress bar is shown inside.

    Args:
      plan: the plan of the run.
      log: the metrics file.
      step: updates made before this start.
      log_every: updates between two rows of metrics.
      quiet: print nothing.

    Attributes:
      plan: the plan of the run; assign to it when an automatic batch ramp changes the plan.
      last: the metrics of the last step that was read, by name.
    """

    def __init__(self, plan: Plan, log: MetricsLog, step: int, *, log_every: int, quiet: bool):
        self._log, self._log_every = log, log_every
        self.plan = plan
        self._line = StatusLine(hidden=quiet)
        self._quiet = quiet
        self._expected = None
        self._examples, self._since = 0, time.perf_counter()
        self._read_step = step
        # The first step that was read, and when. The time left is extrapolated from there on, without compilation.
        self._first: tuple[int, float] | None = None
        self.last: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        self._line.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._line.__exit__(*error)

    def expect(self, step: int, metrics, examples: int) -> None:
        """Registers the metrics of a step for the next `read`.

        Args:
          step: updates so far, that step included.
          metrics: its metrics, arrays that the device may still be computing.
          examples: the number of examples in its batch.
        """
        self._expected = (step, metrics, examples)

    def wait(self) -> None:
        """Waits until the device has computed the registered metrics."""
        if self._expected is not None:
            jax.block_until_ready(self._expected[1])

    def read(self) -> None:
        """Reads, checks and logs the registered metrics; does nothing if there are none.

        Raises:
          NonFiniteLossError: the loss is not finite.
        """
        if self._expected is None:
            return
        step, metrics, examples = self._expected
        self._expected = None
        self.last = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(self.last["loss"]):
            remedy = NON_FINITE_REMEDY if step > 1 else FIRST_REMEDY
            raise NonFiniteLossError(f"the loss is {self.last['loss']} at step {step}; {remedy}")
        self._examples += examples
        if step // self._log_every > self._read_step // self._log_every:
            made = {"kind": "train", "step": step, "epoch": self.plan.epochs_at(step), **self.last}
            self._log.write(TrainRow(**made))
        self._first = self._first or (step, time.perf_counter())
        self._line.draw(lambda columns: self._bar(step, columns))
        self._read_step = step

    def _bar(self, step: int, columns: int) -> str:
        """Returns the bar, followed by as many fields as there is room for, the most important first."""
        total = self.plan.total_steps
        now, (first, since) = time.perf_counter(), self._first or (step, 0.0)
        left = f"{duration((now - since) * (total - step) / (step - first))} left" if step > first else ""
        fields = {
            "left": left,
            "loss": f"loss {self.last['loss']:.3f}",
            "accuracy": f"accuracy {self.last['accuracy']:.1%}" if "accuracy" in self.last else "",
            "speed": f"{self._examples / max(now - self._since, 1e-9):,.0f} examples/s",
            "rate": f"rate {self.last['learning_rate']:.3g}",
        }
        percent, done = f"{step / total:>4.0%} ", f" {step}/{total}"
        room = columns - len(percent) - len(done) - MIN_BAR_COLUMNS
        kept = []
        for text in filter(None, fields.values()):
            if len(text) + 2 <= room:
                kept.append(text)
                room -= len(text) + 2
        cells = min(MIN_BAR_COLUMNS + max(room, 0), MAX_BAR_COLUMNS)
        return percent + self._cells(step / total, cells) + "  ".join([done, *kept])

    def _cells(self, share: float, cells: int) -> str:
        eighths = round(share * 8 * cells)
        if not self._line.can_encode(CELL_EIGHTHS):
            return ("#" * (eighths // 8)).ljust(cells, ".")
        return (CELL_EIGHTHS[-1] * (eighths // 8) + CELL_EIGHTHS[eighths % 8].strip()).ljust(cells, "·")

    def start_epoch(self) -> None:
        """Resets the counts of examples and seconds."""
        self._examples, self._since = 0, time.perf_counter()

    def end_epoch(self, step: int, results: dict[str, Result], computing: float) -> None:
        """Logs an evaluation, and prints it in a line with the speed since `start_epoch`.

        Args:
          step: updates so far.
          results: the result of every split, by name.
          computing: seconds spent computing steps since `start_epoch`.
        """
        for name, result in results.items():
            epoch = self.plan.epochs_at(step)
            self._log.write(EvaluationRow(kind=name, step=step, epoch=epoch, **msgspec.structs.asdict(result)))
        if self._quiet:
            return
        scores = "  ".join(
            f"{name} {score(result)}" + ("" if result.mean_iou is None else f" IoU {result.mean_iou:.2%}")
            for name, result in results.items()
        )
        loss = f"loss {self.last['loss']:.4f}  " if self.last else ""
        say(
            f"epoch {self.plan.epochs_at(step):>5.4g}  step {step:>6}  {loss}{scores}  "
            f"{self._examples / max(computing, 1e-9):,.0f} examples/s"
        )

    def say(self, text: str) -> None:
        """Prints a line above the bar, unless quiet."""
        if not self._quiet:
            say(text)


def score(result: Result) -> str:
    """Returns the accuracy of a result as text, or its loss if it has no accuracy.

    Example:
      >>> score(Result(accuracy=0.9, loss=0.3)), score(Result(loss=1.25))
      ('90.00%', 'loss 1.2500')
    """
    return f"loss {result.loss:.4f}" if result.accuracy is None else f"{result.accuracy:.2%}"
