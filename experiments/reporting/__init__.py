"""Figures and pages made from result files alone."""

from experiments.reporting.curves import training_curves
from experiments.reporting.page import write_page

__all__ = ["training_curves", "write_page"]
