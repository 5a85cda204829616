"""Summaries and rows of studies that no run has made, for tests of what reads them."""

from typing import Any

from experiments.records import rows
from experiments.records.runs import Result, Summary, Target
from experiments.records.studies import StudyRow


def result(accuracy: float, **changes: Any) -> Result:
    """The evaluation of a split."""
    return Result(**{"accuracy": accuracy, "loss": 0.5, "examples": 1_000, **changes})


def summary(
    accuracy: float = 0.9, *, split: str = "test", reached: int | bool | None = False, **changes: Any
) -> Summary:
    """The summary of a run.

    Args:
      accuracy: of its only split.
      split: the name of the split.
      reached: the update after which the target was reached; None: it was not; False: there was no target.
      **changes: other fields.
    """
    target = None if reached is False else Target(accuracy=0.9, reached_after_updates=reached)
    fields = {
        "results": {split: result(accuracy)},
        "updates": reached or 50,
        "epochs": 2.0,
        "target": target,
        "seconds": {"compute": 5.0},
        "devices": "8 x cpu",
        "versions": {"python": "3.11.2", "jax": "0.10.2"},
    }
    return Summary(**{**fields, **changes})


def row(key: str, options: dict[str, Any], **fields: Any) -> StudyRow:
    """The row of a run, of the type that its key asks for; without an error it has a summary."""
    if "error" not in fields:
        fields.setdefault("summary", summary())
    return rows.row_type(key)(key=key, options=options, **fields)
