"""The messages between the compiler and its worker process: one line per job, and one per answer."""

import msgspec

from ...records.benchmarks.topology import Figures, LayerJob, NetworkJob
from ...records.record import Record

Job = LayerJob | NetworkJob
_KINDS: dict[str, type[Job]] = {kind.__name__: kind for kind in (LayerJob, NetworkJob)}


class Answer(Record, frozen=True, kw_only=True):
    """The worker's answer to a job.

    Attributes:
      figures: the figures of the program; None: it was not compiled.
      error: the reason why the program was not compiled.
    """

    figures: Figures | None = None
    error: str = ""


class _Asked(Record, frozen=True, kw_only=True):
    kind: str
    job: msgspec.Raw


def asked(job: Job) -> str:
    """Encodes a job as the line that requests it."""
    line = _Asked(kind=type(job).__name__, job=msgspec.Raw(msgspec.json.encode(job)))
    return msgspec.json.encode(line).decode()


def job_of(line: str) -> Job:
    """Decodes the job that a line requests."""
    read = msgspec.json.decode(line, type=_Asked)
    return msgspec.json.decode(read.job, type=_KINDS[read.kind])
