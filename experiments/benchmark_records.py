"""The shapes of what `experiments.benchmark` writes, as far as pictures are made of it."""

from typing import Any

from experiments._shapes import Shape, anything, items, number, optional, record, table, text, whole

_POSITIVE, _AMOUNT = number(above=0), number(0)


def _measured(shape: Shape) -> Shape:
    """The shape of a part that was measured, or has a note that says why it was not."""

    def check(value: Any) -> None:
        (record({"note": text}) if isinstance(value, dict) and "note" in value else shape)(value)

    return check


_SPEED = record({"rows": items(record({"ratio": table(record({"median": _POSITIVE}), least=1)}), least=1)})
_MEMORY = record(
    {
        "resnet50": record(
            {
                "batch_size": whole(1),
                "image_size": whole(1),
                "rows": items(record({"name": text, "temporary": _AMOUNT}), least=1),
            }
        )
    }
)
_ACCURACY = items(record({"what": text, "name": text, "y": _AMOUNT}))
# `norm.json`.
NORM = record(
    {
        "rows": record(
            {},
            {
                "speed": _measured(_SPEED),
                "gpu": _measured(_SPEED),
                "memory": _measured(_MEMORY),
                "accuracy": _measured(_ACCURACY),
            },
        )
    }
)

_COMPILED = record(
    {"job": record({"variant": text}, {"shape": items(whole(1))}), "title": text},
    {
        "figures": optional(table(optional(_AMOUNT))),
        "ratio": optional(table(optional(_AMOUNT))),
        "largest": optional(record({}, {"examples": optional(_AMOUNT)})),
        "note": optional(text),
    },
)
_POD = record({"devices": whole(1), "whole_seconds": _AMOUNT, "span_seconds": _AMOUNT, "step_seconds": _AMOUNT})
# `norm-TOPOLOGY.json`.
TOPOLOGY = record(
    {
        "rows": record(
            {"topology": text, "title": text},
            {"layers": items(_COMPILED), "resnet50": items(_COMPILED), "pods": items(_POD)},
        )
    },
    {"made_by": anything},
)
