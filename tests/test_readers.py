"""Damaged files of every kind: a result that holds, or one sentence that says what is wrong."""

import pytest

from tests import readers

# Those that train, or draw many figures, take seconds for each damage.
LONG = {
    "train",
    "evaluate",
    "evaluate program",
    "resume",
    "convergence",
    "study page",
    "ladder",
    "backwards",
    "norm study page",
    "smoothness",
    "topology picture",
}


@pytest.mark.parametrize("name", [n for n in readers.READERS if n not in LONG])
def test_a_damaged_file_is_used_or_named(name):
    came = dict(readers.sweep(name, 6))
    assert len(came) >= 9
    assert {what: result for what, result in came.items() if result not in ("read", "refused")} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", readers.READERS)
def test_every_damage_of_every_file_is_used_or_named(name):
    came = dict(readers.sweep(name, 40, seed=1))
    assert {what: result for what, result in came.items() if result not in ("read", "refused")} == {}


def test_what_no_page_shows_is_found():
    assert readers._none("<p>it took nan s</p><svg>inf</svg>") == {"nan"}
    broken = readers.READERS["run page"]._replace(read=lambda folder: 1 / 0)
    assert "ZeroDivisionError" in readers.outcome(broken, None, "")
