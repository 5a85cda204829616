"""Figures and pages made from result files alone."""

from experiments.reporting.curves import training_curves
from experiments.reporting.large_batch import accuracy_figure, write_large_batch_page
from experiments.reporting.norm import norm_figure
from experiments.reporting.norm_study import norm_study_figure, write_norm_study_page
from experiments.reporting.page import write_page

__all__ = [
    "accuracy_figure",
    "norm_figure",
    "norm_study_figure",
    "training_curves",
    "write_large_batch_page",
    "write_norm_study_page",
    "write_page",
]
