"""A run's output in a terminal: nothing is written into the progress bar, and no line is broken within a word."""

import re
import threading

import pytest

from experiments.training import progress, terminal
from experiments.training.config.options import TrainConfig
from experiments.training.session import train
from tests.terminals import Terminal

WIDTHS = (40, 80, 120)


@pytest.fixture(params=WIDTHS)
def screen(request, monkeypatch):
    """Returns a terminal that the test has to install, because pytest replaces the streams after the fixtures."""
    screen = Terminal(request.param)
    monkeypatch.setattr(terminal, "MIN_REDRAW_SECONDS", 0.0)
    return screen


def test_the_status_line_gives_way_to_printed_text(screen, monkeypatch):
    screen.install(monkeypatch)
    with terminal.StatusLine() as line:
        line.draw(lambda columns: "#" * columns)
        assert screen.rows == ["#" * (screen.columns - 1)]
        print("memory")
        line.draw(lambda columns: "##")
        print("without its ", end="")
        # The status line is not drawn into an incomplete line.
        line.draw(lambda columns: "###")
        print("end")
        line.draw(lambda columns: "#" * 5 * columns)
        print("to the standard error", file=terminal.sys.stderr)
        line.draw(lambda columns: "####")
    assert screen.rows == ["memory", "without its end", "to the standard error", ""]
    assert not screen.wrapped and terminal.sys.stdout is screen


def test_the_status_line_is_removed_when_an_error_is_raised(screen, monkeypatch):
    screen.install(monkeypatch)
    line = terminal.StatusLine()

    def fail():
        with line:
            line.draw(lambda columns: "#" * columns)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert screen.rows == [""] and terminal.sys.stderr is screen


@pytest.mark.parametrize("why", ["no terminal", "dumb", "hidden"])
def test_no_status_line_is_drawn_without_a_terminal_that_can_show_it(why, screen, monkeypatch):
    screen.install(monkeypatch)
    if why == "no terminal":
        monkeypatch.setattr(screen, "isatty", lambda: False)
    if why == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    with terminal.StatusLine(hidden=why == "hidden") as line:
        line.draw(lambda columns: "#")
        print("kept")
    assert screen.rows == ["kept", ""]


def test_the_output_of_a_run_fits_any_width(screen, tmp_path, monkeypatch):
    """Every row is a printed line or the bar, and the terminal breaks no row except within a long path."""
    bars, draw = [], terminal.StatusLine.draw
    monkeypatch.setattr(terminal.StatusLine, "draw", lambda line, make: (bars.append(make(79)), draw(line, make)))
    screen.install(monkeypatch)
    config = TrainConfig(dataset="tests.own:larger", model="tests.own:model", batch_size=16, epochs=2, num_devices=1,
                         warmup_epochs=0.5, live=True, workdir=str(tmp_path / "run"))  # fmt: skip
    train(config)
    rows = [row for row in screen.rows if row]
    text = " ".join(" ".join(rows).split())
    for said in (r"memory 0\.\d+ GiB predicted for a step", r"epoch 1 step \d+ loss \d\.\d{4} ", r"epoch 2 step "):
        assert re.search(said, text), (said, rows)
    starts = {"data", "batch", "updates", "rate", "norm", "warning", "workdir", "memory", "epoch", "noise", ""}
    unknown = [row for row in rows if row[:9].split(" ")[0] not in starts]
    assert not [row for row in unknown if row not in config.workdir], unknown
    assert all(re.fullmatch(r" *\d+% [█▏▎▍▌▋▊▉·]{8,30} \d+/\d+(  \S.*)*", bar) for bar in bars), bars
    assert "left  loss" in bars[-1] and "accuracy" in bars[-1]


@pytest.mark.parametrize("columns", [20, 39, 79, 119, 300])
@pytest.mark.parametrize("total", [40, 1_875_000])
def test_the_bar_and_the_text_beside_it_fit_the_width(columns, total):
    bar = progress.Progress.__new__(progress.Progress)
    bar.plan = type("Plan", (), {"total_steps": total})()
    bar._line, bar._first, bar._examples, bar._since = terminal.StatusLine(), (1, 0.0), 10**6, 0.0
    bar.last = {"loss": 0.7136, "accuracy": 0.8433, "learning_rate": 1.17188}
    for step in (1, total // 3, total):
        line = bar._bar(step, columns)
        assert len(line) <= max(columns, 30)
        assert 8 <= len(line.split("%")[1].split()[0]) <= 30
        assert ("loss 0.714" in line) == (columns > 50 or (columns == 39 and "loss" in line))
        assert columns < 300 or "rate 1.17" in line


@pytest.mark.parametrize("start", ["python -m experiments.train", "batchnorm-train"])
def test_commands_stay_whole(start):
    command = start + " --batch_size=128" * 10
    assert terminal.folded(command, 40) == command


def test_lines_are_folded_between_words_and_fields():
    text = "epoch     1  step     10  loss 0.7136  test 84.33%  originals 86.94%  3,450 examples/s"
    first, second = terminal.folded(text, 80).splitlines()
    assert (first, second) == (text.removesuffix("  3,450 examples/s"), " " * 10 + "3,450 examples/s")
    assert terminal.folded(text, 200) == text
    path = "workdir   /" + "x" * 100
    assert "/" + "x" * 100 in terminal.folded(path, 40).split()


def test_a_countdown_shows_the_time_that_is_left_while_work_goes_on(monkeypatch):
    """Each second, under what is printed; and nothing where there is no terminal."""
    shown, left = [], iter([90.0, 30.0, -1.0, -2.0])
    drawn = threading.Event()

    class Line(terminal.StatusLine):
        def draw(self, line):
            shown.append(line(40))
            if len(shown) == 3:
                drawn.set()

    monkeypatch.setattr(terminal, "StatusLine", Line)
    monkeypatch.setattr(terminal, "COUNTDOWN_SECONDS", 0.01)
    with terminal.countdown(lambda: next(left, -3.0), "target-b64"):
        assert drawn.wait(10)
    assert shown[:2] == ["1:30 left  target-b64", "0:30 left  target-b64"]
    assert shown[2].startswith("the time is used up")
    assert not any(thread.name == "countdown" for thread in threading.enumerate())
