"""Figures and pages made from result files alone."""

from experiments.reporting.critical import convergence_figure
from experiments.reporting.curves import training_curves
from experiments.reporting.document import write_svg
from experiments.reporting.norm import norm_figure
from experiments.reporting.norm_study import norm_study_figure, write_norm_study_page
from experiments.reporting.page import write_page
from experiments.reporting.questions.convergence import epochs_figure, rate_figure
from experiments.reporting.questions.generalisation import generalisation_figure
from experiments.reporting.questions.ladder import rungs_figure
from experiments.reporting.questions.ramp import ramp_figure
from experiments.reporting.questions.search import accuracy_figure
from experiments.reporting.questions.smoothness import smoothness_figure
from experiments.reporting.questions.time import time_figure
from experiments.reporting.recommendation import (
    recommendation_figure,
    recommendation_lines,
    write_recommendation_page,
)
from experiments.reporting.study import study_sections, write_study_page
from experiments.reporting.topology import topology_figure

__all__ = [
    "accuracy_figure",
    "convergence_figure",
    "epochs_figure",
    "generalisation_figure",
    "norm_figure",
    "norm_study_figure",
    "ramp_figure",
    "rate_figure",
    "recommendation_figure",
    "recommendation_lines",
    "rungs_figure",
    "smoothness_figure",
    "study_sections",
    "time_figure",
    "topology_figure",
    "training_curves",
    "write_norm_study_page",
    "write_page",
    "write_recommendation_page",
    "write_study_page",
    "write_svg",
]
