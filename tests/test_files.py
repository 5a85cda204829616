"""Files are written atomically, and errors of reading them are one sentence."""

import errno
import json
import os
import stat
from typing import Any

import pytest

from experiments import _commands, _files
from experiments._errors import StorageError, UsageError
from experiments.records.fields import Finite
from experiments.records.record import Record


class Row(Record, frozen=True, kw_only=True):
    a: Finite
    deep: Any = None


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["replace", "fdopen", "open"])
def test_a_failed_write_leaves_the_earlier_file_unchanged(tmp_path, monkeypatch, call):
    path = tmp_path / "report.html"
    _files.write(path, "before")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match=r"no space left on the disk: .*report.html cannot be written.*make room"):
        _files.write(path, "after")
    monkeypatch.undo()
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_writing_does_not_follow_a_symbolic_link(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    link = tmp_path / "link"
    link.symlink_to(theirs)
    with pytest.raises(StorageError, match="is a symbolic link"):
        _files.add_row(link, {"key": "a"})
    _files.write(link, "ours")
    assert theirs.read_text() == "theirs" and link.read_text() == "ours" and not link.is_symlink()


def test_a_new_file_has_the_permissions_that_the_umask_gives(tmp_path):
    before = os.umask(0o022)
    try:
        _files.write(tmp_path / "new", b"bytes")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o644
    finally:
        os.umask(before)


def test_a_row_that_is_appended_to_a_truncated_row_is_whole(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": ')
    _files.add_row(path, Row(a=2))
    assert _files.read_rows(path, Row) == ([Row(a=1), Row(a=2)], 1)
    assert "rows.jsonl, line 2 is not a whole row" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is not JSON"),
        (b'{"a": 1', "it is not JSON"),
        (bytes(range(256)), "it is not JSON"),
        (b"[]", "the whole: expected `object`, got `array`"),
        (b"{}", "the whole: object missing required field `a`"),
        (b'{"a": "1"}', "a: expected `float`, got `str`"),
        (b'{"a": true}', "a: expected `float`, got `bool`"),
        (b'{"a": NaN}', "a: expected a finite number"),
        (b'{"a": 1e999}', "a: expected a finite number"),
        (b'{"a": ' + b"9" * 400 + b"}", "a: number out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a": 1, "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_an_error_in_a_file_is_one_sentence_that_names_the_file(tmp_path, content, said):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        _files.read_json(path, Row)
    assert (
        said in str(raised.value) and len(str(raised.value)) < len(str(path)) + 150 and str(path) in str(raised.value)
    )


def test_a_path_that_is_not_a_file_is_named(tmp_path):
    for path, said in ((tmp_path, "directory"), (tmp_path / "none", "does not exist"), (tmp_path / "a\0b", "null")):
        with pytest.raises(UsageError, match=f"{said}"):
            _files.read_json(path, Row)


def test_control_characters_and_surrogates_are_replaced(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"a": 1, "\ud800": ["\x1b[2J"]}))
    assert _files.read_json(path, dict) == {"a": 1, "�": ["�[2J"]}


def test_a_folder_that_cannot_be_created_names_the_flag(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300), tmp_path / "a\0b"):
        with pytest.raises(UsageError, match=r"--workdir=.* cannot be written to .*give another --workdir"):
            _files.make_folder(folder)


def test_commands_are_shown_quoted_and_without_absolute_paths():
    words = ["python", "-m", "experiments.train", "--workdir=/home/a b/runs/x y", "--model=my:f", "/abs/", "~/b"]
    shown = _commands.shareable_command(words)
    assert shown == "python -m experiments.train '--workdir=x y' --model=my:f abs b"
    assert _commands.shareable_text("train --workdir='/home/me/x'") == "train --workdir=x"
    assert _commands.shareable_text("cut '/home/me/x") == "cut 'x"
