"""Figures and pages made from result files alone."""

from experiments.reporting.convergence import ANALYSIS as CONVERGENCE
from experiments.reporting.convergence import convergence_figure, rate_figure
from experiments.reporting.curves import training_curves
from experiments.reporting.large_batch import accuracy_figure
from experiments.reporting.norm import norm_figure
from experiments.reporting.norm_study import norm_study_figure, write_norm_study_page
from experiments.reporting.page import write_page
from experiments.reporting.study import write_study_page

__all__ = [
    "CONVERGENCE",
    "accuracy_figure",
    "convergence_figure",
    "norm_figure",
    "norm_study_figure",
    "rate_figure",
    "training_curves",
    "write_norm_study_page",
    "write_page",
    "write_study_page",
]
