"""The batch-size study as a whole, at a size of seconds: its parts, its report in a browser, its command."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from msgspec.structs import replace

from experiments._errors import UsageError
from experiments.records.questions.generalisation import MinimumRow
from experiments.records.questions.ramp import RampRow
from experiments.reporting import study_sections, write_study_page
from experiments.studies import batch_size, convergence, driver, jobs, settings
from experiments.studies.batch_size import note_command
from experiments.studies.questions import backwards, generalisation, ladder, ramp, smoothness, time
from experiments.studies.smoothness import swing
from experiments.training.evaluation.checkpoint import restore
from tests import made

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TINY = settings.study_of(
    {"dataset": "tests.own:larger", "model": "tests.own:model", "num_devices": 1},
    time.Setting((8, 15, 16), examples=80, rounds=2),
    smoothness.Setting((4, 16), 20, 16, 0.02, 80, 2),
    convergence.Setting(0.7, (8, 48), (8, 32), (0.01, 0.02, 0.04), 20, (0, 1)),
    backwards.Setting(batch_size=32, k=2, epochs=1, seeds=(0,)),
    ladder.Setting(batch_size=32, epochs=3, seeds=(0,)),
    generalisation.Setting((8, 32), epochs=2, steps=10, seeds=(0, 1)),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study with all its parts."""
    folder = tmp_path_factory.mktemp("study")
    batch_size.run(TINY, TINY.parts, folder)
    return folder


def test_every_question_is_answered_from_the_files_alone(study):
    rows = jobs.read(study / jobs.FILE)
    assert [row.error for row in rows if row.error is not None] == []
    assert [section.number for section in study_sections(study)] == [1, 2, 3, 4, 5, 6, 7, 8, 12]
    made = [
        "python -m experiments.batch_size_study --preset=tiny",
        "python -m experiments.batch_size_study --parts=ramp",
    ]
    for command in [*made, *made]:
        note_command(study, command)
    text = write_study_page(study).read_text()
    assert text.count("<figure") == 8
    commands = [re.sub(r"<[^>]*>", "", shown) for shown in re.findall(r"<pre>(.*?)</pre>", text, flags=re.DOTALL)]
    assert commands[0].splitlines() == made
    assert not re.search(r"(src|href)=.?http|@import|url\((?!#)", text), "the page needs something beside it"
    found = json.loads((study / "convergence.json").read_text())
    for row in rows:
        if row.kind == "tuned" and (reached := convergence.updates_to_target(row)):
            assert row.ended.result.accuracy >= found["target"]
            assert row.ended.updates == reached
    # What is trained at the end are the rates that the search found.
    minima = [row for row in rows if isinstance(row, MinimumRow)]
    rates = {entry["batch_size"]: entry["rate"] for entry in found["tuned"]}
    assert all(row.learning_rate == rates[row.batch_size] for row in minima) and len(minima) == 8


def test_a_ramp_beside_a_fixed_batch_and_a_falling_rate(tmp_path):
    setting = ramp.Setting(batch_size=4, learning_rate=0.05, epochs=4, seeds=(0, 1))
    study = TINY.replace(setting)
    batch_size.run(study, ["ramp"], tmp_path)
    rows = {row.key: row for row in jobs.read(tmp_path / jobs.FILE) if isinstance(row, RampRow)}
    courses = {key: row.course for key, row in rows.items() if row.course is not None}
    assert len(rows) == len(courses) == 6
    fixed, step, auto = (rows[f"ramp-{way}-seed0"] for way in ("fixed", "step", "auto"))
    for row in rows.values():
        evaluations = courses[row.key].evaluations
        assert len(evaluations) == 4
        assert evaluations[-1][0] == row.ended.updates
        assert evaluations[-1][1] == row.ended.result.accuracy
    assert fixed.ended.updates == step.ended.updates > auto.ended.updates
    assert fixed.course.batch_sizes == [] and auto.course.batch_sizes[0][1] == 8
    # In the first epoch nothing is different yet.
    assert fixed.course.evaluations[0] == step.course.evaluations[0] == auto.course.evaluations[0]
    section, claims = study_sections(tmp_path)
    assert claims.number == 12 and "a batch that follows the noise scale" in "".join(claims.parts)
    assert section.number == 9 and f"{auto.ended.updates:,} updates" in section.answer
    assert "fixed batch, step schedule" in write_study_page(tmp_path).read_text()


