"""Writes and reads the metrics of a run: rows of `metrics.jsonl`, and TensorBoard events."""

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from ... import _files
from ...records.runs import EvaluationRow, MetricsRow, NoiseRow, Result, metrics_row

FILE = "metrics.jsonl"
# The split on which a problem evaluates, which does not say of how many examples it is.
HELD_OUT = "held out"
# Fields that are constant, or a straight line, in every run, so that a TensorBoard chart of them shows nothing.
NOT_CURVES = ("version", "step", "epoch", "examples")


def read(path: str | Path) -> list[MetricsRow]:
    """Returns the rows of a metrics file; an invalid line is reported and left out."""
    return _files.read_rows(Path(path), metrics_row)[0]


class MetricsLog:
    """A log that appends rows to `metrics.jsonl` and scalars to TensorBoard. Use it as a context."""

    def __init__(self, workdir: Path, step: int, *, writes: bool = True):
        """Opens the log of a run.

        Args:
          workdir: the folder of the run.
          step: the step at which the run starts or resumes. Later rows are removed: the run writes them again.
          writes: whether this process writes; among several processes one does.
        """
        self._file = self._events = None
        self._path = workdir / FILE
        if not writes:
            return
        # Imported here because the import is slow and only training needs it.
        from tensorboardX import SummaryWriter

        path = workdir / FILE
        if path.exists():
            _files.write(path, b"".join(_files.line(row) for row in read(path) if row.step <= step))
        _files.refuse_links(workdir / "tensorboard")
        self._file = _files.open_to_add(path)
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._file is not None and self._events is not None:
            # The first failed write has raised its own error, which an error while closing must not hide.
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._events.close()

    def evaluations(self, step: int) -> dict[str, Result]:
        """Returns the logged results of the evaluation after a step, by split; empty if there was no evaluation."""
        return {
            row.kind: _result(row)
            for row in read(self._path)
            # Earlier versions did not write the number of examples, which the result on a data set must have.
            if isinstance(row, EvaluationRow) and row.step == step and (row.examples or row.kind == HELD_OUT)
        }

    def course(self, step: int) -> list[tuple[int, Result]]:
        """Returns the updates and the result of each evaluation of the first split, up to a step."""
        rows = [row for row in read(self._path) if isinstance(row, EvaluationRow) and row.step <= step]
        return [(row.step, _result(row)) for row in rows if row.kind == rows[0].kind]

    def noise(self, step: int) -> list[tuple[float, float]]:
        """Returns the estimates of |G|^2 and tr Sigma that were logged up to a step, in the order of the steps."""
        return [
            (row.gradient_norm2, row.trace)
            for row in read(self._path)
            if isinstance(row, NoiseRow) and row.step <= step
        ]

    def has(self, kind: type[MetricsRow], step: int) -> bool:
        """Returns whether a row of a type was logged after a step."""
        return any(isinstance(row, kind) and row.step == step for row in read(self._path))

    def write(self, row: MetricsRow) -> None:
        """Appends a row, and adds each of its numbers outside `NOT_CURVES` to TensorBoard as `kind/name`."""
        if self._file is None or self._events is None:
            return
        self._file.write(_files.line(row))
        self._file.flush()
        import tensorboardX.proto.summary_pb2 as generated

        messages: Any = generated  # Type checkers do not see its names, which are generated at import.

        # One event for all numbers takes a fourth of the time of one event per number.
        scalars = [
            messages.Summary.Value(tag=f"{row.kind}/{name}", simple_value=value)
            for name, value in msgspec.structs.asdict(row).items()
            if isinstance(value, int | float) and name not in NOT_CURVES
        ]
        writer: Any = self._events.file_writer
        writer.add_summary(messages.Summary(value=scalars), row.step)


def _result(row: EvaluationRow) -> Result:
    return Result(accuracy=row.accuracy, loss=row.loss, examples=row.examples, mean_iou=row.mean_iou)
