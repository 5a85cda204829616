"""Result files that exist have the shapes that their readers ask for, and damaged ones are named."""

from pathlib import Path

import pytest

from experiments import _files, records
from experiments._errors import UsageError
from experiments.reporting import section

DOCS = Path(__file__).parent.parent / "docs"
PARTS = ("time", "smoothness", "convergence", "backwards", "ladder", "generalisation", "ramp")


def test_the_files_of_the_pages_have_their_shapes():
    for path in DOCS.rglob("results.jsonl"):
        rows, left_out = _files.read_rows(path, records.study_row)
        assert rows and not left_out, path
    for path in DOCS.rglob("recommendation.json"):
        assert _files.read_json(path, records.RECOMMENDATION)["evidence"]
    for part in PARTS:
        assert section.analysis(DOCS / "batch_size_mnist", part)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": 3}', "[" * 10_000, '{"keys": [' + "9" * 5_000 + "]}"])
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_part_is_named(tmp_path, part, content):
    (tmp_path / f"{part}.json").write_text(content)
    with pytest.raises(UsageError, match=rf"{part}.json cannot be read"):
        section.analysis(tmp_path, part)
