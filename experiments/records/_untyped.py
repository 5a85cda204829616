"""The shapes of the files that training and studies write, and that reports and later runs read."""

from typing import Any

from experiments._shapes import (
    MismatchError,
    anything,
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


_KEYS = {"keys": items(text)}
_COUNTED = {"batch_size": whole(1)}
# `PART.json` of the batch-size study.
PARTS = {
    "time": record(
        {
            "train_size": whole(1),
            "sizes": items(
                record(
                    {
                        **_COUNTED,
                        "kind": text,
                        "devices": text,
                        "computing": items(POSITIVE, least=1),
                        "epoch_computing": POSITIVE,
                        "epoch_in_all": POSITIVE,
                    }
                )
            ),
            "fit": optional(
                record(
                    {
                        "overhead": number(0),
                        # Both are infinite where the time of an update does not grow.
                        "throughput": number(above=0, finite=False),
                        "knee": number(0, finite=False),
                        "intervals": record(dict.fromkeys(("overhead", "throughput", "knee"), INTERVAL)),
                    }
                )
            ),
            "neighbours": items(
                record({**_COUNTED, "kind": text, "power": whole(1), "throughput": items(POSITIVE, least=1)})
            ),
            **_KEYS,
        }
    ),
    "smoothness": record(
        {
            "sizes": items(record({**_COUNTED, "swing": POSITIVE, "loss": POSITIVE, "losses": items(NUMBER, least=1)})),
            "power": optional(NUMBER),
            "noise": items(record({"update": NUMBER, "loss": NUMBER, "scale": UNBOUNDED, "interval": INTERVAL})),
            "noise_batch_size": optional(whole(1)),
            "confidence": SHARE,
            **_KEYS,
        }
    ),
    "convergence": record(
        {
            "target": POSITIVE,
            "seeds": items(whole(0)),
            "confidence": SHARE,
            "tuned": items(record({**_COUNTED, "rate": optional(POSITIVE), "reached": flag, "on_edge": flag})),
            "factor": number(above=1),
            "fit": optional(
                record(
                    {
                        "min_steps": UNBOUNDED,
                        "min_examples": UNBOUNDED,
                        "critical_batch_size": UNBOUNDED,
                        "intervals": record(
                            {"min_steps": INTERVAL, "min_examples": INTERVAL, "critical_batch_size": INTERVAL}
                        ),
                    }
                )
            ),
            "no_fit": optional(text),
            **_KEYS,
        }
    ),
    "generalisation": record(
        {
            "runs": items(
                record(
                    {
                        **_COUNTED,
                        "budget": text,
                        "rate": NUMBER,
                        "updates": whole(0),
                        **{name: items(NUMBER, least=1) for name in ("train", "test", "gap")},
                        **{name: items(NUMBER, least=1) for name in ("eigenvalue", "eigenvalue_times_rate")},
                        "sharpness": table(items(NUMBER, least=1)),
                    }
                )
            ),
            **_KEYS,
        }
    ),
}
# Of parts whose rows say everything.
PART = record(_KEYS)
# `study.json`.
STUDY = table(anything)
