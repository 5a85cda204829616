"""Every flag of every program, whatever its value, is refused in one sentence that names it, or work begins."""

import contextlib
import os
import re
import shlex
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import _commands, _flags, batch_size_study, report
from experiments._errors import UsageError
from experiments.benchmarking import suites
from experiments.studies import driver, jobs
from tests.executors import Stub
from tests.programs import (
    POSITIONAL,
    PROGRAMS,
    StartedError,
    begin,
    run,
    start,
    stop_before_work,
    use_no_flags,
    use_own_flags,
)

ROOT = Path(__file__).parent.parent
# Values that every flag refuses, except those below.
NONSENSE = (
    "", " ", "\t", "nan", "inf", "-inf", "1e308", "-1e308", "-1", "-0.5", "9" * 30, "9" * 400, "9" * 5000, "-" * 9,
    "\0", "a\nb", "\ud800", "x" * 5000, "x/" * 1500, "/dev/null", "/dev/null/x", "/proc/x", "file", "file/x", "1,,2",
    ",", "\N{SNOWMAN}", "'; rm", "None", "[1]", "0x", "1e", "true false", "a=b", "nonsense", "localhost:abc", "h:0",
    "h:70000", ":1", ".", "..", "a:", ":b", "mine:", "a b", '"a',
)  # fmt: skip
# Flags that take a folder, which may have any name but those of `NO_FOLDERS`.
FOLDERS = {"workdir", "data_dir"}
NO_FOLDERS = {
    "", " ", "\t", "9" * 400, "9" * 5000, "\0", "a\nb", "\ud800", "x" * 5000, "x/" * 1500, "/dev/null",
    "/dev/null/x", "/proc/x", "file", "file/x",
}  # fmt: skip
# Values that have the form of a data set's name; the data set is looked up only after work has begun.
DATASETS = {"nan", "inf", "None", "nonsense", "file", "file/x"} | {"localhost:abc", "h:0", "h:70000"}
# Values with the form of a function of the user's own, which is imported only after work has begun.
FUNCTIONS = {"localhost:abc"}


def is_nonsense(name, flag, value):
    """Returns whether a value must be refused before work begins."""
    if POSITIONAL.get(name) == flag:
        return value not in (".", "..")
    if flag in FOLDERS:
        # A data directory is checked only when it is read.
        return value in NO_FOLDERS - ({"/dev/null/x", "/proc/x", "file/x"} if flag == "data_dir" else set())
    if flag == "dataset":
        return value not in DATASETS
    if flag == "target_loss" and name in ("train", "recommend"):
        # A problem may evaluate the logarithm of a density, which may have any sign.
        return value not in ("-1", "-0.5")
    # The study of a problem loads it to know its size.
    later = flag == "model" or (flag == "problem" and name != "batch_size_study")
    return not (later and value in FUNCTIONS)


def outcome(name, flag, value, patch):
    """Returns "begun", or the sentence that refuses a value."""
    try:
        folder = [f"--{POSITIONAL[name]}=."] if POSITIONAL.get(name, flag) != flag else []
        begin(name, [*folder, f"--{flag}={value}"], patch)
    except StartedError:
        return "begun"
    except UsageError as error:
        return str(error)
    return "begun"


def flags_of(name):
    with pytest.MonkeyPatch.context() as patch:
        values = use_own_flags(PROGRAMS[name][0], patch)
        return sorted(set(values) - {"dry_run", "list_presets"}), {n for n in values if values[n].boolean}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flags")
    (folder / "file").write_text("in the way")
    with contextlib.chdir(folder):
        yield folder


def check(place, name, flag, value):
    before = sorted(p.name for p in place.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        # For a process that a study starts, from another folder.
        patch.setenv("PYTHONPATH", str(ROOT))
        said = outcome(name, flag, value, patch)
    # A study creates its folder when it begins.
    if said != "begun":
        assert f"--{flag}" in said, said
        assert "\n" not in said and len(said) < 1000, said
        assert sorted(p.name for p in place.iterdir()) == before
    return said


@pytest.mark.parametrize("name", PROGRAMS)
def test_nonsense_is_refused_by_every_flag(place, name):
    """Gives every flag four fixed values and five that rotate over the flags; `pytest -m slow` gives it all values."""
    names, booleans = flags_of(name)
    for number, flag in enumerate(names):
        turn = (NONSENSE[(number * 5 + k) % len(NONSENSE)] for k in range(5))
        for value in {"", "\0", "9" * 400, "x/" * 1500, *turn}:
            said = check(place, name, flag, value)
            assert (said != "begun") == (flag in booleans or is_nonsense(name, flag, value)), (flag, value, said)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_all_nonsense_is_refused_by_every_flag(place, name):
    names, booleans = flags_of(name)
    for flag in names:
        for value in NONSENSE:
            said = check(place, name, flag, value)
            assert (said != "begun") == (flag in booleans or is_nonsense(name, flag, value)), (flag, value, said)


VALUES = st.one_of(
    st.text(st.characters(blacklist_categories=()), max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=5)), max_size=4).map(
        lambda values: ",".join(map(str, values))
    ),
    st.sampled_from(["digits", "simple_cnn", "1", "0", "2,4", "0.5", "batch", "none", "auto", "norm", "train", "true"]),
)  # fmt: skip


def whatever(place, name, data):
    names, _ = flags_of(name)
    value = data.draw(VALUES)
    check(place, name, data.draw(st.sampled_from(names)), value)