def test_a_study_that_is_done_runs_nothing_again_and_says_the_same(study, capsys):
    names = [f"{part}.json" for part in TINY.parts]
    before = [(study / name).read_text() for name in names]
    rows = (study / jobs.FILE).read_text()
    batch_size.run(TINY, TINY.parts, study)
    assert [(study / name).read_text() for name in names] == before and (study / jobs.FILE).read_text() == rows
    lines = batch_size.describe(TINY, TINY.parts, study)
    assert all(": 0 runs" in line for line in lines[:-1]) and len(lines) == 7
    # Its batches are too small to tell how fast the machine is.
    assert lines[-1] == "in all    about 1 minute, if it were simple_cnn on two cores"


def test_what_is_left_of_a_study_follows_from_what_is_there(study, tmp_path):
    """Checked for a study that was stopped in its search, and for one that has not begun."""
    data = settings.data_of(TINY)
    rows = (study / jobs.FILE).read_text().splitlines(keepends=True)
    cut = next(i for i, row in enumerate(rows) if '"tuned-b32-' in row) + 1
    (tmp_path / jobs.FILE).write_text("".join(rows[:cut]))
    left = batch_size.planned(TINY, "convergence", data, driver.Runner(tmp_path))
    waiting = {job.key for job in left if not driver.Runner(tmp_path).is_done(job)}
    found = {json.loads(row)["key"] for row in rows[cut:] if '"tuned-' in row}
    assert waiting and all(key.startswith("tuned-b32-") for key in waiting)
    assert len(waiting & found) >= 2, "the search goes on about the best rate of the size before"
    fresh = batch_size.planned(TINY, "convergence", data, driver.Runner(tmp_path / "none"))
    # Two sizes at one rate and two tuned, each with two seeds; and a search of three rates each.
    assert len(fresh) == 2 * 2 + 2 * (3 + 2)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_fits_a_phone_and_a_desk(study, tmp_path, width):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("there is no Chromium to open the report in")
    page = write_study_page(study).read_text()
    # In a frame of that width, which the page takes for its screen; a window can't be made so narrow.
    script = """
      const frame = document.createElement("iframe");
      frame.style = "border: 0; height: 900px; width: " + WIDTH + "px";
      frame.onload = () => {
        const root = frame.contentDocument.documentElement;
        const figures = [...root.querySelectorAll("svg")].map((svg) => svg.getBoundingClientRect().width);
        document.title = JSON.stringify({wide: root.scrollWidth, figures});
      };
      frame.srcdoc = document.querySelector("textarea").value;
      document.body.append(frame);"""
    outer = tmp_path / "outer.html"
    text = f"<textarea hidden>{escape(page)}</textarea>"
    script = script.replace("WIDTH", str(width))
    outer.write_text(f"<!doctype html><title>none</title><body>{text}<script>{script}</script>")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    ended = subprocess.run(
        [*command, "--virtual-time-budget=20000", f"--user-data-dir={tmp_path}/profile", outer.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = json.loads(re.search(r"<title>(.*?)</title>", ended.stdout)[1])
    assert "CONSOLE" not in ended.stderr
    assert seen["wide"] <= width
    assert len(seen["figures"]) == 8 and all(0.7 * min(width, 480) < w <= width for w in seen["figures"])


def test_the_step_time_of_made_up_runs_is_found():
    """The times are t = 2 ms + B / 1,000 per second; 64 is a tenth faster in computing, and 1 ms is added in total."""

    def row(size, number):
        seconds = (0.002 + size / 1000) * (0.9 if size == 64 else 1)
        spent = {"compute": 10 * seconds, "log": 0.01, "start": 3.0, "compile": 2.0, "in all": 5.2 + 10 * seconds}
        summary = made.summary(seconds=spent, updates=10, devices="1 x cpu" if size == 60 else "2 x cpu")
        return made.row(f"time-b{size}", {"batch_size": size, "seed": number}, summary=summary)

    found = time.analyse([row(size, r) for size in (1, 4, 16, 60, 62, 64, 256) for r in (0, 1)], 1000)
    by_size = {entry.batch_size: entry for entry in found.sizes}
    assert by_size[4].epoch_computing == pytest.approx(250 * 0.006)
    assert by_size[4].epoch_in_all == pytest.approx(250 * 0.007)
    assert found.fit is not None and found.fit.knee == pytest.approx(2, rel=0.1)
    (beside,) = found.neighbours
    assert (beside.batch_size, beside.power, beside.kind) == (62, 64, "neither")
    expected = 62 / 0.064 / (64 / (0.9 * 0.066))
    assert beside.throughput == pytest.approx([expected] * 2)
    # Seven eighths of an epoch are no epoch; and 60 was timed on fewer devices, so it stands beside nothing.
    assert time.analyse([row(256, 0)], 1000).sizes[0].epoch_computing == pytest.approx(1000 / 256 * 0.258)
    assert time.analyse([], 1000).sizes == [] and time.analyse([], 1000).fit is None


def test_the_swing_and_the_noise_scale_of_made_up_runs_are_found():
    random = np.random.default_rng(0)
    rows = []
    for size in (4, 16, 64):
        losses = 2 / (1 + 0.01 * np.arange(4000)) + random.normal(size=4000) / np.sqrt(size)
        assert swing(losses) == pytest.approx(size**-0.5, rel=0.05)
        rows.append(made.row(f"swing-b{size}", {"batch_size": size}, losses=losses.tolist()))
    # |G|^2 falls from 1 to 0.1 and tr Sigma stays at 50.
    norm2 = np.geomspace(1, 0.1, 100)
    noise = [(i, 1.0, n + random.normal() * 0.02, 50 + random.normal()) for i, n in enumerate(norm2)]
    rows.append(made.row("noise-b16", {"batch_size": 16}, noise=noise))
    found = smoothness.analyse(rows)
    assert found.power == pytest.approx(-0.5, abs=0.03)
    truth = [50 / part.mean() for part in np.array_split(norm2, 5)]
    assert [w.scale for w in found.noise] == pytest.approx(truth, rel=0.15)
    assert all(w.interval[0] < w.scale < w.interval[1] for w in found.noise)
    assert smoothness.analyse([]).power is None and smoothness.analyse([replace(rows[-1], noise=[])]).noise == []


def test_the_eigenvalue_of_a_run_is_that_of_its_dense_hessian(study):
    row = next(row for row in jobs.read(study / jobs.FILE) if row.key.startswith("minimum-epochs-b8-"))
    own = {name: row.options[name] for name in ("model", "dataset")}
    restored = restore(jobs.workdir(jobs.Job(row.key, row.options), study), num_devices=1, **own)
    flat, unravel = jax.flatten_util.ravel_pytree(restored.state.params)
    train, recipe = restored.data.train, restored.recipe
    images = (train.images / 255.0 - recipe.mean) / recipe.std

    def loss(x):
        logits = restored.model.apply({"params": unravel(x)}, images, train=False)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), train.labels[:, None], axis=1))

    largest = np.linalg.eigvalsh(jax.hessian(loss)(flat))[-1]
    assert row.minimum.eigenvalue == pytest.approx(largest, rel=0.01)
    boxes = row.minimum.sharpness
    assert boxes["0.001"] > boxes["0.0005"] > 0


