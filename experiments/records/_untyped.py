"""The shapes of the files that training and studies write, and that reports and later runs read."""

from typing import Any

from experiments._shapes import (
    MismatchError,
    every,
    flag,
    items,
    matching,
    number,
    optional,
    record,
    table,
    text,
    whole,
)

POSITIVE, SHARE, NUMBER = number(above=0), number(0), number()
# Seconds since 1970, up to the year 9999, which dates end with.
MOMENT = optional(number(0, below=253_402_300_800))
UNBOUNDED = number(finite=False)
INTERVAL = items(UNBOUNDED, UNBOUNDED)
# A value and its interval, in which null is "no bound".
BOUNDED = items(NUMBER, optional(NUMBER), optional(NUMBER))

RESULT = record({"accuracy": SHARE, "loss": NUMBER, "examples": whole(0)}, {"mean_iou": SHARE})
SECONDS = table(number(0))

# `summary.json` of a run.
SUMMARY = record(
    {
        "results": table(RESULT, least=1),
        "updates": whole(0),
        "seconds": SECONDS,
        "devices": text,
        "versions": table(text),
        "command": text,
    },
    {
        "epochs": number(0),
        "target": optional(record({"accuracy": SHARE, "reached_after_updates": optional(whole(0))})),
        "parameters": whole(0),
        "overhead": optional(NUMBER),
        "starts": whole(0),
        "first_step_ended": MOMENT,
        "memory": optional(record({"needed": optional(whole(0)), "limit": optional(whole(0))})),
    },
)


def option(value: Any) -> None:
    """The shape of an option of a run: null, text, true, false or a number."""
    if value is not None and not isinstance(value, str | bool):
        NUMBER(value)


# `config.json` of a run, as far as a report reads it.
CONFIG = record(
    {
        "config": every(
            table(option),
            record({"model": text, "dataset": text, "batch_size": whole(1)}, {"label_smoothing": number(0)}),
        ),
        "data": record({}, {"note": text}),
    }
)

_METRICS = {
    "train": record({"loss": NUMBER, "accuracy": NUMBER, "learning_rate": NUMBER}),
    "noise": record({"gradient_norm2": NUMBER, "trace": NUMBER}),
    "ramp": record({"batch_size": whole(1)}),
}
_EVALUATION = record({"accuracy": SHARE, "loss": NUMBER}, {"mean_iou": SHARE, "examples": whole(0)})
_METRICS_ROW = record({"kind": text, "step": whole(0)})


def metrics_row(row: Any) -> None:
    """The shape of a row of `metrics.jsonl`, which follows from its kind; other kinds are the names of splits."""
    _METRICS_ROW(row)
    _METRICS.get(row["kind"], _EVALUATION)(row)


_OPTIONS = record(
    {},
    {
        "batch_size": whole(1),
        "learning_rate": optional(POSITIVE),
        "seed": whole(0),
        "steps": optional(whole(1)),
        "epochs": number(above=0),
        "num_devices": optional(whole(1)),
        "optimizer": text,
        "dataset": text,
        "model": text,
    },
)
# What a study finds out of a run and adds to its row.
_NOTES = {
    "losses": items(NUMBER, least=2),
    "noise": items(items(NUMBER, NUMBER, NUMBER, NUMBER)),
    "course": record(
        {
            "evaluations": items(items(whole(0), SHARE, NUMBER), least=1),
            "batch_sizes": items(items(whole(0), whole(1))),
        }
    ),
    "evaluations": items(items(whole(0), SHARE, NUMBER)),
    "minimum": record(
        {
            "train": record({"accuracy": SHARE, "loss": NUMBER}),
            "eigenvalue": NUMBER,
            "sharpness": table(NUMBER),
        }
    ),
    "shift": record({"mean": NUMBER, "std": NUMBER}),
}
# What a row of a study must hold of a summary, whatever its kind.
_ENDED = record(
    {"results": table(record({"accuracy": SHARE}, {"loss": NUMBER, "examples": whole(0), "mean_iou": SHARE}), least=1)},
    {
        "updates": whole(0),
        "epochs": number(0),
        "seconds": SECONDS,
        "devices": text,
        "versions": table(text),
        "first_step_ended": MOMENT,
        "target": optional(record({"reached_after_updates": optional(whole(0))})),
    },
)
_STUDY_ROW = record(
    {"key": text, "options": _OPTIONS},
    {"command": text, "label": text, "error": text, "diverged": flag, "summary": _ENDED, **_NOTES},
)
# What a key begins with, and what the options of such a row must hold for a report to place it.
_SIZED = record({"options": record({"batch_size": whole(1)})})
_PLACED = record({"options": record({"batch_size": whole(1), "seed": whole(0)})})
_RATED = record({"options": record({"learning_rate": POSITIVE})})
_TO_TARGET = record({}, {"summary": record({"target": record({}), "epochs": number(0)})})
_COMPUTED = record({}, {"summary": record({"seconds": record({"compute": number(0)}), "updates": whole(1)})})
_GRID_KEY = r"grid-\w+-\w+-p[1-9][0-9]{0,8}-seed[0-9]+"
_BY_KIND = {
    "fixed": (_PLACED, _RATED, _TO_TARGET, _COMPUTED),
    "tuned": (_PLACED, _RATED, _TO_TARGET, _COMPUTED),
    "time": (_PLACED, _COMPUTED),
    "ramp": (_SIZED, _COMPUTED, record({"label": text})),
    "ladder": (_SIZED, _COMPUTED),
    "backwards": (_SIZED, _COMPUTED),
    "search": (_SIZED, _RATED, record({"options": record({"optimizer": text})})),
    "final": (_SIZED, _RATED, record({"options": record({"optimizer": text})})),
    "minimum": (_SIZED, _RATED),
    "grid": (
        _COMPUTED,
        record({"key": matching(_GRID_KEY), "options": record({"num_devices": whole(1), "steps": whole(1)})}),
    ),
    "rate": (_COMPUTED, _RATED),
}


