"""Where a run's numbers go: `metrics.jsonl`, TensorBoard events, and the terminal."""

import contextlib
import json
from pathlib import Path
from typing import Any

from experiments import _files, records
from experiments._shapes import fits

FILE = "metrics.jsonl"
# All other kinds of row are named after the split that was evaluated.
NOT_EVALUATIONS = ("train", "noise", "ramp")
# Numbers of a row that are the same, or a straight line, in every run.
NOT_CURVES = ("epoch", "examples")


def read(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics file. A line that is not a whole row is named and left out, and the rest is used."""
    return _files.read_rows(Path(path), records.metrics_row)[0]


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
            rows = [row for row in read(path) if row["step"] <= step]
            _files.write(path, "".join(json.dumps(row) + "\n" for row in rows))
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

    def evaluations(self, step: int) -> dict[str, dict[str, Any]]:
        """What was logged of an evaluation after a step, by split; nothing if there was none."""
        rows = [row for row in read(self._path) if row["step"] == step and row["kind"] not in NOT_EVALUATIONS]
        results = {row["kind"]: {k: v for k, v in row.items() if k not in ("kind", "step", "epoch")} for row in rows}
        return {name: result for name, result in results.items() if fits(records.RESULT, result)}

    def noise(self, step: int) -> list[tuple[float, float]]:
        """The estimates of |G|^2 and tr Sigma that were logged up to a step, in order."""
        return [
            (row["gradient_norm2"], row["trace"])
            for row in read(self._path)
            if row["kind"] == "noise" and row["step"] <= step
        ]

    def has(self, kind: str, step: int) -> bool:
        """Whether there is a row of a kind after a step."""
        return any(row["kind"] == kind and row["step"] == step for row in read(self._path))

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Adds a row {"kind", "step", **values}, and each number of it that is a curve as TensorBoard's `kind/name`."""
        if self._file is None or self._events is None:
            return
        self._file.write(json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n")
        self._file.flush()
        import tensorboardX.proto.summary_pb2 as generated

        messages: Any = generated  # Its names are made as it is imported.

        # One event for all, which takes a fourth of the time of one for each.
        scalars = [
            messages.Summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float) and name not in NOT_CURVES
        ]
        writer: Any = self._events.file_writer
        writer.add_summary(messages.Summary(value=scalars), step)
