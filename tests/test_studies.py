"""Studies: jobs that are kept as they end and not run twice, and the report of the large-batch study."""

import json

import pytest

from experiments._errors import UsageError
from experiments.reporting import large_batch as report
from experiments.studies import jobs, large_batch

TINY = {
    "dataset": "tests.own:dataset",
    "model": "tests.own:model",
    "batch_size": 16,
    "steps": 2,
    "warmup_epochs": 0,
    "num_devices": 1,
}


def test_a_study_keeps_each_run_and_goes_on_where_it_was(tmp_path, capsys):
    good, bad = jobs.Job("good", TINY), jobs.Job("bad", {**TINY, "batch_size": 1000})
    rows = jobs.run([good, bad], tmp_path)
    assert rows[0]["summary"]["updates"] == 2 and "--batch_size=16" in rows[0]["command"]
    assert "--batch_size=1000 is larger than the training set of 64 examples" in rows[1]["error"]
    # A line that was cut short costs itself alone; what is done stays done, what failed is tried again.
    with (tmp_path / jobs.FILE).open("a") as file:
        file.write('{"key": "cut')
    capsys.readouterr()
    again = jobs.run([good, jobs.Job("bad", TINY)], tmp_path)
    assert again[0] == rows[0] and "summary" in again[1]
    assert "good" not in capsys.readouterr().out
    assert {row["key"]: "summary" in row for row in jobs.read(tmp_path / jobs.FILE)} == {"good": True, "bad": True}
    # Other options under the same key are another run.
    changed = jobs.run([jobs.Job("good", {**TINY, "steps": 3})], tmp_path)
    assert changed[0]["summary"]["updates"] == 3


def test_a_run_that_takes_its_process_with_it_costs_its_row_alone(tmp_path):
    fatal, good = jobs.Job("fatal", {**TINY, "dataset": "tests.own:fatal"}), jobs.Job("good", TINY)
    (first, second), (third,) = jobs.run([fatal, good], tmp_path), jobs.run([jobs.Job("none", TINY)], tmp_path)
    assert first["error"] == f"its process ended with exit status 7; see {tmp_path / 'worker.log'}"
    assert second["summary"]["updates"] == third["summary"]["updates"] == 2


def row(key, options, accuracy):
    summary = {"results": {"test": {"accuracy": accuracy}}, "updates": 10, "seconds": {"compute": 5.0}}
    return {"key": key, "options": options, "summary": summary, "command": "python -m experiments.train"}


def test_the_best_of_the_search_is_run_with_every_seed():
    jobs_ = large_batch.search_jobs({"dataset": "mnist"})
    assert len({job.key for job in jobs_}) == len(jobs_) == 38
    searched = [row(job.key, job.options, 0.9 + 0.001 * i) for i, job in enumerate(jobs_)]
    finals = large_batch.final_jobs({"dataset": "mnist"}, searched)
    assert len(finals) == 4 * 3 and {job.options["seed"] for job in finals} == {0, 1, 2}
    chosen = finals[0].options
    assert chosen["batch_size"] == 8192 and chosen["optimizer"] == "lamb" and chosen["learning_rate"] == 0.15
    assert "validation_examples" not in chosen


def test_every_rung_of_the_ladder_is_a_configuration_that_has_a_name():
    rungs = large_batch.ladder_jobs({"dataset": "mnist"})
    assert len(rungs) == 3 * len(report.LADDER) == 3 * len(large_batch.RUNGS)
    first, last = rungs[0].options, rungs[7].options
    assert first["decay_all"] and first["warmup_epochs"] == 0 and first["label_smoothing"] == 0
    assert last["epochs"] == 24 and last["optimizer"] == "nesterov" and not last["decay_all"]


def test_the_report_has_a_section_for_what_was_run(tmp_path):
    with pytest.raises(UsageError, match="holds no study"):
        report.write_large_batch_page(tmp_path)
    rows = [
        row(f"search-b64-nesterov-{rate}", {"batch_size": 64, "optimizer": "nesterov", "learning_rate": rate}, score)
        for rate, score in ((0.1, 0.97), (0.3, 0.98), (1.0, 0.99))
    ]
    rows += [
        row(f"final-b{b}-seed{s}", {"batch_size": b, "optimizer": "lars", "learning_rate": 1.0}, 0.9 + s / 100)
        for b in (64, 8192)
        for s in range(3)
    ]
    (tmp_path / jobs.FILE).write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = report.write_large_batch_page(tmp_path).read_text()
    assert "1: 99.00*" in text and text.count("<svg") == 1
    assert "91.00</td>" in text and "90.00</td>" in text and "92.00</td>" in text
    assert "batch of 8192</h2>" not in text
