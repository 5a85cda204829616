"""Training programs that are not configurations of `experiments.train`: examples of `Problem` in three libraries."""

from .problem import Problem, stream

__all__ = ["Problem", "stream"]
