"""Progress of a run: rows of metrics, a progress bar, one line per epoch."""

import math
import time

import jax
import msgspec

from experiments.records.runs import EvaluationRow, Result, TrainRow
from experiments.training.config.plan import Plan
from experiments.training.storage.metrics import MetricsLog
from experiments.training.terminal import StatusLine, say

REMEDY = (
    "checkpoints of earlier steps are kept. Try a lower learning rate (--learning_rate, --base_learning_rate) "
    "or a longer --warmup_epochs"
)


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the last checkpoint is of before that."""


# Columns of the bar, and the parts of a cell that a terminal can show.
BAR = range(8, 31)
EIGHTHS = " ▏▎▍▌▋▊▉█"


class Progress:
    """Reads a step's metrics once the next step is dispatched, so that the device never waits for the host.

    A context manager: the progress bar is there within it.
    """

    def __init__(self, plan: Plan, log: MetricsLog, step: int, *, log_every: int, quiet: bool):
        self._log, self._log_every = log, log_every
        # The plan of the run, which an automatic batch ramp changes.
        self.plan = plan
        self._line = StatusLine(hidden=quiet)
        self._quiet = quiet
        self._expected = None
        self._images, self._since = 0, time.perf_counter()
        self._read_step = step
        # The first step that this process has read, and when: before it the program was compiled.
        self._first: tuple[int, float] | None = None
        self.last: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        self._line.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._line.__exit__(*error)

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
        if step // self._log_every > self._read_step // self._log_every:
            made = {"kind": "train", "step": step, "epoch": self.plan.epochs_at(step), **self.last}
            self._log.write(TrainRow(**made))
        self._first = self._first or (step, time.perf_counter())
        self._line.draw(lambda columns: self._bar(step, columns))
        self._read_step = step

    def _bar(self, step: int, columns: int) -> str:
        """The bar, and beside it as much as there is room for, the most wanted first."""
        total = self.plan.total_steps
        now, (first, since) = time.perf_counter(), self._first or (step, 0.0)
        left = f"{_time((now - since) * (total - step) / (step - first))} left" if step > first else ""
        fields = {
            "left": left,
            "loss": f"loss {self.last['loss']:.3f}",
            "accuracy": f"accuracy {self.last['accuracy']:.1%}",
            "images": f"{self._images / max(now - self._since, 1e-9):,.0f} images/s",
            "rate": f"rate {self.last['learning_rate']:.3g}",
        }
        percent, done = f"{step / total:>4.0%} ", f" {step}/{total}"
        room = columns - len(percent) - len(done) - BAR[0]
        kept = []
        for text in filter(None, fields.values()):
            if len(text) + 2 <= room:
                kept.append(text)
                room -= len(text) + 2
        cells = min(BAR[0] + max(room, 0), BAR[-1])
        return percent + self._cells(step / total, cells) + "  ".join([done, *kept])

    def _cells(self, share: float, cells: int) -> str:
        eighths = round(share * 8 * cells)
        if not self._line.can_encode(EIGHTHS):
            return ("#" * (eighths // 8)).ljust(cells, ".")
        return (EIGHTHS[-1] * (eighths // 8) + EIGHTHS[eighths % 8].strip()).ljust(cells, "·")

    def start_epoch(self) -> None:
        """Starts to count images and seconds anew."""
        self._images, self._since = 0, time.perf_counter()

    def end_epoch(self, step: int, results: dict[str, Result], computing: float) -> None:
        """Logs the evaluation after an epoch, and says it in a line.

        Args:
          step: updates so far.
          results: of every split.
          computing: seconds of the epoch's steps.
        """
        for name, result in results.items():
            epoch = self.plan.epochs_at(step)
            self._log.write(EvaluationRow(kind=name, step=step, epoch=epoch, **msgspec.structs.asdict(result)))
        if self._quiet:
            return
        scores = "  ".join(
            f"{name} {result.accuracy:.2%}" + ("" if result.mean_iou is None else f" IoU {result.mean_iou:.2%}")
            for name, result in results.items()
        )
        loss = f"loss {self.last['loss']:.4f}  " if self.last else ""
        say(
            f"epoch {self.plan.epochs_at(step):>5.4g}  step {step:>6}  {loss}{scores}  "
            f"{self._images / max(computing, 1e-9):,.0f} images/s"
        )

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._quiet:
            say(text)


def _time(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
      >>> _time(3723.4), _time(62), _time(9e9)
      ('1:02:03', '1:02', 'days')
    """
    if seconds >= 100 * 3600:
        return "days"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
