"""The claims of the literature beside what a study measured: each verdict, and the section of a study that is kept."""

import re
from pathlib import Path

import pytest

from experiments import _files
from experiments.records.questions.convergence import StepsFit, StepsIntervals
from experiments.records.questions.optimizers import Analysis, OptimizerFit, TunedOptimizer
from experiments.reporting import claims
from experiments.reporting.claims import BORNE_OUT, NOT_BORNE_OUT, OPEN
from experiments.reporting.study import study_sections
from experiments.reporting.study_files import StudyFiles
from experiments.studies import jobs
from tests import made

KEPT = Path(__file__).parent.parent / "docs" / "results" / "batch_size_mnist"


def critical(low, high):
    ends = StepsIntervals(min_steps=(1, 2), min_examples=(1, 2), critical_batch_size=(low, high))
    return StepsFit(min_steps=1, min_examples=1, critical_batch_size=(low * high) ** 0.5, intervals=ends)


def study(folder, rates, muon=(100.0, 200.0), adamw=(100.0, 200.0), on_edge=False):
    """The files of a study whose AdamW has these best rates by batch size."""
    tuned = [
        TunedOptimizer(optimizer="adamw", batch_size=size, rate=rate, reached=rate is not None, on_edge=on_edge)
        for size, rate in rates.items()
    ]
    fits = [
        OptimizerFit(optimizer=name, fit=critical(*ends) if ends else None, no_fit=None if ends else "too few runs")
        for name, ends in (("muon", muon), ("adamw", adamw))
    ]
    options = {"batch_size": 8, "seed": 0, "optimizer": "adamw", "learning_rate": 1.0, "epochs": 1}
    row = made.row("equal-adamw-b8-seed0", options, summary=made.summary())
    _files.add_row(folder / jobs.FILE, row)
    found = Analysis(
        keys=[row.key], target=0.9, seeds=[0], confidence=0.95, trials=5, factor=2.0, tuned=tuned, fits=fits
    )
    _files.write_json(folder / "optimizers.json", found)
    return StudyFiles(folder)


@pytest.mark.parametrize(
    ("rates", "on_edge", "verdict"),
    [
        ({64: 0.01, 1024: 0.04}, False, BORNE_OUT),
        ({64: 0.01, 1024: 0.16}, False, NOT_BORNE_OUT),
        ({64: 0.01, 1024: 0.01}, False, NOT_BORNE_OUT),
        ({64: 0.01, 1024: 0.04}, True, OPEN),
        # One doubling, and rates a factor of two apart: anything from none to the linear rule fits.
        ({64: 0.01, 128: 0.014}, False, OPEN),
        ({64: 0.01, 256: 0.02, 1024: None}, False, OPEN),
        ({64: 0.01, 256: 0.01}, False, OPEN),
    ],
)
def test_a_rule_is_borne_out_where_it_fits_and_the_other_does_not(rates, on_edge, verdict, tmp_path):
    claim = claims.root_rule(study(tmp_path, rates, adamw=(1000.0, 2000.0), on_edge=on_edge))
    assert claim is not None and claim.verdict == verdict, claim


def test_a_rule_is_of_batches_below_the_critical_one(tmp_path):
    """From 64 to 256 by the square root; beyond, the best rate stays."""
    rates = {64: 0.01, 256: 0.02, 1024: 0.02, 4096: 0.02}
    claim = claims.root_rule(study(tmp_path, rates, adamw=(200.0, 450.0)))
    assert claim is not None and "from 64 to 256" in claim.measured
    few = claims.root_rule(study(tmp_path, rates, adamw=(60.0, 80.0)))
    assert few is not None and few.verdict == OPEN and "only one batch size is below" in few.measured


def test_of_a_single_size_no_rule_can_be_told(tmp_path):
    assert claims.root_rule(study(tmp_path, {64: 0.01, 1024: None})) is None


@pytest.mark.parametrize(
    ("muon", "adamw", "verdict"),
    [
        ((300.0, 500.0), (100.0, 200.0), BORNE_OUT),
        ((100.0, 200.0), (300.0, 500.0), NOT_BORNE_OUT),
        ((150.0, 500.0), (100.0, 200.0), OPEN),
        ((300.0, float("inf")), (100.0, 200.0), BORNE_OUT),
    ],
)
def test_two_critical_batch_sizes_differ_where_their_intervals_do(muon, adamw, verdict, tmp_path):
    claim = claims.muon(study(tmp_path, {64: 0.01}, muon, adamw))
    assert claim is not None and claim.verdict == verdict and "Muon" in claim.measured


def test_without_a_fit_there_is_nothing_to_compare(tmp_path):
    assert claims.muon(study(tmp_path, {64: 0.01}, muon=None)) is None


def test_the_kept_study_says_what_it_measured():
    (section,) = [section for section in study_sections(KEPT) if section.number == claims.NUMBER]
    text = re.sub(r"<[^>]*>", " ", section.parts[0])
    assert section.answer.startswith("Of ") and "Goyal et al." in text and "Smith et al." in text
    assert re.search(r"from [\d,]+ to [\d,]+ with the power \d\.\d\d", text) and "seeds lie up to" in text
