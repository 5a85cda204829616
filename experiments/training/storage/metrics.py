"""The metrics of a run: rows of `metrics.jsonl`, and TensorBoard events."""

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from experiments import _files
from experiments.records.runs import EvaluationRow, MetricsRow, NoiseRow, Result, metrics_row

FILE = "metrics.jsonl"
# Numbers of a row that are the same, or a straight line, in every run.
NOT_CURVES = ("version", "step", "epoch", "examples")


def read(path: str | Path) -> list[MetricsRow]:
    """Returns the rows of a metrics file. A line that is not a whole row is named and left out."""
    return _files.read_rows(Path(path), metrics_row)[0]


class MetricsLog:
    """Appends rows to `metrics.jsonl` and scalars to TensorBoard. Use it as a context.

    A run that resumes from a checkpoint at `step` writes the later rows again, so they are taken out first. Of several
    processes one `writes`.
    """

    def __init__(self, workdir: Path, step: int, *, writes: bool = True):
        self._file = self._events = None
        self._path = workdir / FILE
        if not writes:
            return
        # Slow to import, and only training needs it.
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
            # What cannot be written to a full disk was said where it came; it must not hide what is in flight.
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._events.close()

    def evaluations(self, step: int) -> dict[str, Result]:
        """Returns what was logged of an evaluation after a step, by split; nothing if there was none."""
        return {
            row.kind: Result(accuracy=row.accuracy, loss=row.loss, examples=row.examples, mean_iou=row.mean_iou)
            for row in read(self._path)
            # Earlier versions did not write the number of examples, without which a result is none.
            if isinstance(row, EvaluationRow) and row.step == step and row.examples is not None
        }

    def noise(self, step: int) -> list[tuple[float, float]]:
        """Returns the estimates of |G|^2 and tr Sigma that were logged up to a step, in order."""
        return [
            (row.gradient_norm2, row.trace)
            for row in read(self._path)
            if isinstance(row, NoiseRow) and row.step <= step
        ]

    def has(self, kind: type[MetricsRow], step: int) -> bool:
        """Says whether there is a row of a type after a step."""
        return any(isinstance(row, kind) and row.step == step for row in read(self._path))

    def write(self, row: MetricsRow) -> None:
        """Adds a row, and each number of it that is a curve as TensorBoard's `kind/name`."""
        if self._file is None or self._events is None:
            return
        self._file.write(_files.line(row))
        self._file.flush()
        import tensorboardX.proto.summary_pb2 as generated

        messages: Any = generated  # Its names are made as it is imported.

        # One event for all, which takes a fourth of the time of one for each.
        scalars = [
            messages.Summary.Value(tag=f"{row.kind}/{name}", simple_value=value)
            for name, value in msgspec.structs.asdict(row).items()
            if isinstance(value, int | float) and name not in NOT_CURVES
        ]
        writer: Any = self._events.file_writer
        writer.add_summary(messages.Summary(value=scalars), row.step)
