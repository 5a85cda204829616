"""Result files that exist have the types that their readers ask for, and damaged ones are named."""

import json
import math
import shutil
from pathlib import Path

import pytest

from experiments import _files
from experiments._errors import UsageError
from experiments.records.recommendation import Recommendation
from experiments.records.rows import study_row
from experiments.records.studies import Analysis
from experiments.reporting.questions.time import time_sections
from experiments.reporting.study_files import StudyFiles

DOCS = Path(__file__).parent.parent / "docs" / "results"
PARTS = ("time", "smoothness", "convergence", "backwards", "ladder", "generalisation", "ramp")


def test_the_files_of_the_pages_have_their_shapes():
    for path in DOCS.rglob("results.jsonl"):
        rows, left_out = _files.read_rows(path, study_row)
        assert rows and not left_out, path
    for path in DOCS.rglob("recommendation.json"):
        assert _files.read_json(path, Recommendation).evidence.runs
    for part in PARTS:
        assert StudyFiles(DOCS / "batch_size_mnist").analysis(part, Analysis)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": 3}', "[" * 10_000, '{"keys": [' + "9" * 5_000 + "]}"])
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_part_is_named(tmp_path, part, content):
    (tmp_path / f"{part}.json").write_text(content)
    with pytest.raises(UsageError, match=rf"{part}.json cannot be read"):
        StudyFiles(tmp_path).analysis(part, Analysis)


def test_a_time_that_does_not_grow_with_the_batch_is_shown(tmp_path):
    """The fit of an update's time has no slope then: its throughput and its knee are infinite."""
    shutil.copy(DOCS / "batch_size_mnist" / "results.jsonl", tmp_path)
    found = json.loads((DOCS / "batch_size_mnist" / "time.json").read_text())
    found["fit"] |= {"throughput": math.inf, "knee": math.inf}
    _files.write_json(tmp_path / "time.json", found)
    (times,) = time_sections(StudyFiles(tmp_path))[:1]
    assert "above" in times.answer and "nan" not in "".join(times.parts)
