"""Figures and pages made from result files alone.

The import takes about a second, because figures need matplotlib. Entry points therefore import this package at the
start of `main`: `--help` then does not wait for it, and a long run does not fail at its end because of it.
"""

from .critical import convergence_figure
from .curves import training_curves
from .document import write_svg
from .norm import norm_figure
from .norm_study import norm_study_figure, write_norm_study_page
from .page import write_page
from .questions.convergence import epochs_figure, rate_figure
from .questions.generalisation import generalisation_figure
from .questions.ladder import rungs_figure
from .questions.ramp import ramp_figure
from .questions.search import accuracy_figure
from .questions.smoothness import smoothness_figure
from .questions.time import time_figure
from .recommendation import (
    recommendation_figure,
    recommendation_lines,
    write_recommendation_page,
)
from .study import study_sections, write_study_page
from .topology import topology_figure

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
