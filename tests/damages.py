"""Damaged versions of a file: cut short, with flipped bits, with other text, or with other values in its JSON."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Texts that are inserted into JSON unchanged, because `json.dumps` writes no Python value as such a text.
RAW = {"deep": "[" * 20_000 + "]" * 20_000, "digits": "9" * 5_000, "huge": "1e400", "NaN": "NaN", "-inf": "-Infinity"}
VALUES = [None, "text", "$x_{$", "", -1, 0, 3, 1e300, 1e-300, [], {}, True, *RAW]


def versions_of(whole: bytes, r: np.random.Generator, most: int) -> Iterator[tuple[str, bytes]]:
    """Yields damaged contents for a file, each after a description of the damage.

    Args:
      whole: the contents of the file.
      r: chooses the damages.
      most: the largest number of versions.
    """
    yield "empty", b""
    yield "not UTF-8", b"\xff\xfe" + whole
    yield "deep", RAW["deep"].encode()
    yield "zeros", bytes(len(whole))
    made = list(_of_bytes(whole, r, most))
    with contextlib.suppress(ValueError):
        of_json = list(_of_json(whole))
        some = r.permutation(len(of_json))[: 2 * most]
        made += [(what, build()) for what, build in (of_json[i] for i in some)]
    for i in sorted(r.permutation(len(made))[: max(0, most - 4)]):
        yield made[i]


def _of_bytes(whole: bytes, r: np.random.Generator, most: int) -> Iterator[tuple[str, bytes]]:
    for at in r.integers(0, max(1, len(whole)), most // 4 + 2):
        yield f"cut at {at}", whole[:at]
    for at in r.integers(0, max(1, len(whole)), most // 4 + 2) if whole else ():
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(r.integers(8))
        yield f"flipped at {at}", bytes(flipped)


def _of_json(whole: bytes) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields descriptions of damages to every node of a JSON file, or of a file of JSON lines, and their functions."""
    lines = whole.splitlines()
    rows = [json.loads(line) for line in lines] if len(lines) > 1 and whole[:2] != b"{\n" else None
    if rows is None:
        rows, lines = [json.loads(whole)], [whole]
    for number, row in enumerate(rows):
        for path in _paths(row):
            for value in [*VALUES, "delete"] if path else VALUES:
                yield (
                    f"line {number + 1}, {'.'.join(map(str, path)) or 'all'}: {value!r:.20}",
                    lambda number=number, row=row, path=path, value=value: b"\n".join(
                        [*lines[:number], _changed(row, path, value), *lines[number + 1 :], b""]
                    ),
                )


def _paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _paths(part, (*path, key))


def _changed(row: Any, path: tuple, value: Any) -> bytes:
    mark = "@@@"
    copy = json.loads(json.dumps(row))
    into = {"": copy}
    place: Any = into
    for key in ("", *path)[:-1]:
        place = place[key]
    last = ("", *path)[-1]
    if value == "delete":
        del place[last]
    else:
        place[last] = mark if isinstance(value, str) and value in RAW else value
    return json.dumps(into[""]).replace(f'"{mark}"', RAW.get(value, "") if isinstance(value, str) else "").encode()