def test_the_study_is_of_ones_own_data_and_fits_them(tmp_path):
    own = settings.changed(
        settings.PRESETS["quick"],
        {"dataset": "tests.own:larger", "model": None},
        target=0.5,
        batch_sizes=(8, 64, 512),
        rates=(0.1, 0.2),
        seeds=(3,),
    )
    assert own.options == {"dataset": "tests.own:larger"}
    kinds = (ladder.Setting, backwards.Setting, generalisation.Setting, convergence.Setting, ramp.Setting)
    assert {own.of(kind).seeds for kind in kinds} == {(3,)}
    data = settings.data_of(own)
    assert (data.examples, data.held_out) == (256 - 21, 21)
    fitted = settings.fitted(own, data.examples, own.parts)
    assert fitted.of(convergence.Setting).tuned_sizes == fitted.of(generalisation.Setting).batch_sizes == (8, 64)
    assert fitted.of(ladder.Setting).batch_size == 32 and fitted.of(backwards.Setting).batch_size == 32
    assert max(fitted.of(time.Setting).batch_sizes) <= 235
    for part in fitted.parts:
        assert batch_size.planned(fitted, part, data, driver.Runner(tmp_path)), part
    with pytest.raises(
        UsageError, match=r"convergence at least 2 must be .* the 10 examples .* are \[8\]; give --batch_si"
    ):
        settings.fitted(own, 10, ["time", "convergence"])
    for part in ("grid", "generalisation"):
        with pytest.raises(UsageError, match=rf"{part} at least 1 must be .* the 7 examples .* are \[\]"):
            settings.fitted(own, 7, [part])
    # One batch size is enough for what compares none.
    one = settings.fitted(settings.changed(own, {}, batch_sizes=(8,)), 235, ["grid", "ramp"])
    assert one.of(ramp.Setting).batch_size == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_sizes": (64, 8)}, r"--batch_sizes must rise, as 16,64,256, not \[64, 8\]"),
        ({"batch_sizes": ()}, "--batch_sizes must be positive"),
        ({"batch_sizes": (8, 64), "rates": (0.0, 0.1)}, "--learning_rates must be positive"),
        ({"rates": (0.1, math.inf)}, "--learning_rates must be positive"),
        ({"seeds": (-1,)}, "--seeds must be at least 0"),
        ({"seeds": (0, 100)}, "100 is the seed of the search"),
        ({"target": 98.0}, "a share of 1, such as 0.98, not 98.0"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        settings.changed(TINY, {}, **given)


def command(*flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.batch_size_study", *flags],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )


def test_the_command_says_what_it_would_do_and_refuses_what_it_cannot():
    dry = command("--preset=quick", "--dry_run", "--parts=time,ladder", "--workdir=runs/none")
    assert dry.returncode == 0, dry.stderr
    assert "--batch_size=1024" in dry.stdout and re.search(r"in all    about \d+ minutes", dry.stdout)
    assert not (ROOT / "runs" / "none").exists()
    for flags, message in (
        (
            ["--preset=quik"],
            "unknown preset 'quik'; there are: cifar10, mnist, mnist_full, quick. Did you mean 'quick'",
        ),
        (["--parts=tim"], "unknown part 'tim'"),
        (["--batch_sizes=8,x"], "--batch_sizes must be numbers, as in 1,2,32, not 8,x"),
    ):
        ended = command(*flags)
        assert ended.returncode == 2 and message in ended.stderr, ended.stderr


def test_a_folder_of_other_data_is_refused_and_other_grids_are_not_shown(study, tmp_path):
    shutil.copytree(study, tmp_path / "copy", ignore=shutil.ignore_patterns("runs"))
    other = settings.changed(TINY, {"model": "tests.own:other"})
    with pytest.raises(UsageError, match=r"--model: tests.own:model there, tests.own:other here.*another --workdir"):
        batch_size.run(other, ["time"], tmp_path / "copy")
    fewer = TINY.replace(dataclasses.replace(TINY.of(time.Setting), batch_sizes=(8, 16)))
    batch_size.run(fewer, ["time"], tmp_path / "copy")
    assert [e["batch_size"] for e in json.loads((tmp_path / "copy" / "time.json").read_text())["sizes"]] == [8, 16]
