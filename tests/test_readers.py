"""A damaged file of any kind is read with valid results, or refused in one sentence that says what is wrong."""

import pytest

from tests import readers

# Readers that train or draw many figures, and so take seconds per damage.
SLOW_READERS = {
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


@pytest.mark.parametrize("name", [n for n in readers.READERS if n not in SLOW_READERS])
def test_a_damaged_file_is_read_or_refused(name):
    came = dict(readers.sweep(name, 6))
    assert len(came) >= 9
    assert {what: result for what, result in came.items() if result not in ("read", "refused")} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", readers.READERS)
def test_every_file_with_every_damage_is_read_or_refused(name):
    came = dict(readers.sweep(name, 40, seed=1))
    assert {what: result for what, result in came.items() if result not in ("read", "refused")} == {}


def test_the_sweep_finds_a_page_that_shows_nan_and_a_reader_that_fails():
    assert readers._missing_numbers("<p>it took nan s</p><svg>inf</svg>") == {"nan"}
    broken = readers.READERS["run page"]._replace(read=lambda folder: 1 / 0)
    assert "ZeroDivisionError" in readers.outcome(broken, None, "")