@pytest.mark.parametrize("name", PROGRAMS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_drawn_value_is_refused_or_work_begins(place, name, data):
    whatever(place, name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_each_of_many_drawn_values_is_refused_or_work_begins(place, name, data):
    whatever(place, name, data)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ["--nodrop_remainder=true"], "--nodrop_remainder=true does not take an argument"),
        ("train", ["--epochs=1e308"], "--epochs must be a whole number, not 1e308"),
        ("train", ["--warmup_epochs=1e308"], "--warmup_epochs must be finite and at least 0 and at most 1e+09, not"),
        ("train", [f"--seed={2**63}"], "--seed must be at least 0 and at most 4,294,967,295, not 9223372036854775808"),
        ("train", [f"--num_devices={10**18}"], "--num_devices must be at least 1 and at most 1,024, not"),
        ("train", ["--coordinator_address=localhost:abc"], "--coordinator_address must be HOST:PORT"),
        ("train", ["--step_epochs=1e308"], "--step_epochs must be"),
        ("train", ["nosuch"], "unexpected arguments: nosuch; give a flag as --NAME=VALUE"),
        ("train", ["--batchsize=8"], "Unknown command line flag 'batchsize'. Did you mean: batch_size"),
        ("benchmark", ["--batch_sizes=a"], "--batch_sizes must be numbers, as in 6,60,600, not a"),
        ("benchmark", ["--rounds=0"], "--rounds must be at least 1 and at most 10,000, not 0"),
        ("benchmark", ["--seconds=inf"], "--seconds must be finite and greater than 0 and at most 3600, not inf"),
        ("evaluate", ["/dev/null"], "--checkpoint=/dev/null is not a folder"),
        ("report", ["nosuch"], "--workdir=nosuch: there is no such folder"),
    ],
)  # fmt: skip
def test_a_refused_flag_prints_one_line_and_exits_with_2(place, capsys, monkeypatch, name, arguments, message):
    stop_before_work(name, monkeypatch)
    assert run(PROGRAMS[name][0], arguments, monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


def test_checking_a_folder_does_not_create_it(place, monkeypatch):
    with pytest.raises(StartedError):
        begin("train", ["--workdir=elsewhere/some where/deep"], monkeypatch)
    assert not (place / "elsewhere").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_refused(place, monkeypatch):
    (place / "closed").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="--workdir=closed/run cannot be written to"):
        begin("train", ["--workdir=closed/run"], monkeypatch)


def test_a_reader_that_takes_a_part_of_the_help_gets_no_traceback(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed, monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["report", "--help"])
        patched.setattr(sys, "stdout", closed)
        use_no_flags(report, patched)
        report.run()
        # What is still buffered goes to the null device.
        closed.flush()


def test_ctrl_c_ends_with_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(PROGRAMS["train"][0], "resolve", interrupted)
    assert run(PROGRAMS["train"][0], [], monkeypatch) == _flags.INTERRUPTED_STATUS
    assert capsys.readouterr().err == "\nstopped by Ctrl-C; run the same command again to resume\n"


@pytest.mark.parametrize("raised", [AssertionError(), RuntimeError("Unable to initialize backend 'tpu': no chip")])
def test_missing_devices_are_reported_in_one_line_by_every_program(raised, monkeypatch, capsys):
    def fails(*_, **__):
        raise raised

    monkeypatch.setattr(jax, "local_devices", fails)
    for name, place, work in (("train", PROGRAMS["train"][0], "resolve"), ("benchmark", suites, "measure")):
        monkeypatch.setattr(place, work, fails)
        assert run(PROGRAMS[name][0], [], monkeypatch) == 2
        assert re.fullmatch(
            r"error: JAX_PLATFORMS=cpu asks for devices that are not found.*\n", capsys.readouterr().err
        )


def test_an_internal_error_keeps_its_traceback(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("ours")

    monkeypatch.setattr(PROGRAMS["train"][0], "resolve", fails)
    with pytest.raises(RuntimeError, match="ours"):
        run(PROGRAMS["train"][0], [], monkeypatch)


def test_a_printed_command_can_be_pasted(place):
    from experiments.studies.jobs import Job, command

    words = ["python", *command(Job("a", {"dataset": "mine:data"}), place / "some where's")]
    assert shlex.split(shlex.join(words)) == words


@pytest.mark.parametrize("dry_run", [[], ["--dry_run"]])
@pytest.mark.parametrize("flag", ["--model=nosuch", "--norm=nosuch", "--num_devices=1000"])
def test_a_study_whose_runs_cannot_begin_is_refused(place, monkeypatch, flag, dry_run):
    """A thousand devices are refused because they do not divide the batch sizes of the runs."""
    use_own_flags(batch_size_study, monkeypatch)
    monkeypatch.setattr(driver.Runner, "_go_on", start)
    name = flag.partition("=")[0]

    def study():
        _flags.parse(["study", "--workdir=hopeless", "--parts=ladder", flag, *dry_run])
        batch_size_study.main()

    with pytest.raises(UsageError, match=name):
        study()


def test_a_study_with_failed_runs_names_them_and_exits_with_1(tmp_path, monkeypatch, capsys):
    failing = Stub(lambda task: {"error": "no luck", "diverged": False})
    with driver.Runner(tmp_path, lambda _: failing) as runner:
        runner.run_all([jobs.Job("first", {"batch_size": 8}), jobs.Job("second", {"batch_size": 16})])
    # Each was tried twice.
    assert [task.key for task in failing.done] == ["first", "second", "first", "second"]
    assert runner.failed() == ["first", "second"]
    assert _commands.status_of_study(runner.failed()) == 1 and "first, second" in capsys.readouterr().err
    assert _commands.status_of_study([]) == 0
