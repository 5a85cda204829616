"""The report of a run: self-contained, made from result files alone, patient with rows that were cut short."""

import json
import re

import pytest

from experiments._errors import UsageError
from experiments.reporting import training_curves, write_page


def write_run(workdir):
    rows = [{"kind": "train", "step": i, "loss": 1 / i, "accuracy": 0.9, "learning_rate": 0.1} for i in range(1, 9)]
    rows += [{"kind": "test", "step": i, "loss": 0.5, "accuracy": 0.9 + i / 100} for i in (4, 8)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "te')
    facts = {
        "image_shape": [28, 28, 1],
        "num_classes": 10,
        "pixel_mean": [0.1],
        "pixel_std": [0.3],
        "note": "A <note>.",
    }
    config = {"model": "simple_cnn", "dataset": "digits", "batch_size": 64, "label_smoothing": 0.1, "workdir": None}
    (workdir / "config.json").write_text(json.dumps({"config": config, "data": facts}))
    summary = {
        "results": {"test": {"accuracy": 0.98, "loss": 0.5, "examples": 10_000}},
        "updates": 8,
        "seconds": {"compute": 1.25},
        "devices": "2 x cpu",
        "versions": {"jax": "0.10.2"},
        "command": "python -m experiments.train --batch_size=64",
    }
    (workdir / "summary.json").write_text(json.dumps(summary))


def test_the_page_says_what_the_files_say_and_needs_nothing_beside_it(tmp_path):
    write_run(tmp_path)
    page = write_page(tmp_path).read_text()
    for text in ("98.00%", "10,000", "8 updates", "--batch_size=64", "A &lt;note&gt;.", "1 rows that were cut short"):
        assert text in page, text
    # Namespaces aside, it refers to nothing.
    assert not re.search(r'(?:src|href)="(?!#)', re.sub(r'xlink:href="#[^"]*"', "", page))


def test_of_the_same_files_the_page_is_the_same(tmp_path):
    """So that a page that is kept in a repository changes where what it says does."""
    write_run(tmp_path)
    page = write_page(tmp_path).read_text()
    assert "<svg" in page and write_page(tmp_path).read_text() == page


def test_the_curves_hold_every_row(tmp_path):
    write_run(tmp_path)
    loss, accuracy, rate = training_curves(tmp_path).axes
    assert [len(line.get_xdata()) for line in loss.lines] == [8, 2]
    assert list(accuracy.lines[1].get_ydata()) == pytest.approx([94, 98])
    assert list(rate.lines[0].get_ydata()) == [0.1] * 8


def test_a_run_that_has_not_ended_has_no_report(tmp_path):
    write_run(tmp_path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(UsageError, match="holds no complete run"):
        write_page(tmp_path)
