"""Figures and pages made from result files alone."""

from experiments.reporting.curves import training_curves
from experiments.reporting.norm import norm_figure
from experiments.reporting.page import write_page

__all__ = ["norm_figure", "training_curves", "write_page"]
