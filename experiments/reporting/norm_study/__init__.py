"""The report of the norm study: a figure and a page, made from the study's rows alone."""

from .figure import norm_study_figure
from .page import write_norm_study_page

__all__ = ["norm_study_figure", "write_norm_study_page"]
