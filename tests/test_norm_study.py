"""The norm study: its jobs, and its report from rows that are made up."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from experiments import _files, _flags, norm_study
from experiments._errors import UsageError
from experiments.records.norm_study import CLASSIFICATION, NORMS, TASKS
from experiments.records.questions.norm import Shift
from experiments.reporting import norm_study_figure, write_norm_study_page
from experiments.reporting.norm_study import cells, figure
from experiments.reporting.norm_study.findings import finding
from experiments.studies import activation_shift, driver, norm
from experiments.training import session
from experiments.training.config import presets
from experiments.training.config.options import TrainConfig
from tests import made, programs, rig

ROOT = Path(__file__).parent.parent
SIZE = norm.PRESETS["full"]


def test_every_norm_has_a_job_or_a_twin_at_every_size():
    jobs = norm.grid_jobs(SIZE, list(TASKS.values()), 8)
    keys = {job.key for job in jobs}
    assert len(keys) == len(jobs) == (3 + 2) * (5 + 5 + 6 + 7 + 7)
    assert "grid-classification-span16-p4-seed0" in keys and "grid-classification-span32-p4-seed0" not in keys
    for job in [*jobs, *norm.rate_jobs(SIZE, 8)]:
        config = presets.configure(None, job.options)
        assert config.batch_size % 8 == 0 and config.num_devices == 8


@pytest.mark.parametrize(("span", "norm_", "per_device"), [(16, "batch", 2), (8, "local", 8)])
def test_a_span_of_all_or_of_a_device_is_what_is_run_in_its_place(span, norm_, per_device):
    given = {"batch_size": 8 * per_device, "model": "tests.own:model", "warmup_epochs": 0}
    spans = rig.first_steps(TrainConfig(**given, norm="batch", span=span), rig.tiny(128), 2, 8)
    other = rig.first_steps(TrainConfig(**given, norm=norm_), rig.tiny(128), 2, 8)
    for a, b in zip(jax.tree.leaves(spans), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def row(job, score, milliseconds=10.0, **more):
    """The row of a job that reached a score in 100 updates; None: its loss was not finite."""
    if score is None:
        return made.row(job.key, job.options, **{"error": "the loss is nan at step 3", "diverged": True, **more})
    result = made.result(0.5, mean_iou=score) if "segmentation" in job.key else made.result(score)
    summary = made.summary(updates=100, seconds={"compute": milliseconds / 10}, results={"test": result})
    return made.row(job.key, job.options, command="python -m experiments.train", summary=summary, **more)


def write(folder, rows):
    (folder / "results.jsonl").write_bytes(b"".join(map(_files.line, rows)))


def found(folder):
    """The sentence on the classification."""
    return finding(cells.read(folder).grid(CLASSIFICATION), CLASSIFICATION)


def made_up(job):
    """Local statistics fail where a device has little; frozen ones do not end at all."""
    options = job.options
    if options["norm"] == "frozen":
        return row(job, None)
    small = options["norm"] == "local" and options["batch_size"] < 32
    return row(job, (0.2 if small else 0.9) + 0.01 * options["seed"], 9.0 if options["norm"] == "local" else 18.0)


def test_the_report_says_what_was_found(tmp_path):
    with pytest.raises(UsageError, match="holds no study"):
        write_norm_study_page(tmp_path)
    jobs = norm.grid_jobs(SIZE, list(TASKS.values()), 8)
    shift = Shift(mean=0.25, std=1.5)
    rates = [
        row(job, None if job.options["norm"] == "frozen" and job.options["learning_rate"] > 0.1 else 0.8, shift=shift)
        for job in norm.rate_jobs(SIZE, 8)
    ]
    # A run whose process ended is no result: it is tried again.
    crashed = made.row(f"{jobs[0].key}1", jobs[0].options, error="its process ended")
    write(tmp_path, [*map(made_up, jobs), *rates, crashed])
    text = re.sub(r"<svg.*?</svg>", "", write_norm_study_page(tmp_path).read_text(), flags=re.DOTALL)
    assert (
        "Classification: with 1 per device local statistics reach 21.0% and synchronised ones 91.0% (a loss that is "
        "clear of the spread); with 2" in text
    )
    assert "2.00 times as long as one with local statistics (2.00 to 2.00" in text
    assert "Batch statistics train at rates up to 0.5 and statistics of the training set" in text
    assert "fixed before the first update, train at rates up to 0.05." in text
    assert "of 4 not finite" not in text
    assert "not finite" in text and "0.25, x 1.50" in text
    # Three seeds, a hundredth apart.
    assert f"91.0 ± {stats.t.ppf(0.975, 2) / np.sqrt(3):.1f}" in text
    cells = re.findall(r"<td>span 16</td>(.*?)</tr>", text)
    assert cells[0].startswith('<td class="n">–</td><td class="n">=</td><td class="n">91.0')


def test_every_norm_has_a_look_of_its_own():
    assert set(figure.LOOKS) == {norm.key for norm in NORMS.values()}
    assert len({(look.colour, look.marker) for look in figure.LOOKS.values()}) == len(NORMS)


def test_every_preset_has_a_budget_and_seeds_for_every_task():
    for size in norm.PRESETS.values():
        assert size.budgets.keys() == size.seeds.keys() == TASKS.keys() and set(size.norms) <= NORMS.keys()


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("grid-classification-local-p0-seed0", {"num_devices": 8, "steps": 9}, "a key of the form grid-"),
        ("grid-classification-local-p1-seed0", {"steps": 9}, "the option 'num_devices'"),
        ("grid-classification-local-p1-seed0", {"num_devices": 8}, "the option 'steps'"),
        ("rate-batch-0.5-seed0", {}, "the option 'learning_rate'"),
    ],
)
def test_a_row_that_a_report_cannot_place_is_left_out(tmp_path, caplog, key, options, message):
    whole = made.row("grid-classification-local-p1-seed0", {"num_devices": 8, "steps": 9, "learning_rate": 0.5})
    line = {**json.loads(_files.line(whole)), "key": key, "options": options}
    (tmp_path / "results.jsonl").write_text(json.dumps(line))
    assert cells.read(tmp_path) == ([], 1) and message in caplog.text
    # A run without a result is not placed.
    failed = {"key": key, "options": options, "error": "its process ended"}
    (tmp_path / "results.jsonl").write_text(json.dumps(failed))
    assert cells.read(tmp_path) == ([], 0)


@pytest.mark.parametrize("changes", [{"seconds": {}}, {"updates": 0}])
def test_a_row_without_the_time_of_an_update_is_left_out(tmp_path, changes):
    for key in ("grid-classification-local-p1-seed0", "rate-batch-0.5-seed0"):
        whole = made.row(key, {"num_devices": 8, "steps": 9, "learning_rate": 0.5})
        line = json.loads(_files.line(whole))
        line["summary"] |= changes
        (tmp_path / "results.jsonl").write_text(json.dumps(line))
        assert cells.read(tmp_path) == ([], 1)


def test_the_figure_has_a_line_for_each_norm_that_ended(tmp_path):
    write(tmp_path, map(made_up, norm.grid_jobs(SIZE, [CLASSIFICATION], 8)))
    (axes,) = norm_study_figure(tmp_path).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == set(NORMS) - {"frozen"}
    assert lines["local"].get_ydata() == pytest.approx([21, 21, 91, 91, 91])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8", "32"]


def test_what_is_not_clear_of_the_spread_is_not_said_to_be(tmp_path):
    """Differences of 1 with a spread of 3; and one seed, whose spread nobody knows."""
    jobs = norm.grid_jobs(SIZE._replace(norms=("local", "synchronised")), [CLASSIFICATION], 8)
    scores = {"local": (0.80, 0.83, 0.86), "batch": (0.81, 0.84, 0.87)}
    rows = [row(job, scores[job.options["norm"]][job.options["seed"]]) for job in jobs]
    write(tmp_path, rows)
    assert "84.0% (not clear of the spread)" in found(tmp_path)
    write(tmp_path, [r for r in rows if r.seed == 0])
    assert "81.0% (one seed, whose spread is not known)" in found(tmp_path)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    """Coverage for three seeds from a normal distribution; 2,000 samples, four standard errors."""
    samples = np.random.default_rng(0).normal(size=(2_000, 3))
    held = np.mean([abs(s.mean()) <= cells.half_width(s) for s in samples])
    assert abs(held - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2_000)


def test_the_shift_of_a_run_is_that_of_its_activations(tmp_path):
    """A run of no learning has none for the first norm, however long; its batches leave the running averages noisy."""
    options = {"batch_size": 64, "warmup_epochs": 0, "steps": 2, "num_devices": 1, "norm": "frozen"}
    shifts = []
    for rate in (0.0, 0.05):
        workdir = tmp_path / f"{rate}"
        session.train(TrainConfig(**options, learning_rate=rate, weight_decay=0.0, workdir=str(workdir)))
        shifts.append(activation_shift.shift_of(workdir))
    still, moved = shifts
    # The images that the statistics were made from, as many on one device.
    assert still["mean"] < 1e-4 and abs(still["std"] - 1) < 1e-4
    assert moved["mean"] > 2 * still["mean"] or abs(moved["std"] - 1) > 2 * abs(still["std"] - 1)


def study(*flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.norm_study", *flags], cwd=ROOT, text=True, capture_output=True, check=False
    )


def test_the_command_runs_a_study_once(tmp_path):
    """Checked on two norms, each with one example on each of two devices."""
    flags = ("--preset=quick", "--norms=local,synchronised", "--tasks=classification", "--per_device_batch_sizes=1")
    flags = (*flags, "--num_devices=2", f"--workdir={tmp_path / 'study'}")
    planned = study(*flags, "--dry_run")
    assert planned.stdout.count("python -m experiments.train") == 2 and not list(tmp_path.iterdir()), planned.stderr
    first = study(*flags)
    assert first.returncode == 0 and "2 of 2" in first.stdout, first.stderr
    assert [row.ended.updates for row in cells.read(tmp_path / "study").rows] == [100, 100]
    assert study(*flags).stdout == f"report      {tmp_path / 'study' / 'report.html'}\n"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--norms=synchronized", "unknown norm 'synchronized'; there are: .* Did you mean 'synchronised'.* --norms"),
        ("--tasks=classify", "unknown task 'classify'; there are: classification, segmentation"),
        ("--preset=ful", "unknown preset 'ful'; there are: full, quick. Did you mean 'full'"),
        ("--per_device_batch_sizes=1,two", "--per_device_batch_sizes must be whole numbers, as in 1,2,32, not 1,two"),
        ("--per_device_batch_sizes=0", "--per_device_batch_sizes must be at least 1, not 0"),
        ("--per_device_batch_sizes=", "--per_device_batch_sizes is empty"),
        ("--num_devices=0", "--num_devices must be at least 1 and at most 1,024, not 0"),
    ],
)
def test_what_cannot_be_studied_is_refused(monkeypatch, flag, message):
    with pytest.raises(UsageError, match=message):
        programs.begin("norm_study", [flag], monkeypatch)


def test_flags_take_the_place_of_the_preset(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(driver, "try_out", lambda jobs: None)
    programs.use_own_flags(norm_study, monkeypatch)
    flags = ["--preset=quick", "--norms=local", "--tasks=classification", "--per_device_batch_sizes=3,5", "--dry_run"]
    _flags.parse(["study", *flags, f"--workdir={tmp_path / 'study'}"])
    assert norm_study.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [sorted(re.findall(r"--norm=\w+|--batch_size=\d+", line)) for line in lines] == [
        ["--batch_size=24", "--norm=local"],
        ["--batch_size=40", "--norm=local"],
    ]


def test_what_no_run_can_begin_with_is_refused_even_by_a_dry_run(tmp_path, monkeypatch):
    """In the process that would train: 1,000 devices of a CPU wait for each other for minutes."""
    programs.use_own_flags(norm_study, monkeypatch)
    _flags.parse(["study", "--preset=quick", "--num_devices=1000", "--dry_run", f"--workdir={tmp_path / 'study'}"])
    with pytest.raises(UsageError, match="no run of this study can begin with --num_devices=1000: --num_devices=1000,"):
        norm_study.main()
    assert not list(tmp_path.iterdir())
