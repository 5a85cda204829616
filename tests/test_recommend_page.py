"""The file, the page and the terminal lines of a recommendation."""

import html
import json
import re

import msgspec
import pytest

from experiments import _files
from experiments._errors import UsageError
from experiments.records.recommendation import Recommendation
from experiments.reporting import recommendation_lines, write_recommendation_page
from experiments.reporting.recommendation import command
from experiments.reporting.recommendation_text import SOURCES, WHY_NOT_LARGER
from experiments.studies.recommending.run import FILE
from tests.law import Law, answer, kept


def recommended():
    evidence, advice = answer(Law(minutes=6))
    return kept(Recommendation(minutes=2.08738, seconds=114.0, evidence=evidence, advice=advice))


@pytest.mark.parametrize("target", [None, 0.98])
def test_a_recommendation_is_what_its_file_holds(target, tmp_path):
    """Also what an earlier version wrote, which lacks some of it, and a later one, which may have more."""
    evidence, advice = answer(Law(minutes=6), target=target)
    result = Recommendation(minutes=6, seconds=300.0, evidence=evidence, advice=advice)
    _files.write_json(tmp_path / FILE, result)
    assert _files.read_json(tmp_path / FILE, Recommendation) == result
    held = json.loads((tmp_path / FILE).read_text())
    assert held["version"] == 1 and isinstance(held["evidence"]["step_time"][0], list)
    del held["version"], held["evidence"]["unit"], held["evidence"]["optimizer"], held["evidence"]["memory"]["error"]
    for run in held["evidence"]["runs"]:
        del run["key"], run["evaluate_every"]
    held["advice"]["later"] = 3
    (tmp_path / FILE).write_text(json.dumps(held))
    older = _files.read_json(tmp_path / FILE, Recommendation)
    assert older.version == 0 and older.advice == advice
    assert recommendation_lines(older) == recommendation_lines(result)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"dataset": 3}, r"evidence.options.dataset: expected `str`, got `int`"),
        ({"dataset": "mnist", "norm": 3}, r"evidence.options.norm: expected `str \| null`, got `int`"),
        ({}, "expected one of the options 'dataset' and 'problem'"),
    ],
)
def test_options_that_a_page_cannot_show_are_named(damage, said, tmp_path):
    result = recommended()
    held = msgspec.to_builtins(result)
    held["evidence"]["options"] = damage
    (tmp_path / FILE).write_text(json.dumps(held))
    with pytest.raises(UsageError, match=said):
        write_recommendation_page(tmp_path)


def test_predictions_fit_a_terminal():
    """A column for each size."""
    result = recommended()
    lines = recommendation_lines(result)
    sizes = [f"{prediction.batch_size:,}" for prediction in result.advice.predictions]
    (head,) = (i for i, line in enumerate(lines) if line.split() == ["batch", "size", *sizes])
    rows = lines[head : lines.index("", head)]
    assert len(sizes) == 3 and len(rows) == 7 and max(map(len, rows)) <= 90
    for cell in ("time per update", "computing time", "memory"):
        assert sum(row.startswith(cell) for row in rows) == 1, cell


def test_the_recommendation_comes_first_then_why_then_the_numbers(tmp_path):
    result = recommended()
    advice, lines = result.advice, recommendation_lines(result)
    assert lines[0].startswith(
        f"Use a batch size of {advice.batch_size:,} with a learning rate of {advice.learning_rate:g}. "
        "Training should reach 98% after about "
    )
    _files.write_json(tmp_path / FILE, result)
    page = html.unescape(write_recommendation_page(tmp_path).read_text())
    for text in ("\n".join(lines), page):
        places = [text.index(part) for part in (lines[0], "Why", "What to expect", "Measured")]
        assert places == sorted(places)


@pytest.mark.parametrize("binds", [*WHY_NOT_LARGER, "something else"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_words_need_no_paper(binds, source):
    """A term stands where it is explained, and nowhere before."""
    result = recommended()
    advice = msgspec.structs.replace(result.advice, binds=binds, source=source, loosen="a fix")
    result = msgspec.structs.replace(result, advice=advice)
    text = "\n".join(recommendation_lines(result))
    assert not re.search(r"\bdraws?\b|loosen|\bbinds\b|within a tenth", text)
    for term in ("knee", "critical batch size"):
        explained = f"This size is called the {term}."
        assert text.index(term) == text.index(explained) + len(explained) - len(f"{term}.")
    # Every column of the table is complete, and no number is one that JSON cannot have.
    assert not re.search(r"\bnan\b|\binf\b|None", text)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("updates to a target: too little time is left", "Run the same command again with --budget_minutes=11; "),
        ("a rate: every one from 1 to 4 diverged", "the measurements do not decide it"),
    ],
)
def test_without_a_recommendation_the_page_says_what_to_do(missing, said, tmp_path):
    result = recommended()
    evidence = msgspec.structs.replace(result.evidence, not_measured=[missing], minutes_needed=9.0)
    result = msgspec.structs.replace(result, advice=None, evidence=evidence)
    assert said in recommendation_lines(result)[0] and f"- {missing}" in recommendation_lines(result)
    _files.write_json(tmp_path / FILE, result)
    assert said in html.unescape(write_recommendation_page(tmp_path).read_text())


@pytest.mark.parametrize(("minutes", "said"), [(0.4, "about a minute in all"), (8.0, "about 10 minutes in all")])
def test_what_was_left_out_says_how_long_it_would_take(minutes, said):
    result = recommended()
    evidence = msgspec.structs.replace(result.evidence, minutes_needed=minutes)
    assert said in "\n".join(recommendation_lines(msgspec.structs.replace(result, evidence=evidence)))


def test_the_page_has_the_line_and_the_table(tmp_path):
    """A browser breaks the line to copy between flags only."""
    result = recommended()
    _files.write_json(tmp_path / FILE, result)
    page = write_recommendation_page(tmp_path).read_text()
    (pre,) = re.findall(r"<pre>(.*?)</pre>", page)
    assert re.sub(r"<[^>]*>", "", pre) == command(result.advice)
    assert f"<span>--batch_size={result.advice.batch_size}</span>" in pre
    for prediction in result.advice.predictions:
        assert f'<th class="n">{prediction.batch_size:,}</th>' in page
    assert "1.9 of 2.09 minutes were spent" in page