def study_row(row: Any) -> None:
    """The shape of a row of `results.jsonl` of a study; what its options must hold follows from its key."""
    _STUDY_ROW(row)
    if "summary" not in row and "error" not in row:
        raise MismatchError("an object with a summary or an error", row)
    if "summary" in row or row.get("diverged"):
        for shape in _BY_KIND.get(row["key"].partition("-")[0], ()):
            shape(row)


_COUNTED = {"batch_size": whole(1)}
_PREDICTION = record(
    {
        **_COUNTED,
        "step_seconds": BOUNDED,
        "updates_per_epoch": whole(0),
        "dropped": SHARE,
        "memory": optional(NUMBER),
        "updates": optional(BOUNDED),
        "epochs": optional(BOUNDED),
        "seconds": optional(BOUNDED),
    }
)
_ESTIMATE = record({"value": optional(NUMBER), "interval": items(optional(NUMBER), optional(NUMBER))})
_RUN = record(
    {
        **_COUNTED,
        "rate": POSITIVE,
        "seed": whole(0),
        "updates": whole(0),
        "reached": flag,
        "diverged": flag,
        "step_seconds": optional(NUMBER),
    }
)
_MEMORY = record(
    {
        "fixed": NUMBER,
        "per_example": NUMBER,
        "limit": optional(NUMBER),
        "largest": optional(whole(0)),
        "tried": optional(record({**_COUNTED, "error": optional(text)})),
    }
)
# `recommendation.json`.
RECOMMENDATION = record(
    {
        "minutes": NUMBER,
        "seconds": NUMBER,
        "evidence": record(
            {
                "options": every(table(option), record({"dataset": text}, {"model": text, "norm": optional(text)})),
                "examples": whole(0),
                "held_out": whole(0),
                "devices": whole(1),
                "kind": text,
                "target": optional(NUMBER),
                "step_time": items(items(whole(1), POSITIVE)),
                "memory": optional(_MEMORY),
                "race": items(items(whole(1), POSITIVE, NUMBER)),
                "noise": optional(
                    record(
                        {
                            "scale": optional(NUMBER),
                            "interval": items(optional(NUMBER), optional(NUMBER)),
                            "measurements": whole(0),
                        }
                    )
                ),
                "runs": items(_RUN),
                "not_measured": items(text),
            }
        ),
        "advice": optional(
            record(
                {
                    **_COUNTED,
                    "per_device": whole(0),
                    "accumulation_steps": whole(1),
                    "learning_rate": POSITIVE,
                    "optimizer": text,
                    "span": optional(whole(1)),
                    "source": text,
                    "predictions": items(_PREDICTION, least=1),
                    "candidates": items(_PREDICTION, least=1),
                    "critical_batch_size": _ESTIMATE,
                    "knee": _ESTIMATE,
                    "binds": text,
                    "loosen": text,
                    "certainty": SHARE,
                    "options": table(option),
                }
            )
        ),
    }
)
