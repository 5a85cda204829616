"""Typed records: what training and studies write to files, and reports and later runs read."""

from experiments.records._untyped import *  # noqa: F403
